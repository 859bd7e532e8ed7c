"""The one loop that trains every method. It knows no paper; a method knows nothing of what happens here."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from translate import distributed
from translate.data.images import to_device
from translate.data.loader import evaluation_batches, training_batches
from translate.devices import Precision, resolve_device, resolve_precision
from translate.distributed import ALONE, Processes
from translate.errors import UserError
from translate.methods.base import Method, Turn
from translate.run import Checkpoint, Run, fill
from translate.settings import Settings, Span, SpanField, parse_span
from translate.training.ema import EMA, EMASettings
from translate.training.logging import Means, RunLog, memory_in_use
from translate.training.optimisers import OptimiserSettings, PlayerOptimiser
from translate.training.schedules import ConstantSchedule, ScheduleSettings
from translate.training.validation import Validator, better

if TYPE_CHECKING:
    from translate.config import Config


class StageSettings(Settings):
    """A stretch of training with its own players, loss weights, optimisers and schedule."""

    name: str = Field(default="main", pattern=r"^[A-Za-z0-9._-]+$")
    """Also of the weights file that it leaves behind it: stage-NAME.safetensors."""
    length: SpanField
    optimiser: OptimiserSettings | None = None
    """Every player's optimiser, but for those named in `optimisers`."""
    optimisers: dict[str, OptimiserSettings] = Field(default_factory=dict)
    schedule: ScheduleSettings = ConstantSchedule()
    players: list[str] | None = Field(default=None, min_length=1)
    """Who moves; null for all. The others' turns are left out (a pixel stage has no discriminator)."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Loss weights that differ from the method's in this stage."""
    weight_schedules: dict[str, ScheduleSettings] = Field(default_factory=dict)
    """How loss weights change within the stage (R3GAN lets its penalties fall along a cosine); `end` is a share."""
    clip: float | None = Field(default=None, gt=0)
    """Largest gradient norm of a player."""


class TrainingSettings(Settings):
    """How long, how fast and in which numbers."""

    batch_size: int = Field(default=1, ge=1)
    """Images in a forward pass of one process."""
    accumulation: int = Field(default=1, ge=1)
    """Passes whose gradients make one step."""
    precision: Precision = "auto"
    """auto: bf16 where the hardware multiplies in it, else fp16 on CUDA, else fp32."""
    device: str = "auto"
    channels_last: bool | None = None
    """Memory format of the networks; null chooses by measurement (docs/benchmarks.md): on for CUDA, on a CPU for bf16
    and methods that gain by it."""
    ema: EMASettings | None = None
    nonfinite_limit: int = Field(default=50, ge=1)
    """So many steps in a row with a loss or gradient that is no number end the run."""
    stages: list[StageSettings] = Field(min_length=1)

    @model_validator(mode="after")
    def _stages_have_their_own_names(self) -> TrainingSettings:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("two stages have the same name; give each its own")
        return self


class CheckpointSettings(Settings):
    """When the whole state is written, and how many states are kept."""

    every: SpanField = parse_span("1000 steps")
    keep: int = Field(default=2, ge=1)


@dataclass(frozen=True)
class Progress:
    """Where a run is, for whoever watches."""

    stage: str
    images: int
    total: int
    images_per_second: float
    losses: Mapping[str, float]


class Watcher(Protocol):
    """The person's side of a run: a progress bar, plain lines, or silence."""

    def progress(self, progress: Progress) -> None: ...
    def message(self, text: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    reason: Literal["finished", "interrupted", "early stop"]
    step: int
    images: int


class Interrupted(Exception):
    """Raised inside the loop when the person or the system asks the run to stop."""


class Trainer:
    """Trains a config. Making one builds every part and finds the config's mistakes, but writes nothing.

    Counting is in images: `images` have been seen by all processes together, `step` = images / images in a step.
    """

    def __init__(self, config: Config, watcher: Watcher, *, processes: Processes = ALONE) -> None:
        settings = config.training
        self.config, self.watcher, self.processes = config, watcher, processes
        self.device = resolve_device(settings.device)
        self.dtype = resolve_precision(settings.precision, self.device)
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        # Where torch has no such kernel (the gradient of reflection padding on CUDA) it warns, and the run goes on.
        torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
        torch.backends.cudnn.benchmark = not config.deterministic

        if config.data.cache != "none":
            watcher.message("reading the images into the cache")
        dataset = config.data.open("train", config.seed)
        if dataset is None:
            raise UserError("data.train: names no split to train on")
        self.dataset = dataset
        for note in getattr(dataset, "notes", ()):
            watcher.message(note)
        self.validation_set = config.data.open("validation", config.seed)
        self.specs = config.data.specs()

        torch.manual_seed(config.seed)  # the same first weights in every process
        self.method: Method = config.method.build(config.data).to(self.device)
        channels_last = settings.channels_last
        if channels_last is None:
            fast = self.method.channels_last and self.dtype == torch.bfloat16
            channels_last = self.device.type == "cuda" or fast
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.method.to(memory_format=self.memory_format)
        self.method.train()
        self.method_weights = dict(self.method.weights)
        self.ema = self._average()
        compares = self.method.compares if self.validation_set is not None else {}
        if config.validation.measures is not None and not compares:
            why = "names no split" if self.validation_set is None else "is there, but this method compares nothing"
            raise UserError(f"validation.measures: data.validation {why}, so there is nothing to measure; leave it out")
        self.validator = None
        if compares and self.validation_set is not None:
            self.validator = Validator(config.validation, compares, len(self.validation_set), self.device)

        self.batch = settings.batch_size * settings.accumulation * processes.world
        self.epoch = len(self.dataset)
        self.stages = settings.stages
        self.lengths = [self._images(stage.length) for stage in self.stages]
        self.total = sum(self.lengths)
        for number in range(len(self.stages)):
            self._check_stage(number)
        moved = {name for stage in self.stages for name in stage.players or self.method.players}
        for name in self.method.untrained:
            if name not in moved:
                raise UserError(
                    f"training.stages: no stage moves {name!r}, which has learnt nothing yet; add one with "
                    f"'players: [{name}]', or name what has learnt it in the method's settings"
                )

        self.images = 0
        self.stage_number = -1
        self.optimisers: dict[str, PlayerOptimiser] = {}
        self.means = Means()
        self.best: float | None = None
        self.validations_since_best = 0
        self.skipped = torch.zeros((), device=self.device)
        self.streak = torch.zeros((), device=self.device)
        self.longest_streak = torch.zeros((), device=self.device)
        self.rows_size = 0
        # Running statistics of the players, and what a method keeps itself (BEGAN's k). What no checkpoint holds, such
        # as the weights of LPIPS, never changes.
        kept = {id(value) for value in self.method.state_dict(keep_vars=True).values()}
        self._state_buffers = [buffer for buffer in self.method.buffers() if id(buffer) in kept]
        self._kept_buffers = [b.clone() for b in self._state_buffers]
        self._stop_signal: int | None = None
        self._shown_problems: set[str] = set()
        self._previews: list[dict[str, Any]] | None = None

    # ---- the loop ------------------------------------------------------------------------------------------------

    def train(self, run: Run) -> Outcome:
        """Train in a run folder, from its newest whole checkpoint if it has one, to the end, a signal or an early stop.

        The state is saved in each case.
        """
        self.run = run
        checkpoint = self.run.load_checkpoint(self.watcher.message)
        if checkpoint:
            self._restore(checkpoint)
            self.watcher.message(f"resuming {self.run.path} at {self.images:,} of {self.total:,} images")
        else:
            self.method.begin()
            self.ema = self._average()
            self._enter_stage(0)
        self.log = RunLog(run.path, step=self.step_number, rows_size=self.rows_size) if self.processes.leads else None
        reason: Literal["finished", "interrupted", "early stop"] = "finished"
        try:
            with self._signals(), self._training_batches() as batches:
                try:
                    self._loop(batches)
                except Interrupted as interruption:
                    reason = "early stop" if interruption.args else "interrupted"
        finally:
            if self.log:
                self.log.close()
        return Outcome(reason, self.step_number, self.images)

    def _loop(self, batches: Iterator[Mapping[str, Any]]) -> None:
        settings = self.config
        log_every, preview_every = self._images(settings.logging.every), self._images(settings.logging.previews)
        validate_every, save_every = self._images(settings.validation.every), self._images(settings.checkpoints.every)
        self._waited, self._since, self._images_then = 0.0, time.perf_counter(), self.images
        patience = settings.validation.patience
        while self.images < self.total:
            if patience is not None and self.validations_since_best >= patience:
                raise Interrupted("early stop")
            begun = time.perf_counter()
            micro_batches = [next(batches) for _ in range(settings.training.accumulation)]
            self._waited += time.perf_counter() - begun
            self._enter_stage(self._stage_at(self.images))
            self.step([self._to_device(self._told(batch)) for batch in micro_batches])

            finished = self.images >= self.total
            ends_stage = finished or self._stage_at(self.images) != self.stage_number
            if self._due(log_every) or ends_stage:
                self._write_row()
            if self._due(self.epoch) or ends_stage:
                self._write_summary()
            if self._due(preview_every) or finished:
                self._write_previews()
            if self._due(validate_every) or ends_stage:
                self._validate()
            stop = distributed.any_of(self._stop_signal is not None)
            if stop and not finished:
                self.watcher.message("stopping: saving a checkpoint first (once more to stop at once)")
            stop_early = patience is not None and self.validations_since_best >= patience
            if ends_stage and not finished:
                self._export_stage(self.stages[self.stage_number])
            if self._due(save_every) or ends_stage or stop or stop_early:
                self._save()
            if stop and not finished:
                raise Interrupted

    def step(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """One step on the batches whose gradients accumulate: every turn of the method, then the average."""
        self._set_rates_and_weights()
        step_in_stage = (self.images - self._stage_begin()) // self.batch
        allowed = self.stages[self.stage_number].players
        self.method.advance((self.images - self._stage_begin()) / self.lengths[self.stage_number])
        turns = [t for t in self.method.turns(step_in_stage) if allowed is None or t.player in allowed]
        moving = {turn.player for turn in turns}
        if self._state_buffers:
            torch._foreach_copy_(self._kept_buffers, self._state_buffers)

        once = len(batches) == 1
        values: dict[str, Tensor] = {}
        all_finite = torch.ones((), dtype=torch.bool, device=self.device)
        kept: list[Mapping[str, Tensor]] = []
        if once:
            self._seed(0)
            with self._autocast():
                kept.append(self.method.shared(batches[0], moving))
        for turn in turns:
            optimiser = self.optimisers[turn.player]
            moves = False
            # With accumulation what a player learns through is made anew in its turn: all graphs at once would not fit.
            anew = not once and (not kept or turn.player in self.method.differentiates)
            values_alone: list[Mapping[str, Tensor]] = []
            with self._only(turn.player):
                if not once and self.method.surveys(turn):
                    self._survey(turn, batches)
                for number, batch in enumerate(batches):
                    shared = None if anew else kept[number]
                    if shared is None:
                        self._seed(number)
                        with self._autocast():
                            shared = self.method.shared(batch, {turn.player})
                        values_alone.append({name: tensor.detach() for name, tensor in shared.items()})
                    loss = self._loss(turn, batch, shared, values, share=1 / len(batches))
                    if loss is not None:
                        optimiser.backward(loss)
                        moves = True
            kept = kept or values_alone
            if not moves:  # every term has weight 0 in this stage
                continue
            norm, finite = optimiser.step()
            self.method.finite = finite
            for parameter, rows in self.method.moved(turn):
                optimiser.forget(parameter, rows)
                if self.ema:
                    self.ema.renew(parameter, rows)
            values[f"gradient norm/{turn.player}"] = norm
            all_finite = all_finite & finite
        values.update(self.method.take_reports())

        self._undo_where(all_finite)
        self.images += self.batch
        self.means.add(values)
        if self.ema:
            self.ema.update(self.batch, self.images, batch=self.batch, epoch=self.epoch, finite=all_finite)

    def _loss(
        self,
        turn: Turn,
        batch: Mapping[str, Tensor],
        shared: Mapping[str, Tensor],
        values: dict[str, Tensor],
        *,
        share: float,
    ) -> Tensor | None:
        """The weighted sum of a turn's terms, times the batch's share of the step; each term is logged unweighted.

        None where the turn has no term.
        """
        with self._autocast():
            terms = self.method.losses(turn, batch, shared)
        if not terms:
            return None
        total = torch.zeros((), device=self.device)
        for name, term in terms.items():
            logged = f"{turn.player}/{name}"
            values[logged] = values.get(logged, 0.0) + term.detach() * share
            total = total + self.method.weights[name] * share * term
        return total

    def _survey(self, turn: Turn, batches: Sequence[Mapping[str, Tensor]]) -> None:
        for number, batch in enumerate(batches):
            self._seed(number)
            with self._autocast():
                self.method.survey(turn, batch, self.method.shared(batch, {turn.player}))

    def _undo_where(self, finite: Tensor) -> None:
        """A player's step that is no number leaves no trace: its weights were not touched, statistics are put back."""
        if self.device.type == "cpu":
            if not finite and self._state_buffers:
                torch._foreach_copy_(self._state_buffers, self._kept_buffers)
        else:
            for buffer, kept in zip(self._state_buffers, self._kept_buffers, strict=True):
                buffer.copy_(torch.where(finite, buffer, kept))
        if self.processes.world > 1:
            # Statistics are vectors and numbers. What has more dimensions is a choice (virtual batch norm's reference).
            distributed.average([b for b in self._state_buffers if b.is_floating_point() and b.ndim <= 1])
        failed = (~finite).float()
        self.skipped += failed
        self.streak = (self.streak + 1) * failed
        torch.maximum(self.longest_streak, self.streak, out=self.longest_streak)

    # ---- what surrounds a step -----------------------------------------------------------------------------------

    @property
    def step_number(self) -> int:
        return self.images // self.batch

    def _average(self) -> EMA | None:
        settings = self.config.training.ema
        return EMA(self.method.averaged(), settings) if settings else None

    def _images(self, span: Span) -> int:
        return span.images(batch=self.batch, epoch=self.epoch)

    def _due(self, every: int) -> bool:
        """Whether the last step crossed a multiple of `every` images."""
        return self.images // every != (self.images - self.batch) // every

    def _stage_at(self, images: int) -> int:
        ends = list(itertools.accumulate(self.lengths))
        return next((number for number, end in enumerate(ends) if images < end), len(ends) - 1)

    def _stage_begin(self) -> int:
        return sum(self.lengths[: self.stage_number])

    def _check_stage(self, number: int) -> None:
        stage, players = self.stages[number], list(self.method.players)
        key = f"training.stages.{number}"
        for given, valid, what in (
            (stage.players or [], players, "players"),
            (stage.optimisers, players, "optimisers"),
            (stage.weights, list(self.method_weights), "weights"),
            (stage.weight_schedules, list(self.method_weights), "weight_schedules"),
        ):
            for name in given:
                if name not in valid and not (valid != players and self.method.terms(name)):
                    raise UserError(f"{key}.{what}: {name!r} is unknown to this method; it has {', '.join(valid)}")
        for name in stage.players or ():
            if name in self.method.taken:
                raise UserError(
                    f"{key}.players: {name!r} comes from another run (method.trained) and stays as it is; leave it out"
                )
        if stage.optimiser is not None:
            stage.optimiser.try_out(f"{key}.optimiser")
        for name, optimiser in stage.optimisers.items():
            optimiser.try_out(f"{key}.optimisers.{name}")
        for player in stage.players or players:
            if stage.optimiser is None and player not in stage.optimisers:
                raise UserError(
                    f"{key}: no optimiser for {player!r}; add 'optimiser' (for all) or 'optimisers.{player}'"
                )

    def _enter_stage(self, number: int) -> None:
        """Give the stage its optimisers and loss weights. Networks and average go on as they are."""
        if number == self.stage_number:
            return
        stage = self.stages[number]
        self.stage_number = number
        self.optimisers = {
            name: PlayerOptimiser(
                self.method.players[name],
                stage.optimisers.get(name) or stage.optimiser,  # type: ignore[arg-type]  # _check_stage saw to it
                stage.schedule,
                clip=stage.clip,
                dtype=self.dtype,
            )
            for name in stage.players or self.method.players
        }

    def _set_rates_and_weights(self) -> None:
        total, stage = self.lengths[self.stage_number], self.stages[self.stage_number]

        def factor(schedule: ScheduleSettings) -> float:
            done = self.images - self._stage_begin()
            return schedule.factor(done, total=total, batch=self.batch, epoch=self.epoch)

        for optimiser in self.optimisers.values():
            optimiser.set_rate(factor(optimiser.schedule))
        weights = dict(self.method_weights)
        for name, weight in stage.weights.items():
            weights |= dict.fromkeys(self.method.terms(name), weight)
        for name, schedule in stage.weight_schedules.items():
            weights |= {term: weights[term] * factor(schedule) for term in self.method.terms(name)}
        self.method.weights = weights

    @contextlib.contextmanager
    def _only(self, player: str) -> Iterator[None]:
        """Within a turn the other players' weights get no gradient (their outputs still pass gradients on)."""
        others = [p for name, module in self.method.players.items() if name != player for p in module.parameters()]
        others = [p for p in others if p.requires_grad]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _seed(self, number: int) -> None:
        """Dropout and noise follow from (seed, images seen, process, pass): resuming needs no generator's state."""
        state = np.random.SeedSequence([self.config.seed, self.images, self.processes.rank, number])
        seed = int(state.generate_state(1, np.uint64)[0] >> np.uint64(1))
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _told(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch as it is, once the watcher has heard of the files it lacks."""
        for problem in batch.get("problems", []):
            if problem not in self._shown_problems:
                self._shown_problems.add(problem)
                self.watcher.message(f"skipped: {problem}")
        return batch

    def _to_device(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        tensors = to_device(batch, self.specs, self.device)
        self.method.check(tensors)
        # Points and class numbers have no memory format.
        return {n: t.contiguous(memory_format=self.memory_format) if t.ndim == 4 else t for n, t in tensors.items()}

    @contextlib.contextmanager
    def _training_batches(self) -> Iterator[Iterator[Mapping[str, Any]]]:
        batches = training_batches(
            self.dataset,
            batch_size=self.config.training.batch_size,
            seed=self.config.seed,
            start=self.images,
            workers=self.config.data.workers,
            device=self.device,
            rank=self.processes.rank,
            world=self.processes.world,
        )
        with contextlib.closing(batches):
            yield batches

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM ends the run after the present step, with a checkpoint; a second one at once."""

        def ask_to_stop(number: int, frame: FrameType | None) -> None:
            if self._stop_signal is not None:
                raise KeyboardInterrupt
            self._stop_signal = number  # nothing is printed here: the signal may have come in the middle of a print

        if threading.current_thread() is not threading.main_thread():  # Python has signals in the main thread alone
            yield
            return
        before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ---- numbers, pictures, states -------------------------------------------------------------------------------

    def _write_row(self) -> None:
        values = self.means.take()
        values |= {f"learning rate/{name}": optimiser.rate for name, optimiser in self.optimisers.items()}
        skipped, longest = int(self.skipped), int(self.longest_streak)
        if skipped:
            values["skipped steps"] = float(skipped)
        self.longest_streak.zero_()
        self._warn(values)
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        speed = (self.images - self._images_then) / seconds
        stage = self.stages[self.stage_number].name
        if self.log:
            head = {"epoch": round(self.images / self.epoch, 4), "stage": stage}
            self.log.row(self.step_number, self.images, values, head)
            timings = {
                "speed/images per second": speed,
                "speed/share of time waiting for data": self._waited / seconds,
                "speed/peak memory GiB": memory_in_use(self.device),
            }
            self.log.scalars(self.step_number, timings)
            losses = {name: value for name, value in values.items() if name.split("/")[0] in self.method.players}
            self.watcher.progress(Progress(stage, self.images, self.total, speed, losses))
        self._waited, self._since, self._images_then = 0.0, now, self.images
        if longest >= self.config.training.nonfinite_limit:
            newest = next(iter(self.run.checkpoint_folders()), None)
            raise UserError(
                f"{longest} steps in a row had a loss or gradient that is no number; the last good checkpoint is "
                f"{newest or 'none'}: lower the learning rate, set a stage's clip, or use training.precision=fp32"
            )

    def _warn(self, values: Mapping[str, float]) -> None:
        for warning in self.method.warnings(values):
            if self.log:
                self.log.text("warnings", warning, self.step_number)
                self.watcher.message(f"warning: {warning}")

    def _write_summary(self) -> None:
        """What the method tells of an epoch, or of what a stage has of one."""
        numbers, histograms = self.method.summary()
        if self.log and numbers:
            self.log.row(self.step_number, self.images, numbers, {"epoch": round(self.images / self.epoch, 4)})
        if self.log:
            self.log.histograms(self.step_number, histograms)
        if numbers:
            self._warn(numbers)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[nn.ModuleDict]:
        """The exported networks with their averaged weights, in eval mode."""
        networks = self.method.exported()
        self.method.eval()
        try:
            with self.ema.in_place() if self.ema else contextlib.nullcontext():
                yield networks
        finally:
            self.method.train()

    def _write_previews(self) -> None:
        if not self.log:
            return
        if self._previews is None:
            dataset = self.validation_set if self.validation_set is not None else self.dataset
            count = self.config.logging.preview_images
            found = evaluation_batches(dataset, batch_size=count, workers=0, device=self.device, images=count)
            self._previews = [dict(batch) for batch in found]
        with self._averaged(), torch.no_grad(), self._autocast():
            pictures = [self.method.previews(to_device(batch, self.specs, self.device)) for batch in self._previews]
        shapes = {tuple(tensor.shape) for picture in pictures for tensor in picture.values()}
        if len(shapes) > 1:  # images of their own sizes: the grid shows the first alone
            pictures = pictures[:1]
        if pictures:
            self.log.grid(self.step_number, {k: torch.cat([p[k].float() for p in pictures]) for k in pictures[0]})

    def _validate(self) -> None:
        """Measure, note the best, export it. All processes measure the same, so that all stop early together."""
        if self.validation_set is None or self.validator is None or self.validator.best is None:
            return
        settings = self.config.validation
        found = evaluation_batches(
            self.validation_set, batch_size=settings.batch_size, workers=0, device=self.device, images=settings.images
        )
        batches = (self._told(batch) for batch in found)
        with self._averaged() as networks:
            values = self.validator(self.method, batches, self.specs, self.dtype)
            # The last bits may differ from GPU to GPU, and with them who stops early: the leader's numbers count.
            values = json.loads(distributed.from_leader(json.dumps(values)) or "")
            if not values:
                return
            chosen = values.pop("best", None)
            if chosen is None:  # what this stage trains is measured, but is no reason to choose weights
                pass
            elif better(self.validator.best, chosen, self.best):
                self.best, self.validations_since_best = chosen, 0
                if self.processes.leads:
                    self.run.export("best", self.config, networks, self.step_number, self.images)
            else:
                self.validations_since_best += 1
        if self.log:
            named = {f"validation/{name}": value for name, value in values.items()}
            self.log.row(self.step_number, self.images, named, {"epoch": round(self.images / self.epoch, 4)})
            text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            best = " (best so far)" if chosen is not None and self.validations_since_best == 0 else ""
            self.watcher.message(f"validation at {self.images:,} images: {text}{best}")

    def _export_stage(self, stage: StageSettings) -> None:
        """What the stage made, kept under its name: the next one may lose what it was good at."""
        moved = {id(p) for name in stage.players or self.method.players for p in self.method.players[name].parameters()}
        with self._averaged() as networks:
            if self.processes.leads and any(id(parameter) in moved for parameter in networks.parameters()):
                self.run.export(f"stage-{stage.name}", self.config, networks, self.step_number, self.images)

    def _save(self) -> None:
        """A checkpoint and last.safetensors."""
        self.means.average()  # the file holds those of all processes
        if not self.log:
            distributed.barrier()
            return
        with self._averaged() as networks:
            self.run.export("last", self.config, networks, self.step_number, self.images)
        method_state = self.method.state_dict()
        model = {f"method.{name}": value for name, value in method_state.items() if isinstance(value, Tensor)}
        if self.ema:
            model |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        self.log.flush()
        state = {
            "images": self.images,
            "stage": self.stage_number,
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "means": self.means.state_dict(),
            "best": self.best,
            "validations_since_best": self.validations_since_best,
            "skipped": self.skipped.cpu(),
            "streak": self.streak.cpu(),
            "longest_streak": self.longest_streak.cpu(),
            "rows_size": self.log.rows_size,
            "extra": {name: value for name, value in method_state.items() if not isinstance(value, Tensor)},
        }
        self.run.save_checkpoint(self.step_number, model, state, self.config.checkpoints.keep)
        distributed.barrier()

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            self._take_over(checkpoint)
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(
                f"{checkpoint.path}: does not belong to the config ({error}); undo the changes to "
                f"{self.run.config_file}, or start anew with 'translate train {self.run.config_file}'"
            ) from error

    def _take_over(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.trainer
        model = {k.removeprefix("method."): v for k, v in checkpoint.model.items() if k.startswith("method.")}
        fill(self.method, {**model, **state["extra"]}, str(checkpoint.path))
        if self.ema:
            self.ema.load_state_dict(
                {k.removeprefix("ema."): v for k, v in checkpoint.model.items() if k.startswith("ema.")}
            )
        self.images = int(state["images"])
        self._enter_stage(int(state["stage"]))
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.means.load_state_dict(state["means"], self.device)
        self.best = state["best"]
        self.validations_since_best = int(state["validations_since_best"])
        self.skipped, self.streak, self.longest_streak = (
            state[name].to(self.device) for name in ("skipped", "streak", "longest_streak")
        )
        self.rows_size = int(state["rows_size"])


def plan(config: Config) -> list[str]:
    """What `--dry-run` says: the sizes of all that a run would do, after building every part of it once."""
    from translate.networks import count_parameters

    trainer = Trainer(config, Silent())
    lines = [f"data: {trainer.epoch:,} training samples"]
    measured = trainer.validation_set if trainer.validator and trainer.validator.best else None
    lines[0] += f", {len(measured):,} to validate on" if measured is not None else ", no validation"
    lines += [f"{name}: {count_parameters(player):,} parameters" for name, player in trainer.method.players.items()]
    lines.append(
        f"device {trainer.device}, {str(trainer.dtype).removeprefix('torch.')}, {trainer.batch} images in a step"
    )
    for stage, length in zip(trainer.stages, trainer.lengths, strict=True):
        steps, epochs = length // trainer.batch, length / trainer.epoch
        lines.append(f"stage {stage.name}: {length:,} images, {steps:,} steps, {epochs:.1f} epochs")
    return lines


class Silent:
    """A watcher that says nothing."""

    def progress(self, progress: Progress) -> None: ...
    def message(self, text: str) -> None: ...
