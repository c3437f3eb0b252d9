"""Inspectors: parts of a report that show the effect of a construction, token by token or image by image."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vpretrain.errors import UserError
from vpretrain.plain import without_folders
from vpretrain.recipe import load_recipe
from vpretrain.report.collect import read_log
from vpretrain.types import Json

TEMPLATES = Environment(loader=PackageLoader("vpretrain.report"), autoescape=True, undefined=StrictUndefined)
_MOST = 6  # targets that are shown as bars
_BEFORE = 12  # tokens before each
TITLES = {"language": "Token inspector", "vision": "Mask inspector"}


def inspectors(run: Path) -> list[Markup]:
    """Return self-contained HTML fragments that inspect a run; none if its arm has nothing to inspect.

    A language run whose task follows the feedback has a token inspector, for which its learner and data are loaded; a vision
    run with a designer has a mask inspector. If something is missing, the fragment names it. Raises UserError if there is no
    readable recipe.
    """
    recipe = load_recipe(run / "recipe.yaml")
    arm = recipe.arms[recipe.arm]
    if not (arm.designer if recipe.modality == "vision" else arm.steered):
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
    return found | {"values_known": known, "most": _most_steered(found["rows"])}


def _most_steered(rows: Sequence[Json]) -> list[Json]:
    """Return the targets with the most mass off the true token, with the text before each, as bars of p and q."""
    places = [(row["tokens"], n) for row in rows for n, token in enumerate(row["tokens"]) if token.get("moved")]
    places = sorted(places, key=lambda place: -place[0][place[1]]["moved"])[:_MOST]
    shown = []
    for tokens, n in places:
        candidates = tokens[n]["candidates"]
        longest = max(max(p, q) for _, p, q, _ in candidates) or 1.0
        bars = [
            {"text": _visible(text), "p": _share(p), "q": _share(q), "p_bar": p / longest, "q_bar": q / longest}
            for text, p, q, _ in candidates
        ]
        before = _visible("".join(token["text"] for token in tokens[max(0, n - _BEFORE) : n]))
        shown.append({"before": before, "moved": _share(tokens[n]["moved"]), "candidates": bars})
    return shown


# Both are written as tokens.js writes them.
def _visible(text: str) -> str:
    """Return a text of one line whose spaces can be seen at its ends."""
    line = text.replace("\r\n", "\n").translate({ord(c): shown for c, shown in zip("\n\r\t ", "↵↵⇥·", strict=True)})
    return "".join("�" if unicodedata.category(c) == "Cc" else c for c in line)


def _share(number: float) -> str:
    return f"{number:.3f}" if number == 0 or number >= 0.0005 else "<0.001"


def _views(run: Path) -> Json:
    from vpretrain.vision.task.views import recorded_views

    recipe, points = load_recipe(run / "recipe.yaml"), recorded_views(run)
    updates = [line for line in read_log(run / "metrics.jsonl") if "value" in line]
    for point in points:
        before = [line["value"] for line in updates if line["step"] <= point["step"]]
        point["alignment"] = before[-1] if before else None
    return {"arm": recipe.arm, "align": recipe.effective_value.align, "points": points}
