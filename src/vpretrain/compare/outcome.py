"""The outcome of a comparison for Python."""

from __future__ import annotations

from vpretrain.compare.tables import title
from vpretrain.outcome import Outcome
from vpretrain.types import Json


class ComparisonResult(Outcome):
    """The outcome of a comparison: the content of its `results.json` as attributes.

    Attributes:
        arms: arm -> its figures, as in a `RunResult`: means over the seeds, with each seed's under `runs` if there are several.
            `step-0` is the untouched learner.
        differences: metric -> arm -> other arm -> mean, low and high of the 95 % interval, p; paired over seeds and cases.
        of: metric -> unit of its differences.
        seeds: of the runs.
        rounds: turns per run.
        table: the table's cells; the first row names the columns.
        remarks: what readers of the table should know: differences with intervals, and warnings.
        versions: of the packages that were used.

    Examples:
        >>> results = compare(load_recipe("recipe.yaml"), ["one-hot", "v"], overwrite=True)
        >>> results.arms["v"]["answer_nll"], results.arms["one-hot"]["answer_nll"]
        >>> results.differences["nll"]["v"]["one-hot"]["mean"]
    """

    arms: dict[str, Json]
    differences: dict[str, dict[str, dict[str, dict[str, float]]]]
    of: dict[str, str]
    seeds: list[int]
    rounds: int
    table: list[list[str]]
    remarks: list[str]
    versions: dict[str, str]

    @property
    def matched(self) -> Json:
        """The arms at equal seconds and equal tokens (images); empty if `evaluation.points` is 0 or the learning rate falls."""
        return self.figures.get("matched", {})

    @property
    def by_domain(self) -> Json:
        """The arms in each domain of the evaluation; empty if there is only one."""
        return self.figures.get("by_domain", {})

    @property
    def over_seeds(self) -> Json:
        """Differences as in `differences`, but of measures that are of no single case, such as retention NLL, by their titles.

        They are paired over seeds alone; empty with one seed.
        """
        return self.figures.get("over_seeds", {})

    def _title(self) -> str:
        return title(self.figures, self.recipe)

    def _rows(self) -> list[list[str]]:
        return self.table
