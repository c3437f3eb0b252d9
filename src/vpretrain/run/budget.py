"""The budget: how long a run may train. Only training is charged; saving, logging and evaluation stop the clock."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from vpretrain import distributed
from vpretrain.config import BudgetConfig
from vpretrain.types import Json


class Budget:
    """Yield step numbers until minutes or steps are spent, or `stop` is called.

    Under a budget in minutes the last step is the one that ends nearest to the limit. With several processes, rank 0's clock
    counts for all, and a stop requested of one process stops all.

    Args:
        config: minutes, steps, or both.
        until: the fraction of the budget at which to pause.
        clock: returns seconds; replaced in tests.
    """

    def __init__(
        self, config: BudgetConfig, clock: Callable[[], float] = time.perf_counter, *, until: float = 1.0
    ) -> None:
        self._config, self._clock, self.until = config, clock, until
        self.step, self._spent = 0, 0.0
        self._running_since: float | None = None
        self._in_step = self._stopped = False

    def __iter__(self) -> Iterator[int]:
        while not self._done():
            self._running_since, self._in_step = self._clock(), True
            yield self.step
            self.step += 1
            self._in_step = False
            self._pause()

    @property
    def seconds(self) -> float:
        """Training seconds spent, including the current step."""
        return self._spent + (0.0 if self._running_since is None else self._clock() - self._running_since)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for work that is not training."""
        self._pause()
        try:
            yield
        finally:
            self._running_since = self._clock()

    @property
    def spent(self) -> bool:
        """Whether the whole budget is spent."""
        return self._config.reached(self.step, self._spent)

    def stop(self) -> None:
        """End training after the current step."""
        self._stopped = True

    def state_dict(self) -> Json:
        """Return the state at the end of the current step."""
        return {"step": self.step + self._in_step, "seconds": self.seconds}

    def load_state_dict(self, state: Json) -> None:
        """Restore the state of a checkpoint."""
        self.step, self._spent = state["step"], state["seconds"]

    def _pause(self) -> None:
        self._spent, self._running_since = distributed.broadcast(self.seconds), None

    def _done(self) -> bool:
        stopped = distributed.all_reduce_mean(float(self._stopped)) > 0  # in any process
        return stopped or self._config.reached(self.step, self._spent, self.until)
