"""`vpretrain inspect` for vision: a sheet of crops, masks and views, and the value of the task on them."""

from __future__ import annotations

from rich.text import Text
from torch import Tensor

from vpretrain.console import output, working
from vpretrain.modality import modality_of
from vpretrain.run.left_out import lines
from vpretrain.vision.config import Recipe
from vpretrain.vision.model.batch import IGNORED
from vpretrain.vision.model.heads import valid_depth
from vpretrain.vision.task.sheet import draw_sheet


def inspect(recipe: Recipe, *, examples: int, positions: int) -> None:
    """Print the contents of stream and feedback and what was left out, and write an image sheet.

    `examples` and `positions` are for language only. The learner and the designer are those at the start of a run.
    """
    console, parts = output(), modality_of(recipe).assemble(recipe)
    batches = parts.stream.next()
    batch = batches[0]
    whole, local = (tuple(views.shape) for views in (batch.global_VB3HW, batch.local_VB3HW))
    console.print(f"stream: global crops {whole}, local crops {local} (views, images, channels, height, width)")
    for line in lines(parts.left_out(parts.stream.state_dict())):
        console.print(Text(line))
    with working("fitting the heads of the feedback"):
        (feedback,) = parts.feedback.next().values()
    label, depth = feedback.labelled.label_BHW, feedback.labelled.depth_BHW
    if "segmentation" in feedback.heads:
        shares = [f"{kind} {float((label == kind).float().mean()):.1%}" for kind in label.unique().tolist()]
        console.print(f"feedback, segmentation: share of pixels by class: {', '.join(shares)} ({IGNORED}: ignored)")
    if "depth" in feedback.heads:
        console.print(f"feedback, depth: {_range(depth)}")
    if parts.meta is not None:
        with working("the value of the task"), parts.learner.meta_mode():
            g_down = parts.meta.feedback_gradients()
            (_, value), *_ = parts.meta.values(parts.meta.problems(g_down, batches))
        norm = parts.meta.norm_of(g_down)
        console.print(
            f"value of the task: {float(value.value):+.4g} ({recipe.effective_value.align}), |g_down| {norm:.4g}"
        )
    recipe.directory.mkdir(parents=True, exist_ok=True)
    sheet = draw_sheet(parts.construction, batch, recipe.directory / "inspect.png")  # type: ignore[arg-type]
    console.print(f"crops, with any masks (white: kept sharp) and views: {sheet}")


def _range(depth_BHW: Tensor) -> str:
    """The fraction and the range of the valid depths, of which a batch may have none."""
    valid = depth_BHW[valid_depth(depth_BHW)]
    if not valid.numel():
        return "no pixel of this batch is valid"
    return f"{valid.numel() / depth_BHW.numel():.1%} valid, {float(valid.min()):.2f} to {float(valid.max()):.2f} m"
