"""The parts that a modality assembles from a recipe for a session."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from vpretrain import distributed
from vpretrain.method.algorithm import StepRecord
from vpretrain.method.meta import MetaUpdate
from vpretrain.method.protocols import Construction, Feedback, Learner, Stream
from vpretrain.run.left_out import LeftOut
from vpretrain.types import Json

if TYPE_CHECKING:
    from vpretrain.run.optimizer import AdamW


@dataclass
class Parts:
    """Everything that one run needs.

    Attributes:
        learner: theta.
        stream: D_u.
        feedback: D_fb.
        held_back: identities of the feedback and evaluation problems, which the stream's own sources must not contain.
        construction: c_phi or a control.
        base: makes the base task of the modality.
        meta: line 2 of Algorithm 1; None for controls without feedback.
        designer: the module that holds phi; None for controls.
        warning: returns a warning for the user about a finished run's metrics, or None.
        evaluate: evaluates the present learner; returns JSON-ready metrics.
        train: replaces Algorithm 1 in arms that train directly; called with the optimizer, the steps and a function to call
            after each; or None.
        warm_up: called once before the first step and charged to no arm, such as fitting a new head or reading files; or None.
        modules: further modules whose tensors a checkpoint must hold: an EMA teacher, the feedback's heads.
        optimizers: their optimizers.
        look: returns the present designer's output for a few examples, JSON-ready, for a report; leaves no trace, and all
            processes call it together; or None.
        illustrate: draws the construction's output into a run's directory, and returns the path; or None.
        export: writes the learner into a directory in its community's format.
        left_out: counts the examples that were met and not used, given a cursor of the stream.
        skipped: lists what the stream could not read, given a merged cursor.
    """

    learner: Learner
    stream: Stream
    feedback: Feedback
    held_back: frozenset[str]
    construction: Construction
    base: Construction
    meta: MetaUpdate | None
    designer: nn.Module | None
    evaluate: Callable[[], Json]
    warning: Callable[[Json], str | None]
    export: Callable[[Path], None]
    train: Callable[[AdamW, Iterable[int], Callable[[StepRecord], object]], None] | None = None
    warm_up: Callable[[], None] | None = None
    look: Callable[[], Json] | None = None
    illustrate: Callable[[Path], Path] | None = None
    left_out: Callable[[Json], LeftOut] = field(default=lambda cursor: {})
    skipped: Callable[[Json], list[Json]] = field(default=lambda cursor: [])
    modules: dict[str, nn.Module] = field(default_factory=dict)
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)

    def stream_cursor(self) -> Json:
        """Return the cursor of the whole stream, over all processes, which call this together."""
        return self.stream.merge(distributed.all_gather(self.stream.state_dict()))
