"""Arms: V, or a control that takes its place. Each modality has its own table in its `arms.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from vpretrain.types import Json


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: as in recipes and `--arms`.
        summary: a description, for tables of documentation and help.
        construction: its class in the modality's `task/construction.py`.
        designer: whether it trains a task designer.
        steered: whether its task follows the feedback.
        random_feedback: whether noise replaces the feedback's gradients.
        value: settings that replace those of the recipe's `value` section.
        follows: another arm, and a function that returns settings that match this arm to it, from its result; this arm runs
            after it.
    """

    name: str
    summary: str
    construction: str
    designer: bool = False
    steered: bool = False
    random_feedback: bool = False
    value: Mapping[str, object] = field(default_factory=dict)
    follows: tuple[str, Callable[[Json], list[str]]] | None = None

    @property
    def trains_alone(self) -> bool:
        """Whether it has a training of its own in place of Algorithm 1."""
        return False


AnyArm = TypeVar("AnyArm", bound=Arm)


def by_name(*arms: AnyArm) -> dict[str, AnyArm]:
    """Return a table of arms."""
    return {arm.name: arm for arm in arms}
