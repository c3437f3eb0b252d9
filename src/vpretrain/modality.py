"""A modality as the rest of the package sees it: one typed object for each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpretrain.config import Recipe

if TYPE_CHECKING:
    from vpretrain.inspection.doctor import EngineCase
    from vpretrain.method.protocols import Learner
    from vpretrain.run.parts import Parts
    from vpretrain.scaling.estimate import Workload


@dataclass(frozen=True)
class Metrics:
    """How tables, pictures and verdicts show what an evaluation measured.

    Attributes:
        headline: what all of it is measured on.
        cases: what is evaluated one by one: a key of results.
        paired: of every case, what arms are compared by, with its unit.
        measured_on: what each of them is measured on.
        better: "lower" or "higher", for each of them.
        objectives: what is traded by settings: -1 where less is better, else 1; with its title.
        pareto_points: settings of `vpretrain pareto`, where none are given.
        columns: of tables: how each is shown, of an arm's results.
        curves: numbers of a run's log that are drawn, with their titles.
        intervals: of figures over several seeds, from the cases of each.
    """

    headline: str
    cases: str
    paired: Mapping[str, str]
    measured_on: Mapping[str, str]
    better: Mapping[str, str]
    objectives: Mapping[str, tuple[int, str]]
    pareto_points: Sequence[Sequence[str]]
    columns: Mapping[str, Callable[[Mapping[str, Any]], str]]
    curves: Mapping[str, str]
    intervals: Callable[[Sequence[Sequence[dict[str, Any]]]], dict[str, float]]


class Modality:
    """A modality's side of every command: a folder with the same rooms as the others, which are entered when they are needed.

    Args:
        name: of the folder.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def recipe(self) -> type[Recipe]:
        """The model of its recipes."""
        return self._module("config").Recipe

    @property
    def metrics(self) -> Metrics:
        """How its evaluation is shown."""
        return self._module("metrics").METRICS

    @property
    def designer_parts(self) -> Mapping[str, str]:
        """Name -> prefix of designer parameters whose error `doctor` reports apart."""
        return self._module("inspection.doctor").PARTS

    @property
    def model_types(self) -> Sequence[str]:
        """transformers' types of its learners, as far as they are told apart by their type."""
        return self._module("model.load").MODEL_TYPES

    def assemble(self, recipe: Recipe, model: Any = None) -> Parts:
        """The parts of a run; `model` takes the place of the learner that it names. Raises UserError for what cannot work."""
        return self._module("assemble").assemble(recipe, model)

    def load_learner(self, recipe: Recipe) -> tuple[Learner, Callable[[Path], None]]:
        """The learner, and what writes it into a directory in its community's format. Raises UserError."""
        return self._module("assemble").load_learner(recipe)

    def subset(self, recipe: Recipe, learner: Learner) -> tuple[str, ...]:
        """Names of the parameters in S. Raises UserError."""
        return self._module("assemble").subset_of(recipe, learner)

    def measure(self, recipe: Recipe, model: str) -> dict[str, Any]:
        """The figures of a model by name or directory on a recipe's evaluation. Raises UserError."""
        return self._module("assemble").measure(recipe, model)

    def check(self, recipe: Recipe) -> Iterator[str]:
        """A line for everything that is in order; raises UserError for the first thing that is not."""
        return self._module("inspection.check").check(recipe)

    def inspect(self, recipe: Recipe, *, examples: int, positions: int) -> None:
        """Print what stream, feedback and construction make of a few examples."""
        self._module("inspection.inspect").inspect(recipe, examples=examples, positions=positions)

    def engine_case(self, learner: str) -> EngineCase:
        """A learner by its name with random data, for `doctor`. Raises UserError."""
        return self._module("inspection.doctor").engine_case(learner)

    def workload(self, recipe: Recipe) -> Workload:
        """A recipe as counts, for `estimate`. Raises UserError for what is not known."""
        return self._module("workload").workload(recipe)

    def fingerprints(self, recipe: Recipe) -> list[dict[str, Any]]:
        """What identifies a recipe's data. Raises OSError or UserError where it is gone."""
        return self._module("data.fingerprint").fingerprints(recipe)

    def resolve(self, learner: str) -> str:
        """A learner's name as transformers takes it. Raises UserError."""
        return self._module("model.load").resolve(learner)

    def _module(self, room: str) -> Any:
        return importlib.import_module(f"vpretrain.{self.name}.{room}")


MODALITIES = {name: Modality(name) for name in ("language", "vision")}


def modality_of(recipe: Recipe) -> Modality:
    """The modality that runs a recipe."""
    return MODALITIES[recipe.modality]
