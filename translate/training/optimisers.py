"""One optimiser a player: any of torch.optim by name, with gradient scaling, clipping and the check for finiteness."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor, nn

from translate.distributed import average
from translate.errors import UserError
from translate.settings import Settings
from translate.training.schedules import ScheduleSettings


def _optimiser_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """By name. LBFGS is left out: it evaluates the loss several times a step, which an adversarial game forbids."""
    found = {name: value for name, value in vars(torch.optim).items() if inspect.isclass(value)}
    return {
        name: value
        for name, value in found.items()
        if issubclass(value, torch.optim.Optimizer) and name not in ("Optimizer", "LBFGS", "SparseAdam")
    }


_FUSED_ON_CUDA = ("Adam", "AdamW", "SGD")
"""Those whose fused kernel takes a sign from the device that a step is to be left out."""


class OptimiserSettings(Settings):
    """An optimiser of torch.optim by name; further keys are its own arguments (betas, weight_decay, momentum, ...)."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": True})

    kind: str = "Adam"
    lr: float = Field(gt=0)

    @model_validator(mode="after")
    def _torch_knows_it(self) -> OptimiserSettings:
        classes = _optimiser_classes()
        if self.kind not in classes:
            names = {name.lower(): name for name in classes}
            near = difflib.get_close_matches(self.kind.lower(), names, n=1, cutoff=0.5)
            hint = f"did you mean {names[near[0]]!r}?" if near else f"known: {', '.join(classes)}"
            raise ValueError(f"torch.optim has no {self.kind!r}; {hint}")
        accepted = set(inspect.signature(classes[self.kind]).parameters) - {"params", "lr", "fused", "foreach"}
        for key in self.model_extra or {}:
            if key not in accepted:
                near = difflib.get_close_matches(key, accepted, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(accepted))}"
                raise ValueError(f"{self.kind} has no argument {key!r}; {hint}")
        return self

    def try_out(self, key: str) -> None:
        """Take a step with one number, to see that torch accepts the arguments; UserError that names `key` otherwise.

        Not part of reading a config: torch's first optimiser loads its compiler, seconds that conversion need not wait.
        """
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.zeros(1)
        try:
            self.build([parameter]).step()
        except Exception as error:  # torch indexes and compares what it is given: any error may come of it
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{key}: {self.kind} refuses these arguments ({type(error).__name__}: {reason}); mend or leave them out"
            ) from error

    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser, fused where torch has a fused kernel for it on the parameters' device."""
        chosen = _optimiser_classes()[self.kind]
        arguments: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in (self.model_extra or {}).items()
        }
        fused_on = {"cpu": "fused" in inspect.signature(chosen).parameters, "cuda": self.kind in _FUSED_ON_CUDA}
        if fused_on.get(parameters[0].device.type, False):
            arguments["fused"] = True
        return chosen(parameters, lr=self.lr, **arguments)  # type: ignore[call-arg]  # every class but the base has lr


class PlayerOptimiser:
    """Turns a player's losses into a step that is skipped where a gradient is not finite.

    fp16 has a gradient scaler of its own. Nothing here waits for a CUDA device, save optimisers without a fused kernel.
    """

    def __init__(
        self,
        player: nn.Module,
        settings: OptimiserSettings,
        schedule: ScheduleSettings,
        *,
        clip: float | None,
        dtype: torch.dtype,
    ) -> None:
        self.parameters = [p for p in player.parameters() if p.requires_grad]
        self.base_rate = settings.lr
        self.schedule = schedule
        self.clip = clip
        self.optimiser = settings.build(self.parameters)
        self.device = self.parameters[0].device
        self.fused = bool(self.optimiser.defaults.get("fused"))
        self.scaler = torch.amp.GradScaler(self.device.type) if dtype == torch.float16 else None

    @property
    def rate(self) -> float:
        """The learning rate in use."""
        return float(self.optimiser.param_groups[0]["lr"])

    def set_rate(self, factor: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.base_rate * factor

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled where the precision wants it."""
        (self.scaler.scale(loss) if self.scaler else loss).backward()  # type: ignore[no-untyped-call]
        # A loss that is no number may still have finite gradients (a constant, a clamp). It then spoils one of them,
        # so that the one check in `step` sees it, in every process. Otherwise this adds zero.
        reached = next(p.grad for p in self.parameters if p.grad is not None)
        reached += (loss - loss).detach()

    def step(self) -> tuple[Tensor, Tensor]:
        """Average over processes, unscale, clip, step, clear. Returns (gradient norm, whether the step was taken).

        The norm is float32 and before clipping; both are scalars on the player's device.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        average(gradients)
        if self.scaler:
            self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = norm.isfinite()
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        if self.scaler:
            self.scaler.step(self.optimiser)
            self.scaler.update()
        elif self.fused and self.device.type == "cuda":
            # The fused kernels read this and leave weights and moments alone where it is 1: no wait for the host.
            self.optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimiser.step()
        elif finite:
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return norm, finite

    @torch.no_grad()
    def forget(self, parameter: nn.Parameter, rows: Tensor) -> None:
        """Clear what the optimiser remembers of some rows of a parameter (moments): (rows,) bool."""
        for value in self.optimiser.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.mul_((~rows).to(value.dtype).reshape(-1, *[1] * (value.ndim - 1)))

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state["optimiser"])
        if self.scaler and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
