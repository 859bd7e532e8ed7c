"""What a method is: the players of a paper, who moves when, and what each one's loss is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from translate.data.spec import Spec
from translate.errors import UserError
from translate.losses.adversarial import Objective


@dataclass(frozen=True)
class Turn:
    """One player's move within a step."""

    player: str
    terms: tuple[str, ...] = ()
    """Terms that are due in this step and not in all: lazy penalties. (The others are always due.)"""


class Comparison(NamedTuple):
    """What a method makes of a validation batch, and what that is held against."""

    output: Tensor
    """Images (N, C, H, W) in [-1, 1], or points."""
    target: Tensor
    """What the outputs should be, one by one where the comparison is paired; else just as a set."""
    spec: Spec
    """What the values of both mean."""
    beside: Mapping[str, Tensor] = {}
    """Numbers (N,) of each image that are logged beside the measures, by name, and choose nothing."""
    chooses: bool = True
    """Whether its measures may choose the best weights; else they are logged alone."""


class Summary(NamedTuple):
    """What a whole epoch tells."""

    numbers: Mapping[str, float] = {}
    """For the log, by name."""
    histograms: Mapping[str, Tensor] = {}
    """For TensorBoard: values on the CPU, by name."""


Renewed = Sequence[tuple[nn.Parameter, Tensor]]
"""Parameters of which rows were written anew, not learnt, and which rows: (rows,) bool."""


class Method(nn.Module, ABC):
    """A training method. Subclasses set the attributes in `__init__` and write the methods below.

    It knows nothing of devices, precision, files or logging: the trainer calls it under autocast, on tensors that are
    float NCHW in [-1, 1], with gradients enabled for the turn's player alone.
    """

    players: nn.ModuleDict
    """Name -> module; each has its own optimiser."""
    weights: dict[str, float]
    """Weight of each loss term in its player's sum. A stage may override them; a term of weight 0 is not computed."""
    directions: tuple[str, ...] = ()
    """What `translator` accepts, the default first; none for a method that translates nothing."""
    channels_last: bool = False
    """Whether its networks are faster in channels_last on a CPU in bf16, by measurement (docs/benchmarks.md)."""
    differentiates: Collection[str] = ("generator",)
    """The players that learn through what `shared` returns; the others' turns need just its values."""
    untrained: Collection[str] = ()
    """The players of which a run makes nothing that a person could use unless one of its stages moves them."""
    taken: Collection[str] = ()
    """The players that come trained from another run: no stage moves them."""
    finite: Tensor | None = None
    """Whether the last player's step was taken, for it was one of numbers: a bool scalar on the device, told before
    `moved` (which is called either way: to know it here would be to wait for the device). None: it was."""
    compares: Mapping[str, bool] = {}
    """The names of what `comparisons` gives, and whether each is paired: the measures of pairs (PSNR, LPIPS) need that,
    those of sets (FID) do not. The method's purpose comes first; a lone one has no name, `""`."""

    compared: Collection[str] = ()
    """Those of them that validation measures, as it says; a method need not make the others."""

    def __init__(self) -> None:
        super().__init__()
        self._reports: dict[str, list[Tensor]] = {}

    def begin(self) -> None:
        """Once, where a run begins: take over what other runs have learnt. A resumed run has it in its checkpoint."""

    def advance(self, progress: float) -> None:
        """Told before each step how much of its stage is done, from 0 to 1."""

    @abstractmethod
    def turns(self, step: int) -> Sequence[Turn]:
        """Who moves in this step (counted within the stage), in the paper's order."""

    def shared(self, batch: Mapping[str, Tensor], moving: Collection[str]) -> dict[str, Tensor]:
        """What several turns of a step use, computed once; with a graph where a player in `moving` needs it."""
        return {}

    @abstractmethod
    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named terms of the turn's player: float32 scalars, unweighted, each a key of `weights`."""

    def surveys(self, turn: Turn) -> bool:
        """Whether the turn's losses hold a number that is one for a whole step, though its batches come one by one."""
        return False

    def survey(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> None:
        """Told of each batch of a step that has several, before the first of the turn's losses: see `surveys`."""

    @abstractmethod
    def previews(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named images (N, 3, H, W) in [-1, 1] for the log, in the order in which one looks at them."""

    def comparisons(self, batch: Mapping[str, Tensor], chance: torch.Generator) -> dict[str, Comparison]:
        """What validation measures, by the names in `compares`; noise comes from `chance`, a generator on the CPU."""
        return {}

    @abstractmethod
    def exported(self) -> nn.ModuleDict:
        """The networks that conversion needs: what the EMA averages and a weights file holds."""

    def averaged(self) -> nn.ModuleDict:
        """Those of them that the EMA averages."""
        return self.exported()

    def ends(self, direction: str) -> tuple[str, str]:
        """The sides of the data that a direction leads from and to."""
        first, _, second = direction.partition("to")
        return first, second

    def translator(self, direction: str) -> nn.Module:
        """The network that turns one side into the other: (N, C, H, W) in [-1, 1] -> the same, times its `scale`."""
        raise UserError("this model translates no images: it makes them from noise; use 'translate sample'")

    def require_direction(self, direction: str, where: object) -> None:
        """UserError, which names where the model comes from, for a direction that it does not have."""
        if direction not in self.directions:
            offered = ", ".join(self.directions) or "none"
            raise UserError(f"{where}: has no direction {direction!r}; it offers {offered}")

    def exported_for(self, direction: str) -> nn.ModuleDict:
        """The exported networks that one direction needs."""
        network = self.translator(direction)
        return nn.ModuleDict({name: module for name, module in self.exported().items() if module is network})

    def check(self, batch: Mapping[str, Tensor]) -> None:
        """See that the networks can take images of this size; UserError in a line where torch would say twenty."""

    def moved(self, turn: Turn) -> Renewed:
        """After the turn's player has moved: constraints on its weights, and what is kept of them.

        Returns the rows of parameters that were written anew: optimiser and average forget what they knew of them.
        """
        return ()

    def summary(self) -> Summary:
        """What the epoch that has ended tells, and begin to count anew. All processes ask; numbers are of all."""
        return Summary()

    def warnings(self, values: Mapping[str, float]) -> list[str]:
        """What a person should hear of a log row's means (`player/term` and what was reported): lines, often none.

        Each of several processes asks, with the same values; what is kept between two rows is a checkpoint's too.
        """
        return []

    def terms(self, name: str) -> tuple[str, ...]:
        """The loss terms that a config means by a name: this one, or of a method of two sides both (`adversarial` for
        `adversarial_A` and `adversarial_B`); none where there is no such term."""
        if name in self.weights:
            return (name,)
        return tuple(term for term in self.weights if term in (f"{name}_A", f"{name}_B"))

    def active(self, term: str) -> bool:
        """Whether a term counts at present: work for a term of weight 0 is not done."""
        return self.weights[term] != 0

    def report(self, name: str, value: Tensor) -> None:
        """Log the mean of a number that is no loss. Costs no synchronisation: it is read when a log row is written."""
        self._reports.setdefault(name, []).append(value.detach().float().mean())

    def discriminator_loss(self, objective: Objective, real: Tensor, fake: Tensor, of: str = "") -> Tensor:
        """The objective's loss on raw logits; what the discriminator (of several the one called `of`) says of both is
        logged, as the probability of "real" where its logits mean one, and the objective's own state moves."""
        loss = objective.discriminator(real, fake)
        for name, logits in ((f"D{of}(real)", real), (f"D{of}(fake)", fake)):
            self.report(name, logits.float().sigmoid() if objective.probability else logits)
        for name, value in objective.update(real.detach(), fake.detach()).items():
            self.report(f"{name}{of}", value)
        return loss

    def take_reports(self) -> dict[str, Tensor]:
        """The means of what was reported since the last call (the trainer's side of `report`)."""
        reports, self._reports = self._reports, {}
        return {name: torch.stack(values).mean() for name, values in reports.items()}


def check_sizes(batch: Mapping[str, Tensor], networks: Mapping[str, tuple[str, nn.Module]]) -> None:
    """See that each network (name -> batch key, network) divides its images; UserError otherwise."""
    for name, (side, network) in networks.items():
        height, width = batch[side].shape[2:]
        multiple, smallest = getattr(network, "multiple", 1), getattr(network, "smallest", 1)
        if height % multiple or width % multiple or min(height, width) < smallest:
            raise UserError(
                f"data.augment: images of {width}x{height} do not fit the {name}, which takes multiples of "
                f"{multiple} from {smallest} on; set data.augment.crop, or a smaller network"
            )


def run_padded(network: nn.Module, images: Tensor) -> Tensor:
    """Run a generator on (N, C, H, W) of any size: padded to what it divides (reflected if it can be), cropped back."""
    multiple, smallest, scale = int(network.multiple), int(network.smallest), int(network.scale)  # type: ignore[arg-type]
    height, width = images.shape[2:]
    down, right = (max(smallest, -(-n // multiple) * multiple) - n for n in (height, width))
    if down or right:
        mode = "reflect" if down < height and right < width else "replicate"
        images = F.pad(images, (0, right, 0, down), mode=mode)
    return torch.as_tensor(network(images))[..., : height * scale, : width * scale]
