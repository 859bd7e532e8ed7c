"""Trained networks made ready to run: frozen, cast to a smaller number format, laid out as their kernels like it."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize

from translate.networks.faster import NarrowConv2d, PReLU, SubPixelConv2d

Protocol = Literal["default", "paper"]

FORMAT_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
_LANES = 16
"""Channels that a convolution's kernel computes at a time, wanted or not: float32 numbers in a register of AVX-512."""


def frozen(network: nn.Module, protocol: Protocol) -> nn.Module:
    """A frozen copy in eval mode, parametrisations baked in, set for the protocol."""
    network = copy.deepcopy(network).float().eval().requires_grad_(False)
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):  # spectral norm: its division is done once and in float32
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        if protocol == "paper":
            if isinstance(module, _DropoutNd):
                module.train()
            elif isinstance(module, _BatchNorm):
                module.running_mean = module.running_var = None  # eval mode without them: the batch's own
    return network


def in_torch_s_layers(network: nn.Module) -> nn.Module:
    """Undo in place what `networks.faster` does for training: torch's layers, which all else here knows."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, PReLU):
                setattr(module, name, _with_weights_of(child, nn.PReLU()))
            elif isinstance(child, (NarrowConv2d, SubPixelConv2d)):
                side = child.kernel_size[0]
                plain = nn.Conv2d(child.in_channels, child.out_channels, side, padding=side // 2)
                layer = _with_weights_of(child, plain)
                shuffled = isinstance(child, SubPixelConv2d)
                setattr(module, name, nn.Sequential(layer, nn.PixelShuffle(2)) if shuffled else layer)
    return network


def _with_weights_of(layer: nn.Module, other: nn.Module) -> nn.Module:
    other._parameters = layer._parameters
    return other.train(layer.training)


def reduced(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast in place to bf16 or fp16, all but the norms: kernels take float32 statistics and scales with it.

    Instance norm becomes group norm with as many groups as channels, which is the same function: torch has a
    channels_last kernel for it, while its instance norm copies to NCHW and back (four times slower on a CPU).
    """
    for module in list(network.modules()):
        if not isinstance(module, _NORMS):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm2d) and not child.track_running_stats:
                norm = nn.GroupNorm(child.num_features, child.num_features, child.eps, child.affine)
                if child.affine:
                    norm.weight, norm.bias = child.weight, child.bias
                setattr(module, name, norm.eval())
    return network


def memory_format(dtype: torch.dtype, *, enlarges: bool = False) -> torch.memory_format:
    """The format in which a network of this number format runs fastest."""
    # Measured with ResNet-9 at 256² on a CPU: channels_last is some 10 % quicker in bf16, slower in float32. SRResNet
    # x4, which has no norm over the image, takes half the time in it in float32 as well (tools/bench_upscale.py).
    return torch.contiguous_format if dtype == torch.float32 and not enlarges else torch.channels_last


def prepared(network: nn.Module, dtype: torch.dtype, device: torch.device, *, enlarges: bool = False) -> nn.Module:
    """A copy of a frozen network that runs in that number format on a device, laid out as its kernels like it."""
    network = copy.deepcopy(network)
    if dtype != torch.float32:
        network = reduced(network, dtype)
    if device.type == "cpu":
        network = steady(network, dtype)
    return network.to(memory_format=memory_format(dtype, enlarges=enlarges))


class SteadyConvolution(nn.Module):
    """A convolution on a CPU whose pixels do not depend, to the bit, on how large an image they stand in.

    Torch (2.15) leaves a lone image of at most 20,480 values under a kernel of at most 3 x 3 to a matrix product, and
    hands larger ones to oneDNN, which adds up in another order: so a narrow tile differed from the whole image in the
    last bits. Here oneDNN takes all. In channels_last its own kernels gave equal bits at all of some thousand pairs of
    sizes, in float32 and bf16, with one thread and several, with AVX-512 and AVX2 alike; in NCHW with AVX-512 alone.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        assert isinstance(layer.padding, tuple)
        self.padding, self.stride, self.dilation = layer.padding, layer.stride, layer.dilation
        self.groups = layer.groups

    def forward(self, x: Tensor) -> Tensor:
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


def steady(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Put a `SteadyConvolution` in the place of each convolution, where oneDNN computes in that number format."""
    if not torch.backends.mkldnn.is_available() or dtype == torch.float16:  # type: ignore[no-untyped-call]
        return network
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return network
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Conv2d and child.padding_mode == "zeros" and isinstance(child.padding, tuple):
                setattr(module, name, SteadyConvolution(child))
    return network


# What makes an upscaler faster: the same function, to rounding, with fewer passes over its large feature maps.


def streamlined(network: nn.Module) -> nn.Module:
    """Rewrite in place a frozen network in eval mode: `fold_norms`, `activate_in_place`, `convolve_before_shuffle`.

    A network whose forward pass depends on the values of its input stays as it is.
    """
    for rewrite in (fold_norms, activate_in_place, convolve_before_shuffle):
        try:
            graph = _LayerTracer().trace(network)
        except Exception:  # whatever foreign code makes of symbols in the place of tensors
            return network
        rewrite(network, graph)
    return network


class _LayerTracer(fx.Tracer):
    """Looks into no layer, whoever wrote it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None


def fold_norms(network: nn.Module, graph: fx.Graph) -> None:
    """Batch norm with running statistics right behind a convolution becomes part of its weights.

    norm(W x + b) = s W x + s (b - mean) + shift, where s = weight / sqrt(variance + eps). In float64.
    """
    for layers, names in _chains(network, graph, (nn.Conv2d, nn.BatchNorm2d)):
        layer, norm = cast(tuple[nn.Conv2d, nn.BatchNorm2d], layers)
        if norm.running_mean is None or norm.running_var is None:
            continue
        factor = (norm.running_var.double() + norm.eps).rsqrt()  # (C,)
        if norm.affine:
            factor = factor * norm.weight.double()
        bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
        bias = factor * bias
        if norm.affine:
            bias = bias + norm.bias.double()
        weight = layer.weight.double() * factor[:, None, None, None]
        layer.weight, layer.bias = _frozen(weight, layer.weight.dtype), _frozen(bias, layer.weight.dtype)
        network.set_submodule(names[1], nn.Identity())


def activate_in_place(network: nn.Module, graph: fx.Graph) -> None:
    """PReLU with a single slope becomes a leaky ReLU on the spot: no second map of that size, a third of the time."""
    for before in ((nn.Conv2d,), (nn.Conv2d, nn.Identity), (nn.PixelShuffle,)):  # a map that nobody else sees
        for layers, names in _chains(network, graph, (*before, nn.PReLU)):
            slopes = cast(nn.PReLU, layers[-1]).weight
            if slopes.numel() == 1:
                network.set_submodule(names[-1], nn.LeakyReLU(float(slopes), inplace=True))


def convolve_before_shuffle(network: nn.Module, graph: fx.Graph) -> None:
    """A wide kernel for few channels behind a pixel shuffle moves before it, as `before_shuffle` says.

    SRResNet's last layer, 9 x 9 for three channels, then takes a third of the time.
    """
    for layers, names in _chains(network, graph, (nn.Conv2d, nn.PixelShuffle, nn.LeakyReLU, nn.Conv2d)):
        factor, layer = cast(nn.PixelShuffle, layers[1]).upscale_factor, cast(nn.Conv2d, layers[3])
        wide = all(size % 2 and size >= 5 for size in layer.kernel_size)
        keeps = layer.padding == tuple(size // 2 for size in layer.kernel_size)
        plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
        if wide and keeps and plain and layer.out_channels * factor**2 <= _LANES:
            network.set_submodule(names[3], nn.Sequential(before_shuffle(layer, factor), nn.PixelShuffle(factor)))
            network.set_submodule(names[1], nn.Identity())


def before_shuffle(layer: nn.Conv2d, factor: int) -> nn.Conv2d:
    """What does before `PixelShuffle(factor)` what this one does behind it; kernels are odd, and padded to keep sizes.

    Output pixel (factor y + i, factor x + j) takes the tap (u, v) of its kernel from the fine pixel at offset
    (i + u, j + v), which in the coarse map is channel ((i + u) mod factor, (j + v) mod factor) of the pixel at
    offset (floor((i + u) / factor), floor((j + v) / factor)).
    """
    outs, ins, *sizes = layer.weight.shape
    reach = [size // 2 for size in sizes]
    coarse = [math.ceil(far / factor) for far in reach]
    weight = layer.weight.new_zeros(outs, factor, factor, ins, factor, factor, 2 * coarse[0] + 1, 2 * coarse[1] + 1)
    for i in range(factor):
        for j in range(factor):
            for u in range(-reach[0], reach[0] + 1):
                for v in range(-reach[1], reach[1] + 1):
                    (y, row), (x, column) = divmod(i + u, factor), divmod(j + v, factor)
                    taps = layer.weight[:, :, u + reach[0], v + reach[1]]  # (outs, ins)
                    weight[:, i, j, :, row, column, y + coarse[0], x + coarse[1]] = taps
    area = factor**2
    made = nn.Conv2d(1, 1, 1, padding=(coarse[0], coarse[1]), bias=layer.bias is not None)
    made.in_channels, made.out_channels = ins * area, outs * area
    made.kernel_size = (2 * coarse[0] + 1, 2 * coarse[1] + 1)
    made.weight = _frozen(weight.reshape(outs * area, ins * area, *made.kernel_size), layer.weight.dtype)
    if layer.bias is not None:
        made.bias = _frozen(layer.bias.repeat_interleave(area), layer.bias.dtype)
    return made


def _frozen(tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(tensor.to(dtype), requires_grad=False)


def _chains(
    network: nn.Module, graph: fx.Graph, kinds: tuple[type[nn.Module], ...]
) -> list[tuple[list[nn.Module], list[str]]]:
    """Modules of these kinds that feed each other and nothing else, each called once: the modules, their names."""
    calls = [node for node in graph.nodes if node.op == "call_module"]
    modules = {node: network.get_submodule(str(node.target)) for node in calls}
    times = {id(module): 0 for module in modules.values()}
    for module in modules.values():
        times[id(module)] += 1
    found = []
    for last in calls:
        chain: list[fx.Node] = [last]
        while len(chain) < len(kinds) and isinstance(before := _argument(chain[0]), fx.Node):
            if before not in modules or len(before.users) > 1:
                break
            chain.insert(0, before)
        taken = [modules[node] for node in chain if node in modules]
        fits = len(taken) == len(kinds) and all(type(one) is kind for one, kind in zip(taken, kinds, strict=True))
        if fits and all(times[id(one)] == 1 for one in taken):
            found.append((taken, [str(node.target) for node in chain]))
    return found


def _argument(node: fx.Node) -> Any:
    return node.args[0] if node.args else None


def short_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory, on a GPU or in the machine."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
