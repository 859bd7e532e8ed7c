"""The networks whose features the set measures compare: Inception, or any that a user names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from translate.devices import exact_float32
from translate.errors import UserError
from translate.metrics.foreign import in_a_line, made_by
from translate.metrics.protocol import ProtocolSettings, Resize
from translate.pretrained.inception import DIMENSION, SIDE, Features, Inception, resize
from translate.pretrained.store import digest_of

INCEPTION = "inception-2015-12-05"
"""What protocols call the network of FID: the date of its publication."""


class FeatureNetwork:
    """A frozen network, and how images come to it. It computes in float32, outside autocast and without TF32.

    Args:
        name: what protocols call it.
        network: inputs (N, 3, H, W) -> features (N, D), or features and logits (N, classes); moved and frozen.
        digest: names its weights.
        crop: central square that it sees (see `central_crop`); None for whole images.
        resize: how images come to Inception's size and scale; None for a network that takes them in [-1, 1] as they
            are.
        dimension: length of the features; where it is not given, the network is tried out here on a grey square, so
            it must take any size, or that of `crop`.

    Raises:
        UserError: the network fails at that, or returns something else than features.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        device: torch.device | str,
        *,
        digest: str,
        crop: int | None = None,
        resize: Resize | None = None,
        dimension: int | None = None,
    ) -> None:
        self.name, self.digest, self.crop, self.resize = name, digest, crop, resize
        self.device = torch.device(device)
        self.network = network.to(self.device).requires_grad_(False).eval()
        self.dimension = self._tried() if dimension is None else dimension
        """Length of the features."""

    def _tried(self) -> int:
        side = self.crop or SIDE
        try:
            features, _ = self._answer(torch.zeros(1, 3, side, side))
        except UserError:
            raise
        except Exception as error:  # whatever a user's network does
            raise UserError(
                f"features: {self.name!r} failed on an image of {side}x{side} ({in_a_line(error)}); if it takes images "
                "of one size only, set the protocol's crop to that"
            ) from error
        return features.shape[1]

    def protocol(self) -> dict[str, str | int]:
        """What a number taken with this network depends on."""
        told: dict[str, str | int] = {"features": self.name, "weights": self.digest[:12]}
        if self.resize:
            told["resize"] = self.resize
        return {**told, "crop": self.crop or "none"}

    def prepare(self, images: Tensor) -> Tensor:
        """Images (N, 3 or 1, H, W) in [-1, 1] of any size, on any device -> what the network takes, there, float32.

        Values beyond [-1, 1] are clamped, grey is repeated to three channels. Raises UserError for other channels.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UserError(
                f"features: {self.name!r} sees RGB or grey images (N, 3 or 1, H, W), not {tuple(images.shape)}"
            )
        images = images.float().clamp(-1, 1)
        if self.crop is not None:
            images = central_crop(images, self.crop)
        if self.resize is not None:
            images = resize(images, self.resize)
        return images.expand(-1, 3, -1, -1)

    def __call__(self, prepared: Tensor) -> Features:
        """(N, 3, H, W) as `prepare` returns it -> features (N, D) and logits, on the network's device, float32.

        Raises UserError where they are of other shapes than before or no numbers.
        """
        found = self._answer(prepared)
        if found.features.shape[1] != self.dimension:
            raise UserError(
                f"features: {self.name!r} gave {found.features.shape[1]} features for images of "
                f"{prepared.shape[3]}x{prepared.shape[2]}, but {self.dimension} before"
            )
        if not found.features.isfinite().all():
            raise UserError(f"features: {self.name!r} gave features that are no numbers (NaN or infinite)")
        return found

    @torch.no_grad()
    def _answer(self, prepared: Tensor) -> Features:
        with exact_float32(self.device):
            answer = self.network(prepared.to(self.device, torch.float32))
        parts = tuple(answer) if isinstance(answer, tuple | list) else (answer, None)
        if len(parts) == 2:
            features, logits = parts
            if _is_table(features, len(prepared)) and (logits is None or _is_table(logits, len(prepared))):
                return Features(features.float(), None if logits is None else logits.float())
        told = ", ".join(str(tuple(p.shape)) if isinstance(p, Tensor) else type(p).__name__ for p in parts)
        raise UserError(
            f"features: expected {self.name!r} to return features (N, D), or features and logits (N, classes), for "
            f"images {tuple(prepared.shape)}; it returned {told}"
        )


def feature_network(protocol: ProtocolSettings, device: torch.device | str) -> FeatureNetwork:
    """The network that a protocol names.

    Raises:
        UserError: Inception's weights are not on this machine; a user's network cannot be had (no such module or
            callable, it fails, returns no network) or gives no features.
    """
    text = protocol.features
    if text == "inception":
        network = Inception.load()
        if torch.device(device).type == "cpu":
            # 1.4 to 1.8 times the images a second of NCHW with oneDNN's convolutions, the same features to 2e-6.
            network = network.to(memory_format=torch.channels_last)
        return FeatureNetwork(
            INCEPTION,
            network,
            device,
            digest=network.digest,
            crop=protocol.crop,
            resize=protocol.resize,
            dimension=DIMENSION,
        )
    module = made_by(text, "features")
    if not isinstance(module, nn.Module):
        raise UserError(f"features: {text!r} must return a torch.nn.Module, not {type(module).__name__}")
    return from_module(text, module, device, crop=protocol.crop)


def from_module(name: str, module: nn.Module, device: torch.device | str, *, crop: int | None = None) -> FeatureNetwork:
    """A network of one's own: images (N, 3, H, W) in [-1, 1] -> features (N, D), or features and logits.

    It is moved to the device and frozen. Raises UserError as FeatureNetwork does.
    """
    return FeatureNetwork(name, module, device, digest=digest_of(module.state_dict()), crop=crop)


def central_crop(images: Tensor, side: int) -> Tensor:
    """The central square of (N, C, H, W) in [-1, 1], its shorter side resized to `side` before: (N, C, side, side).

    Bicubic with antialiasing, as ImageNet's images are brought to size for networks that see squares; the left and
    upper one of two central positions.
    """
    height, width = images.shape[2:]
    if min(height, width) != side:
        scale = side / min(height, width)
        height, width = max(side, round(height * scale)), max(side, round(width * scale))
        exact = interpolate(images.double(), (height, width), mode="bicubic", antialias=True)  # double: see `resize`
        images = exact.clamp(-1, 1).to(images.dtype)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]


def _is_table(value: object, rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and len(value) == rows and value.is_floating_point()
