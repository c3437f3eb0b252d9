"""The teacher's target for the student."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TeacherTarget:
    """The teacher's raw outputs: DINO's on the global views [V, B, P], not yet centred; I-JEPA's of target patches.

    Attributes:
        outputs: the outputs.
    """

    outputs: Tensor

    def detach(self) -> TeacherTarget:
        """Return the target detached: a teacher's outputs never carry a gradient, but the firewall requires it."""
        return TeacherTarget(self.outputs.detach())
