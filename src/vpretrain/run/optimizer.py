"""The learner's optimizer: AdamW with clipping and a learning rate schedule over the total steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from statistics import median

import torch
from torch import Tensor, nn

from vpretrain.config import OptimizerConfig
from vpretrain.errors import NonFinite
from vpretrain.run.checkpoint import placed
from vpretrain.types import Json

_RECENT, _FEWEST = 64, 8  # most and fewest losses that a loss spike is measured against
FINAL_SHARE = 0.1  # linear and cosine schedules end at this fraction of the peak learning rate


class AdamW:
    """Update theta from the gradients in `.grad`, which come from L_pre alone.

    Args:
        parameters: the learner's trainable parameters, named.
        config: learning rate, moments, clipping, schedule.
        total_steps: of the schedule; a run that continues beyond them keeps the last learning rate.
    """

    def __init__(
        self, parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, total_steps: int | None = None
    ) -> None:
        self.parameters = dict(parameters)
        self.config = config
        self.total_steps = total_steps
        self.steps = 0
        self._losses: deque[float] = deque(maxlen=_RECENT)
        self.torch = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    @property
    def progress(self) -> float:
        """Steps done, as a fraction of the total steps; 1 beyond them."""
        assert self.total_steps is not None, "total_steps is set before the run starts"
        return min(1.0, self.steps / self.total_steps)

    def learning_rate(self) -> float:
        """Return the learning rate of the coming step."""
        assert self.total_steps is not None, "total_steps is set before the run starts"
        warmup = math.ceil(self.config.warmup_fraction * self.total_steps)
        if self.steps < warmup:
            return self.config.lr * (self.steps + 1) / warmup
        progress = min(1.0, (self.steps - warmup) / max(1, self.total_steps - warmup))
        match self.config.schedule:
            case "constant":
                factor = 1.0
            case "linear":
                factor = 1 - (1 - FINAL_SHARE) * progress
            case "cosine":
                factor = FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))
        return self.config.lr * factor

    def step(self, loss: float) -> dict[str, float]:
        """Clip, update and clear the gradients; or only clear them, at a loss spike that the recipe's settings skip.

        Raises NonFinite if the step's loss or gradient is NaN or infinite; theta is unchanged.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        grad_norm = float(norm)
        for what, number in (("loss", loss), ("learner's gradient", grad_norm)):
            if not math.isfinite(number):
                raise NonFinite(f"the {what} is {number}", "lower optimizer.lr, or take another seed")
        torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.config.clip_norm, norm)
        lr, skipped = self.learning_rate(), self._is_spike(loss)
        if not skipped:
            for group in self.torch.param_groups:
                group["lr"] = lr
            self.torch.step()
        self.torch.zero_grad(set_to_none=True)
        self.steps += 1
        return {"lr": lr, "grad_norm": grad_norm, **({"skipped": 1.0} if skipped else {})}

    def metric(self, names: Iterable[str]) -> Preconditioner | None:
        """Return the preconditioner of those named parameters that a loss has reached; None before the first step."""
        return Preconditioner(self.torch, {name: self.parameters[name] for name in names}) or None

    def state_dict(self) -> Json:
        """Return counters and recent losses; the moments are in `optimizer_tensors`."""
        return {"steps": self.steps, "total_steps": self.total_steps, "losses": list(self._losses)}

    def load_state_dict(self, state: Json) -> None:
        """Restore the counters and losses."""
        self.steps, self.total_steps = state["steps"], state["total_steps"]
        self._losses = deque(state["losses"], maxlen=_RECENT)

    def _is_spike(self, loss: float) -> bool:
        """Whether the loss exceeds the median of recent ones by the factor above which steps are skipped."""
        if self.config.skip_above is None:
            return False
        spike = len(self._losses) >= _FEWEST and loss > self.config.skip_above * median(self._losses)
        self._losses.append(loss)  # also after a spike, so that a lasting new level becomes the median
        return spike


class Preconditioner(Mapping[str, Tensor]):
    """AdamW's P = 1 / (sqrt(v_hat) + eps) over some parameters (App B.4), computed on each access.

    It follows the optimizer's state; it is empty before the first step, and if the optimizer is no Adam.
    P is 0 where v_hat is: no step has moved such an entry (an input embedding that the stream never used), and at 1 / eps it
    alone would make up the length of g_down.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._known = {
            name: (state, groups[id(p)])
            for name, p in parameters.items()
            if (state := optimizer.state.get(p)) and _is_adams(state, groups[id(p)], p)
        }

    def __getitem__(self, name: str) -> Tensor:
        state, group = self._known[name]
        correction = 1 - group["betas"][1] ** float(state["step"])
        # With amsgrad a step divides by the root of the largest second moment so far.
        second = state.get("max_exp_avg_sq", state["exp_avg_sq"])
        metric: Tensor = (second / correction).sqrt_().add_(group["eps"]).reciprocal_()
        return metric.mul_(second > 0)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _is_adams(state: Mapping[str, Tensor], group: Mapping[str, object], parameter: nn.Parameter) -> bool:
    """Whether it is an Adam's state of a parameter.

    Adafactor, schedule-free AdamW and GaLore have second moments as well, but no decay rates, no count of steps, or another
    shape.
    """
    known = {"exp_avg_sq", "step"} <= state.keys() and {"betas", "eps"} <= group.keys()
    return known and state["exp_avg_sq"].shape == parameter.shape


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as flat named tensors, for safetensors."""
    return {
        f"{index}.{key}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state from `optimizer_tensors`; hyperparameters come from the recipe."""
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        like = parameters[int(index)]
        state.setdefault(int(index), {})[key] = placed(value, like) if value.shape == like.shape else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
