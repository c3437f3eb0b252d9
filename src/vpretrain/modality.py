"""The interface of a modality to the rest of the package: one typed object per modality."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from vpretrain import pretrained
from vpretrain.config import Recipe
from vpretrain.console import working
from vpretrain.types import Json, Model

if TYPE_CHECKING:
    from rich.text import Text

    from vpretrain.inspection.doctor import EngineCase
    from vpretrain.method.protocols import Learner
    from vpretrain.run.parts import Parts
    from vpretrain.scaling.estimate import Workload

_LOADING = "loading the learner and the data"


@dataclass(frozen=True)
class Paired:
    """A metric of every case, by which arms are compared.

    Attributes:
        unit: of a difference.
        measured_on: the data that it is measured on, or the way.
        better: "lower" or "higher".
        beside: whether it only stands beside the others: at the end of the budget, as differences from the baseline.
        remainder_of: the key of the metric of whose difference this one is what remains; None: of none.
    """

    unit: str
    measured_on: str
    better: Literal["lower", "higher"]
    beside: bool = False
    remainder_of: str | None = None


@dataclass(frozen=True)
class Measure:
    """A metric of a result that may become better or worse.

    Attributes:
        of: returns it from an arm's results, or None if it was not measured.
        form: its format, as in tables.
        better: "lower" or "higher".
        unit: written after the number.
        paired: the key in `Metrics.paired` of the same metric by case, whose differences have intervals; None: there is none,
            and intervals are over seeds.
    """

    of: Callable[[Json], float | None]
    form: str
    better: Literal["lower", "higher"]
    unit: str = ""
    paired: str | None = None

    def cell(self, arm: Json) -> str:
        """Return it from an arm's results as a table shows it."""
        value = self.of(arm)
        return "-" if value is None else f"{value:{self.form}}{self.unit}"


@dataclass(frozen=True)
class Metrics:
    """The presentation of an evaluation's metrics in tables, plots and verdicts.

    Attributes:
        headline: what all of it is measured on, by a recipe.
        cases: the key of results under which the cases are.
        paired: the metrics of a case by which arms are compared.
        objectives: metrics that settings trade off: -1 where less is better, else 1; with the title.
        pareto_points: settings of `vpretrain pareto`, if none are given.
        columns: of tables, each with a function that formats it from an arm's results.
        measures: by title, everything that a report looks through for what became better and what became worse.
        curves: numbers of a run's log that are plotted, with their titles.
        intervals: returns intervals of metrics over several seeds, from the cases of each.
        also_plotted: metrics that are plotted along runs besides the objectives, in the same form.
    """

    headline: Callable[[Recipe], str]
    cases: str
    paired: Mapping[str, Paired]
    objectives: Mapping[str, tuple[int, str]]
    pareto_points: Sequence[Sequence[str]]
    columns: Mapping[str, Callable[[Json], str]]
    measures: Mapping[str, Measure]
    curves: Mapping[str, str]
    intervals: Callable[[Sequence[Sequence[Json]]], dict[str, float]] = lambda seeds: {}
    also_plotted: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def cases_in_words(self) -> str:
        """The cases as a sentence names them."""
        return self.cases.replace("_", " ")

    def cell(self, column: str, arm: Json) -> str:
        """Return a column's cell of an arm; a measure that is of no single case has its interval over several seeds there."""
        text, limits = self.columns[column](arm), arm.get("intervals", {}).get(column)
        if limits is None:
            return text
        measure = self.measures[column]
        low, high = (f"{limits[key]:{measure.form}}{measure.unit}" for key in ("low", "high"))
        return f"{text} [{low}, {high}]"

    @property
    def scores(self) -> dict[str, tuple[int, str]]:
        """The metrics that are plotted along runs, those that an evaluation does not measure included."""
        return {**self.objectives, **self.also_plotted}


@dataclass(frozen=True)
class Draft:
    """A recipe over own data.

    Attributes:
        recipe: its text.
        shown: what was found of every role.
        sheet: images of every role, as a PNG file; None where examples are among what is shown.
    """

    recipe: str
    shown: Sequence[Text]
    sheet: bytes | None = None


@dataclass(frozen=True)
class Modality:
    """A modality's part of every command: the folder `name`, whose modules are imported when they are needed."""

    name: str

    @property
    def recipe(self) -> type[Recipe]:
        """The model of its recipes."""
        return self._module("config").Recipe

    @property
    def metrics(self) -> Metrics:
        """The presentation of its evaluation."""
        return self._module("metrics").METRICS

    @property
    def designer_parts(self) -> Mapping[str, str]:
        """Name -> prefix of designer parameters whose error `doctor` reports separately."""
        return self._module("inspection.doctor").PARTS

    @property
    def model_types(self) -> Sequence[str]:
        """transformers' model types of its learners, as far as these can be recognised by type."""
        return self._module("model.load").MODEL_TYPES

    def assemble(self, recipe: Recipe, model: Model = None) -> Parts:
        """Return the parts of a run; `model` replaces the learner that it names. Raises UserError for what cannot work."""
        with working(_LOADING):
            return self._module("assemble").assemble(recipe, model)

    def load_learner(self, recipe: Recipe) -> tuple[Learner, Callable[[Path], None]]:
        """Return the learner, and a function that writes it to a directory in its community's format. Raises UserError."""
        with working(_LOADING):
            return self._module("assemble").load_learner(recipe)

    def subset(self, recipe: Recipe, learner: Learner) -> tuple[str, ...]:
        """Return the names of the parameters in S. Raises UserError."""
        return self._module("assemble").subset_of(recipe, learner)

    def measure(self, recipe: Recipe, model: str) -> Json:
        """Return the metrics of a model, by name or directory, on a recipe's evaluation. Raises UserError."""
        with working(_LOADING):
            evaluate = self._module("assemble").evaluation_of(recipe, model)
        return evaluate()

    def check(self, recipe: Recipe) -> Iterator[str]:
        """Yield a line for everything that is in order; raise UserError for the first thing that is not."""
        return self._module("inspection.check").check(recipe)

    def reads(self, stream: str) -> bool:
        """Whether a path holds data that it can learn from."""
        return self._module("inspection.draft").reads(stream)

    def draft(
        self,
        name: str,
        learner: str,
        *,
        stream: str,
        feedback: str,
        evaluation: str | None,
        templates: Sequence[Mapping[str, str]],
    ) -> Draft:
        """Return a recipe with comments over data by their paths; `templates` come before guesses. Raises UserError."""
        with working("looking at the learner and the data"):
            return self._module("inspection.draft").draft(name, learner, stream, feedback, evaluation, templates)

    def inspect(self, recipe: Recipe, *, examples: int, positions: int) -> None:
        """Print a few examples of stream, feedback and constructed tasks."""
        self._module("inspection.inspect").inspect(recipe, examples=examples, positions=positions)

    def engine_case(self, learner: str) -> EngineCase:
        """Return a learner, by name, with random data, for `doctor`. Raises UserError."""
        with working(_LOADING):
            return self._module("inspection.doctor").engine_case(learner)

    def workload(self, recipe: Recipe) -> Workload:
        """Return a recipe as counts, for `estimate`. Raises UserError for what is not known."""
        with working("counting the work of a step"):
            return self._module("workload").workload(recipe)

    def fingerprints(self, recipe: Recipe) -> list[Json]:
        """Return fingerprints of a recipe's data. Raises OSError or UserError where it is gone."""
        return self._module("data.fingerprint").fingerprints(recipe)

    def resolve(self, learner: str) -> str:
        """Return a learner's name as transformers takes it. Raises UserError."""
        return pretrained.resolve(learner, self._module("model.load").PACKAGES)

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f"vpretrain.{self.name}.{name}")


MODALITIES = {name: Modality(name) for name in ("language", "vision")}


def modality_of(recipe: Recipe) -> Modality:
    """Return the modality of a recipe."""
    return MODALITIES[recipe.modality]
