"""The plots of a report: SVG by matplotlib, embedded in the page and in its colours, so that they follow light and dark mode.

Arms differ by line style and marker as well as by colour, and are named next to their curves.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from vpretrain.compare.alike import alike
from vpretrain.compare.results import START, pairs
from vpretrain.modality import modality_of
from vpretrain.plot import pyplot
from vpretrain.report.collect import Run, Study
from vpretrain.report.curves import Series, between_seeds, thin
from vpretrain.types import Json, Keywords

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours given to matplotlib, and the page's colours that replace them.
_INK, _FAINT = "#010101", "#010102"
_SERIES = [f"#0202{number:02x}" for number in range(1, 8)]
_COLOURS = {_INK: "currentColor", _FAINT: "var(--faint)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)
}
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INKED = ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "hatch.color", "text.color")
_STYLE: Keywords = dict.fromkeys((*_INKED, "xtick.color", "ytick.color"), _INK) | {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,
}
_WIDTH, _HEIGHT = 330, 215  # points
_LONGEST = 22  # characters of a name in a plot
_TITLES = {
    "grad_norm": "norm of the learner's gradient",
    "g_down_norm": "norm of the feedback's gradient, |g_down|",
    "designer_grad_norm": "norm of the designer's gradient",
    "regulariser": "designer's regulariser",
    "lr": "learning rate",
}


def evaluation(study: Study) -> list[Markup]:
    """Plot each score against seconds, tokens (or images) and steps; bands over seeds."""
    unit = study.recipe.unit
    pictures = []
    for key, (sign, title) in modality_of(study.recipe).metrics.scores.items():
        for axis, name in {"seconds": "training seconds", unit: unit, "steps": "steps"}.items():
            curves = {arm: [_curve(study, run, key, axis) for run in runs] for arm, runs in study.trained.items()}
            curves = {arm: [c for c in of_arm if c[0]] for arm, of_arm in curves.items()}
            if any(curves.values()):
                better = "lower is better" if sign < 0 else "higher is better"
                pictures.append(_evaluation(curves, f"{title}, {better}", name, study.start.get(key)))
    return pictures


def steps(study: Study) -> tuple[list[Markup], list[Markup]]:
    """Plot metrics.jsonl: loss, gate or mask and value; then, apart from these, all else that it has of each step."""
    first = modality_of(study.recipe).metrics.curves
    runs = [run for of_arm in study.trained.values() for run in of_arm]
    known = {"step", "seconds", study.recipe.unit}
    keys = dict.fromkeys([*first, *(key for run in runs for line in run.metrics for key in line if key not in known)])
    drawn: dict[str, Markup] = {}
    for key in keys:
        curves = {arm: [_logged(run, key) for run in of_arm] for arm, of_arm in study.trained.items()}
        curves = {arm: [c for c in of_arm if c[0] and (key == "loss" or any(c[1]))] for arm, of_arm in curves.items()}
        if any(curves.values()):
            drawn[key] = _steps(curves, first.get(key) or _TITLES.get(key, key))
    return [drawn[key] for key in first if key in drawn], [drawn[key] for key in drawn if key not in first]


def differences(study: Study) -> list[Markup]:
    """Plot every reported difference with its interval, at the end of the budget and after equal seconds and tokens."""
    results, metrics = study.results, modality_of(study.recipe).metrics
    trained = {name: arm for name, arm in results["arms"].items() if arm["steps"]}
    wanted = [pair for pair in pairs(trained, study.recipe.baseline) if not alike(results, study.recipe, *pair)]
    pictures = []
    for key, unit in results["of"].items() if wanted else ():
        compared = {"end of budget": results["differences"][key]}
        compared |= {f"equal {axis}": found[key]["differences"] for axis, found in results.get("matched", {}).items()}
        rows = [(f"{_short(a)} − {_short(b)}", kind, of[a][b]) for kind, of in compared.items() for a, b in wanted]
        pictures.append(_intervals(rows, f"difference, {unit} ({metrics.paired[key].better} is better)"))
    return pictures


def probe(found: Json) -> list[Markup]:
    """Plot realised against predicted drops of the feedback loss."""
    from vpretrain.inspection.probe import OTHER_UNITS, PREDICTIONS, points_by_prediction, shown  # needs torch

    return [
        _scatter(pairs, f"{PREDICTIONS[name][2]}: {shown(found[name])}", same_unit=name not in OTHER_UNITS)
        for name, pairs in points_by_prediction(found).items()
    ]


def profile(found: Json) -> Markup:
    """Plot the time of a step by phase: those of ordinary pretraining, and those that V adds."""
    from vpretrain.inspection.profile import draw_phases  # needs torch

    def draw(axis: Axes) -> None:
        draw_phases(axis, found, _SERIES[:2], partial(_short, longest=28))
        axis.grid(visible=False, axis="y")

    longest = max(found["phases"], key=found["phases"].get)
    height = 70 + 17 * len(found["phases"])
    return _svg(draw, f"Phases of a step; the longest is {longest}", left=150, right=12, height=height, width=480)


def _curve(study: Study, run: Run, key: str, axis: str) -> Series:
    """Return a score along a run: the untouched learner, the evaluations, the result."""
    start = [(0.0, study.start.get(key))]
    along = [(line["step"] + 1 if axis == "steps" else line[axis], line.get(key)) for line in run.scores]
    end = [(run.result[axis], run.result.get(key))] if run.result else []
    return _finite([*start, *along, *end])


def _logged(run: Run, key: str) -> Series:
    return _finite([(line["step"] + 1, line.get(key)) for line in run.metrics])


def _finite(points: Sequence[tuple[float, object]]) -> Series:
    kept = [(x, y) for x, y in points if isinstance(y, int | float) and math.isfinite(y)]
    return [x for x, _ in kept], [y for _, y in kept]


def _style(number: int) -> tuple[str, str, str]:
    """Return an arm's colour, line style and marker, by its number."""
    return _SERIES[number % len(_SERIES)], _LINES[number % len(_LINES)], _MARKERS[number % len(_MARKERS)]


def _evaluation(curves: Mapping[str, Sequence[Series]], title: str, axis_name: str, start: float | None) -> Markup:
    bands = {arm: between_seeds(series) for arm, series in curves.items() if series}
    ends: dict[str, tuple[int | None, float]] = {}

    def draw(axis: Axes) -> None:
        for number, (arm, series) in enumerate(curves.items()):
            if not series:
                continue
            band, (colour, line, marker) = bands[arm], _style(number)
            if len(series) > 1:
                axis.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
                for x, y in series:
                    axis.plot(x, y, marker, color=colour, markersize=2.5, alpha=0.6)
            axis.plot(band.x, band.mean, color=colour, linestyle=line, linewidth=1.6)
            if len(series) == 1:
                axis.plot(*series[0], marker, color=colour, markersize=4)
            ends[arm] = (number, float(band.mean[-1]))
        if start is not None:
            axis.axhline(start, color=_INK, linewidth=0.7, linestyle=(0, (1, 3)))
            ends[START] = (None, start)
        _name_axes(axis, title, axis_name)
        _label(axis, ends)

    last = ", ".join(f"{arm} {band.mean[-1]:.4g}" for arm, band in bands.items())
    begin = "" if start is None else f"; untouched {start:.4g}"
    return _svg(draw, f"{title}, against {axis_name}; at the end {last}{begin}", names=[*curves, START])


def _steps(curves: Mapping[str, Sequence[Series]], title: str) -> Markup:
    bands = {arm: thin(series) for arm, series in curves.items() if series}
    numbers = {arm: number for number, arm in enumerate(curves)}

    def draw(axis: Axes) -> None:
        for arm, band in bands.items():
            colour, line, marker = _style(numbers[arm])
            axis.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
            marks: Keywords = {"marker": marker, "markersize": 3.5, "markevery": max(1, len(band.x) // 8)}
            axis.plot(band.x, band.mean, color=colour, linestyle=line, linewidth=1.2, **marks)
        _name_axes(axis, title, "steps")
        _label(axis, {arm: (numbers[arm], float(band.mean[-1])) for arm, band in bands.items()})

    text = "; ".join(
        f"{arm} from {b.mean[0]:.4g} to {b.mean[-1]:.4g}, least {b.low.min():.4g}, most {b.high.max():.4g}"
        for arm, b in bands.items()
    )
    return _svg(draw, f"{title}, against steps: {text}", names=bands)


def _intervals(rows: Sequence[tuple[str, str, Mapping[str, float]]], title: str) -> Markup:
    kinds = list(dict.fromkeys(kind for _, kind, _ in rows))

    def draw(axis: Axes) -> None:
        for place, (_, kind, found) in enumerate(rows):
            (colour, _, marker), y = _style(kinds.index(kind)), -place
            axis.plot([found["low"], found["high"]], [y, y], color=colour, linewidth=2)
            axis.plot(found["mean"], y, marker, color=colour, markersize=6)
        axis.axvline(0, color=_INK, linewidth=0.8)
        axis.set_yticks([-place for place in range(len(rows))], [f"{name}, {kind}" for name, kind, _ in rows])
        axis.set_ylim(-len(rows) + 0.4, 0.6)
        axis.grid(visible=False, axis="y")
        axis.locator_params(axis="x", nbins=6)
        axis.set_xlabel(title)

    text = "; ".join(f"{n}, {k}: {f['mean']:+.4f} from {f['low']:+.4f} to {f['high']:+.4f}" for n, k, f in rows)
    left = 16 + 5.2 * max(len(name) + len(kind) for name, kind, _ in rows)
    return _svg(draw, f"{title}: {text}", left=left, right=12, height=60 + 20 * len(rows), width=480)


def _scatter(pairs: Sequence[tuple[float, float]], title: str, *, same_unit: bool) -> Markup:
    def draw(axis: Axes) -> None:
        if same_unit:
            axis.axline((0, 0), slope=1, color=_INK, linewidth=0.8, linestyle="--")
        axis.plot(*zip(*pairs, strict=True), "o", color=_SERIES[0], markersize=4)
        _name_axes(axis, title, "predicted drop of the feedback loss")
        axis.set_ylabel("realised drop")

    equal = "; on the dashed line both are equal" if same_unit else ""
    return _svg(draw, f"Realised against predicted drop, {title}{equal}", left=62, right=14)


def _name_axes(axis: Axes, title: str, x_name: str) -> None:
    axis.set_title(_short(title, 60))
    axis.set_xlabel(x_name)
    axis.locator_params(nbins=5)
    axis.xaxis.set_major_formatter(
        lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k" if x >= 1e4 else f"{x:g}"
    )
    axis.yaxis.set_major_formatter("{x:.4g}")


def _label(axis: Axes, ends: Mapping[str, tuple[int | None, float]]) -> None:
    """Write names at the curves' ends, each after a piece of its line, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    gap, floor = 0.085, -1.0
    places = sorted(((end - low) / (high - low), arm, number) for arm, (number, end) in ends.items())
    top = 1.02 - gap * (len(places) - 1)
    for rank, (place, arm, number) in enumerate(places):
        y = max(min(place, top + gap * rank), floor)
        floor = y + gap
        colour, style, marker = (_INK, (0, (1, 3)), "") if number is None else _style(number)
        line: Keywords = {"color": colour, "transform": axis.transAxes, "clip_on": False}
        axis.plot([1.02, 1.1], [y, y], linestyle=style, linewidth=1.4, **line)
        if number is not None:
            axis.plot(1.06, y, marker, markersize=4, **line)
        axis.text(1.12, y, _short(arm), transform=axis.transAxes, verticalalignment="center", fontsize=8.5)
    axis.set_ylim(low, high)


def _short(text: str, longest: int = _LONGEST) -> str:
    """Shorten a text to one line for a plot; cut in the middle, since arms with settings differ at their ends."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    return line if len(line) <= longest else f"{line[: longest // 2]}…{line[longest // 2 + 1 - longest :]}"


def _svg(
    draw: Callable[[Axes], None],
    description: str,
    *,
    names: Sequence[str] | Json = (),
    left: float = 46,
    right: float | None = None,
    width: float = _WIDTH,
    height: float = _HEIGHT,
) -> Markup:
    """Return a plot with one panel, to embed in a page.

    Args:
        description: for those who cannot see it.
        names: labels to the right of the axes.
        left, right, width, height: points; right: None: as the names need it.
    """
    plot = pyplot()
    right = 40 + 5.0 * max((len(_short(name)) for name in names), default=0) if right is None else right
    with plot.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the text is drawn in the page's font, not in matplotlib's
        picture, axis = plot.subplots(figsize=(width / 72, height / 72))
        picture.subplots_adjust(left / width, 42 / height, 1 - right / width, 1 - 24 / height)
        draw(axis)
        file = io.StringIO()
        picture.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
        plot.close(picture)
    return _for_page(file.getvalue(), description)


def _for_page(svg: str, description: str) -> Markup:
    """Adapt an SVG to a page: nothing that only a separate file needs, unique ids, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    own = hashlib.sha256((svg + description).encode()).hexdigest()[:8]
    svg = re.sub(r'\bid="', f'id="s{own}-', svg)
    svg = re.sub(r'(xlink:)?href="#', f'href="#s{own}-', svg).replace("url(#", f"url(#s{own}-")
    for colour, of_page in _COLOURS.items():
        svg = svg.replace(colour, of_page)
    svg = svg.replace("'DejaVu Sans', sans-serif", "system-ui, sans-serif")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    head = f'<svg role="img" aria-label="{escape(description)}" {box[0]}>'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1))
