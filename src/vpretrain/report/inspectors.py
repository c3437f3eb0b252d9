"""Inspectors: parts of a report that show what a designer does, token by token or picture by picture."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vpretrain.compare import read_lines
from vpretrain.errors import UserError
from vpretrain.recipe import load_recipe, room

_SECTION = Markup(
    '<section class="vp-inspector" aria-label="{title}">\n<style>{style}</style>\n<h3>{title}</h3>\n{body}\n</section>\n'
)
_LIVE = Markup(
    "<noscript><p>This part needs JavaScript.</p></noscript>\n"
    '{controls}\n<script type="application/json">{data}</script>\n<script>{script}</script>'
)

_TOKENS = Markup("""\
<p>What the designer of arm {arm} makes of the stream after {step:,} steps: the gate &alpha; of every target, and its soft target. \
Point at a target, or go through them with the arrow keys.</p>
<ul class="vp-legend">
<li><span class="vp-target" style="--alpha: 0.1">low</span> <span class="vp-target" style="--alpha: 0.5">to</span> \
<span class="vp-target" style="--alpha: 1">high</span> &alpha;: shade and bar, up to &alpha;<sub>max</sub> = {alpha_max:g}</li>
<li><span class="vp-target vp-steered" style="--alpha: 0.5">most steered</span>: the tenth of these targets with the most \
mass off the true token, 1 &minus; q(true)</li>
<li><span class="vp-target vp-opposed" style="--alpha: 0.5">opposed by feedback</span>: the true token&rsquo;s value is \
negative, so that learning it works against the feedback</li>
<li><span class="vp-context">context</span>: read, and no target; &middot; is a space, &crarr; a line break, &brvbar; the \
end of a document</li>
</ul>""")
_TOKEN_CONTROLS = Markup("""\
<div class="vp-controls">
<label>Targets <select class="vp-which"><option value="">all</option><option value="steered">most steered</option>\
<option value="opposed"{disabled}>opposed by feedback</option></select></label>
<label>Domain <select class="vp-domain"><option value="">all</option>{domains}</select></label>
<output class="vp-count"></output>
</div>
<div class="vp-both">
<div class="vp-rows" role="listbox" aria-label="targets"></div>
<div class="vp-panel">
<p class="vp-said" aria-live="polite"></p>
<table>
<caption>Candidates: the true token, then by falling q. The value of a candidate is what target mass on it adds to the value of \
the task, along the direction of the last meta update.</caption>
<thead><tr><th scope="col">candidate</th><th scope="col">p</th><th scope="col">q</th><th scope="col">value</th></tr></thead>
<tbody></tbody>
</table>
</div>
</div>""")
_DOMAIN = Markup('<option value="{0}">{0}</option>')

_VIEWS = Markup("""\
<p>A few pictures of the stream through the mask of arm {arm}, over training: the crop, its mask (white: kept sharp, black: \
blurred), and the view that the learner is given.</p>
<p>The value of a picture is &lt;u, g&gt; along the direction u of the last meta update, with the gradient g of its masked views; \
beside it that of the crops as they are. What the mask adds to the value is the difference.</p>""")
_VIEW_CONTROLS = Markup("""\
<div class="vp-controls">
<button type="button" class="vp-back">&larr; earlier</button>
<label>Point in training <input type="range" class="vp-point" min="0" max="{last}" step="1" value="{last}"></label>
<button type="button" class="vp-on">later &rarr;</button>
<output class="vp-count" aria-live="polite"></output>
</div>
<div class="vp-pictures"></div>""")


def inspectors(run: Path) -> list[Markup]:
    """HTML fragments, each of which stands alone, for what can be inspected of a run.

    A language run has a token inspector, which loads its learner and data; a vision run has a mask inspector.

    Args:
        run: its directory.

    Returns:
        None where the arm has no designer. Where something is missing, a fragment says what.

    Raises:
        UserError: the directory has no readable recipe.
    """
    recipe = load_recipe(run / "recipe.yaml")
    if recipe.arm not in room(recipe.modality, "config").DESIGNED:
        return []
    title, inspector = {"language": ("Token inspector", _of_tokens), "vision": ("Mask inspector", _of_views)}[
        recipe.modality
    ]
    try:
        body = inspector(run)
    except UserError as error:
        body = Markup("<p>Not shown: {}</p>").format(str(error))
    return [_SECTION.format(title=title, style=_asset("inspectors.css"), body=body)]


def _of_tokens(run: Path) -> Markup:
    from vpretrain.language.tokens import tokens  # torch and transformers take seconds

    found = tokens(run)
    known = any(token.get("candidates", [[None]])[0][-1] is not None for row in found["rows"] for token in row["tokens"])
    controls = _TOKEN_CONTROLS.format(
        disabled="" if known else Markup(" disabled"),
        domains=Markup().join(_DOMAIN.format(domain) for domain in dict.fromkeys(r["domain"] for r in found["rows"])),
    )
    return _TOKENS.format_map(found) + _live(controls, found, "tokens.js")


def _of_views(run: Path) -> Markup:
    from vpretrain.vision.views import recorded_views

    recipe, points = load_recipe(run / "recipe.yaml"), recorded_views(run)
    updates = [line for line in read_lines(run / "metrics.jsonl") if "value" in line]
    for point in points:
        before = [line["value"] for line in updates if line["step"] <= point["step"]]
        point["alignment"] = before[-1] if before else None
    found = {"align": recipe.value.align, "points": points}
    controls = _VIEW_CONTROLS.format(last=len(points) - 1)
    return _VIEWS.format(arm=recipe.arm) + _live(controls, found, "views.js")


def _live(controls: Markup, data: dict[str, Any], script: str) -> Markup:
    # In a script element nothing but "<" could end it, or begin a comment.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return _LIVE.format(controls=controls, data=Markup(text), script=_asset(script))


def _asset(name: str) -> Markup:
    return Markup(files(__package__).joinpath(name).read_text(encoding="utf-8"))
