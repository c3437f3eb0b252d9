"""Inspectors: parts of a report that show the effect of a construction, token by token or image by image."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vpretrain.errors import UserError
from vpretrain.recipe import load_recipe
from vpretrain.report.collect import read_log
from vpretrain.run.card import without_folders
from vpretrain.types import Json

TEMPLATES = Environment(loader=PackageLoader("vpretrain.report"), autoescape=True, undefined=StrictUndefined)
TITLES = {"language": "Token inspector", "vision": "Mask inspector"}


def inspectors(run: Path) -> list[Markup]:
    """Return self-contained HTML fragments that inspect a run; none if the arm's task does not follow the feedback.

    A language run has a token inspector, for which its learner and data are loaded; a vision run has a mask inspector. If
    something is missing, the fragment names it.

    Args:
        run: its directory.

    Raises:
        UserError: it has no readable recipe.
    """
    recipe = load_recipe(run / "recipe.yaml")
    if not recipe.arms[recipe.arm].steered:
        return []
    kind, find = {"language": ("tokens", _tokens), "vision": ("views", _views)}[recipe.modality]
    shown: Json = {"kind": kind, "title": TITLES[recipe.modality], "missing": None}
    try:
        shown["found"] = find(run)
    except UserError as error:
        shown["missing"] = " ".join(map(without_folders, str(error).split(" ")))
    return [Markup(TEMPLATES.get_template("inspector.html").render(shown))]


def _tokens(run: Path) -> Json:
    from vpretrain.language.inspection.tokens import tokens

    found = tokens(run)
    known = any(token.get("opposed") is not None for row in found["rows"] for token in row["tokens"])
    return found | {"values_known": known}


def _views(run: Path) -> Json:
    from vpretrain.vision.task.views import recorded_views

    recipe, points = load_recipe(run / "recipe.yaml"), recorded_views(run)
    updates = [line for line in read_log(run / "metrics.jsonl") if "value" in line]
    for point in points:
        before = [line["value"] for line in updates if line["step"] <= point["step"]]
        point["alignment"] = before[-1] if before else None
    return {"arm": recipe.arm, "align": recipe.effective_value.align, "points": points}
