"""Does a segmenter see in outputs what they were made from? Scores of label maps, and a user's segmenter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from translate.errors import UserError
from translate.metrics.foreign import made_by


class Confusion:
    """Pixels by their true and their predicted class, map by map."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        """Row: the true class; column: the predicted one."""

    def add(self, predicted: Tensor, truth: Tensor, ignore: int | None = None) -> None:
        """Count label maps (N, H, W) of any integer type; pixels whose truth is `ignore` do not count.

        ValueError for different shapes; UserError for a class beyond those there are: nothing of such a batch counts.
        """
        if predicted.shape != truth.shape:
            raise ValueError(f"expected label maps of one shape, not {tuple(predicted.shape)} and {tuple(truth.shape)}")
        predicted, truth = predicted.to(torch.int64), truth.to(predicted.device, torch.int64)
        if ignore is not None:
            seen = truth != ignore
            predicted, truth = predicted[seen], truth[seen]
        for labels, told in ((predicted, "predicted"), (truth, "true")):
            beyond = labels[(labels < 0) | (labels >= self.classes)]
            if len(beyond):
                raise UserError(
                    f"{told} labels: expected classes from 0 to {self.classes - 1}, not {int(beyond[0])}; "
                    "give the number of classes, or the class to ignore"
                )
        pairs = torch.bincount((truth * self.classes + predicted).flatten(), minlength=self.classes**2)
        self.counts += pairs.reshape(self.classes, self.classes).cpu()

    def merge(self, other: Confusion) -> None:
        """Take all that the other has counted."""
        if other.classes != self.classes:
            raise ValueError(f"expected {self.classes} classes, not {other.classes}")
        self.counts += other.counts

    def scores(self) -> dict[str, float]:
        """`pixel-accuracy`, `class-accuracy` and `mean-iou` (Long et al. 2015, arXiv 1411.4038, section 5).

        With n_ij pixels of class i predicted as j and t_i = sum_j n_ij: sum_i n_ii / sum_i t_i; the mean of n_ii / t_i
        over the classes that the truth has; and the mean of n_ii / (t_i + sum_j n_ji - n_ii) over those that the truth
        or the prediction has. The paper divides by the number of all classes, and leaves open what 0 / 0 is. UserError
        where no pixel was counted.
        """
        if not self.counts.any():
            raise UserError("no pixel of the label maps counts: expected some that are not to be ignored")
        right = self.counts.diagonal().double()
        true, predicted = self.counts.sum(1), self.counts.sum(0)
        union = true + predicted - self.counts.diagonal()
        return {
            "pixel-accuracy": float(right.sum() / true.sum()),
            "class-accuracy": float((right / true)[true > 0].mean()),
            "mean-iou": float((right / union)[union > 0].mean()),
        }


class Segmenter(nn.Module):
    """A user's segmenter, held to its contract."""

    def __init__(self, function: Callable[[Tensor], object], name: str) -> None:
        super().__init__()
        self.function, self.name = function, name

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> classes (N, H', W'), int64, in the segmenter's own grid; UserError where it
        returns something else than `load_segmenter` says."""
        found = self.function(images)
        if isinstance(found, Tensor) and len(found) == len(images):
            if found.ndim == 4 and found.is_floating_point():
                return found.argmax(1)
            if found.ndim == 3 and not found.is_floating_point():
                return found.to(torch.int64)
        told = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"segmenter: {self.name} returned {told} for images {tuple(images.shape)}; expected {len(images)} maps of "
            "integer classes (N, H, W), or of scores (N, classes, H, W)"
        )


def load_segmenter(text: str, device: torch.device | str) -> Segmenter:
    """The user's segmenter that `package.module:callable` makes: called without arguments it returns a module or a
    function of images (N, 3, H, W) in [-1, 1], whose result is a class for each pixel, (N, H, W) of an integer type, or
    a score for each class, (N, classes, H, W) of floats, of which the largest counts.

    UserError where it can not be had.
    """
    function = made_by(text, "segmenter")
    if not callable(function):
        raise UserError(
            f"segmenter: {text} returned {type(function).__name__}; expected a module or a function of images"
        )
    return Segmenter(function, text).to(device).eval().requires_grad_(False)
