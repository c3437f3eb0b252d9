"""The outcome of a run or a comparison for Python: figures as attributes, shown as a table."""

from __future__ import annotations

import html
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from vpretrain.config import Recipe
from vpretrain.modality import modality_of
from vpretrain.tables import cells, grid
from vpretrain.types import Json

_WIDTH = 140  # characters of a table as text; narrower ones would be broken


class Outcome(ABC):
    """The content of a JSON file as attributes. Terminals and notebooks show it as a table.

    Attributes:
        recipe: the recipe that it comes from.
        figures: the content of the file.
    """

    def __init__(self, recipe: Recipe, figures: Json) -> None:
        self.recipe, self.figures = recipe, figures

    @abstractmethod
    def _title(self) -> str: ...

    @abstractmethod
    def _rows(self) -> list[list[str]]:
        """Return the table's cells; the first row names the columns."""

    def __getattr__(self, name: str) -> Any:
        figures = vars(self).get("figures", {})  # a copy in the making has none
        if name not in figures:
            raise AttributeError(f"there is no figure '{name}', but {', '.join(figures)}", name=name, obj=self)
        return figures[name]

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self.figures]

    def __rich__(self) -> Table:
        return grid(self._title(), self._rows())

    def __repr__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=_WIDTH, color_system=None, force_jupyter=False).print(self)
        return text.getvalue().rstrip()

    def _repr_html_(self) -> str:
        head, *rows = self._rows()
        body = "".join(_html_row(row, "td") for row in rows)
        caption = f"<caption>{html.escape(self._title())}</caption>"
        return f"<table>{caption}<thead>{_html_row(head, 'th')}</thead><tbody>{body}</tbody></table>"


def _html_row(row: Iterable[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>"


class RunResult(Outcome):
    """The outcome of a run: the content of its `result.json` as attributes.

    Further attributes depend on the modality and the arm: `tokens` or `images` read, and `tokens_per_s` or `images_per_s`; the
    metrics of the evaluation, such as `answer_nll` and `retention_nll`, with its cases (`problems` or `test_images`); means
    over the steps, such as `mean_alpha`.

    Attributes:
        name: of the run, as in the recipe.
        arm: as in the recipe.
        seed: as in the recipe.
        steps: learner steps made.
        total_steps: learner steps that the learning rate was planned for.
        meta_updates: meta updates made.
        seconds: training time, meta updates included; evaluation, saving and loading are not.
        processes: processes that trained together.
        peak_memory_bytes: of this process, on the GPU if there is one.

    Examples:
        >>> result = run_recipe(load_recipe("recipe.yaml", ["budget.steps=4"]), overwrite=True)
        >>> result.steps
        4
        >>> result.answer_nll, result.mean_alpha, result.warning
    """

    name: str
    arm: str
    seed: int
    steps: int
    total_steps: int
    meta_updates: int
    seconds: float
    processes: int
    peak_memory_bytes: int

    @property
    def warning(self) -> str | None:
        """A reason to doubt the run, if there is one."""
        return self.figures.get("warning")

    @property
    def left_out(self) -> Json:
        """Numbers of examples that nothing was learned from, by source and reason."""
        return self.figures.get("left_out", {})

    def _title(self) -> str:
        return f"{self.recipe.name}: {modality_of(self.recipe).metrics.headline(self.recipe)}"

    def _rows(self) -> list[list[str]]:
        return cells({self.arm: self.figures}, self.recipe)
