"""The feedback set of vision: dense labels, seen through light heads on the frozen backbone.

Shapes: B images, D the backbone's width, h x w patches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpretrain import distributed
from vpretrain.errors import NonFinite, UserError
from vpretrain.order import Shuffled
from vpretrain.types import Json
from vpretrain.vision.config import FeedbackConfig
from vpretrain.vision.data.source import Pool
from vpretrain.vision.model.batch import IGNORED, Labelled
from vpretrain.vision.model.heads import (
    LabelKind,
    dense_head,
    label_loss,
    refitted_bias,
    start_from_median,
    valid_depth,
)
from vpretrain.vision.model.learner import Entry, VisionLearner

_SAMPLE = 16  # images in which labels are looked for
_FIRST_POOL = 8  # batches whose features the first fit of the heads cycles through


@dataclass(frozen=True)
class FeedbackBatch:
    """Labelled images, with the heads through which the backbone is evaluated.

    Attributes:
        labelled: the images.
        heads: by task; in evaluation mode, so that a gradient through them changes no statistics.
        weights: alpha_seg and alpha_dep of Eq 54, by task.
        shares: of this process in the labelled pixels, by task, times the number of processes; 1 for images on their own.
        entry: where a pass over the images enters the last MLP or the last blocks, if one has been made: the gradient over
            those then starts there.
    """

    weight: ClassVar[float] = 1.0  # the shares are those of the tasks

    labelled: Labelled
    heads: Mapping[LabelKind, nn.Module]
    weights: Mapping[LabelKind, float]
    shares: Mapping[LabelKind, float]
    entry: Entry | None = None

    def apart(self) -> list[FeedbackBatch]:
        """Return its images, each as a batch of its own."""
        alone = replace(self, shares=dict.fromkeys(self.shares, 1.0))
        return [alone.images(slice(i, i + 1)) for i in range(len(self.labelled))]

    def images(self, chosen: slice) -> FeedbackBatch:
        """Return some of the images as a batch."""
        entry = None if self.entry is None else self.entry.rows(chosen, len(self.labelled))
        return replace(self, labelled=self.labelled[chosen], entry=entry)

    @property
    def image_B3HW(self) -> Tensor:
        """The images."""
        return self.labelled.image_B3HW

    def loss(self, grid_BDhw: Float[Tensor, "B D h w"]) -> Float[Tensor, ""]:
        """alpha_seg L_seg (nats per pixel) + alpha_dep L_dep (metres): one pass of the backbone serves both tasks."""
        terms = [
            self.weights[task] * self.shares[task] * label_loss(task, head, grid_BDhw, self.labelled)
            for task, head in self.heads.items()
        ]
        return torch.stack(terms).sum()


class VisionFeedback:
    """The feedback set D_fb: heads are fitted on some labelled batches; g_down comes from others, split over the processes.

    Args:
        config: sources, weights, heads.
        learner: read only; its frozen features are the heads' input.
        seed: seed of the images' order and of the initial heads.

    Raises:
        UserError: a source has no labels.
    """

    def __init__(self, config: FeedbackConfig, learner: VisionLearner, *, seed: int) -> None:
        self.config, self.learner, self.seed = config, learner, seed
        self.batches_drawn = self.head_steps = 0
        self.weights = {"labels": 1.0}  # one domain: its tasks are weighted within the batch
        weights: dict[LabelKind, float] = {"segmentation": config.segmentation, "depth": config.depth}
        self.tasks = {task: weight for task, weight in weights.items() if weight > 0}
        distributed.portion("feedback.batch_size", config.batch_size)  # no process may be without any
        shape = (config.size, config.size)
        self._for_heads, self._for_meta = Pool(config.heads, shape), Pool(config.meta, shape)
        for role, pool in (("heads", self._for_heads), ("meta", self._for_meta)):
            _check(role, pool, self.tasks)
        of_heads, of_meta = self._for_heads.classes, self._for_meta.classes
        if "segmentation" in self.tasks and of_heads != of_meta:
            raise UserError(
                f"feedback.heads has {of_heads} classes and feedback.meta {of_meta}: give both images of one data set"
            )
        outputs: dict[LabelKind, int] = {"segmentation": of_heads, "depth": 1}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            width = learner.backbone.width
            heads: dict[str, nn.Module] = {
                task: dense_head(config.head, width, outputs[task], zero=config.zero_head) for task in self.tasks
            }
            self.heads = nn.ModuleDict(heads).to(learner.device)
        if "depth" in heads:
            start_from_median(self.heads["depth"], _sample(self._for_heads, "depth").depth_BHW)
        self.optimizer = torch.optim.AdamW(self.heads.parameters(), lr=config.head_lr, weight_decay=0.05)

    @property
    def meta_images(self) -> int:
        """The number of images that g_down may come from."""
        return len(self._for_meta)

    def read_files(self) -> None:
        """Read all images once, so that a broken one ends the run before its first step. Raises as `Reader.read`."""
        self._for_heads.read_files("feedback.heads")
        self._for_meta.read_files("feedback.meta")

    def next(self) -> Json:
        """Fit the heads a little further, then return a meta batch."""
        for images, grid_BDhw in self._head_batches():
            self._fit(images, grid_BDhw)
        self.heads.eval()
        images = self._draw(self._for_meta, "meta", self.batches_drawn, self.config.batch_size)
        heads: dict[LabelKind, nn.Module] = {task: self.heads[task] for task in self.tasks}
        entry: Entry | None = None
        if self.config.refit_biases:  # on the images of all processes
            tokens_BTD, entry = self.learner.features_and_entry(images.image_B3HW)
            grid_BDhw = self._grid(tokens_BTD)
            # Of copies: a judgement may draw several batches before it uses the first, and later ones fit the heads further.
            heads = {
                task: nn.Sequential(copy.deepcopy(head), refitted_bias(task, head, grid_BDhw, images))
                for task, head in heads.items()
            }
        whole = FeedbackBatch(images, heads, self.tasks, dict.fromkeys(self.tasks, 1.0), entry)
        own = whole.images(slice(distributed.rank(), None, distributed.size()))
        self.batches_drawn += 1
        shares = {
            task: distributed.size() * _labelled_pixels(task, own.labelled) / max(1, _labelled_pixels(task, images))
            for task in self.tasks
        }
        return {"labels": replace(own, shares=shares)}

    def state_dict(self) -> Json:
        """Return the cursors; the heads and their optimizer are saved separately, as tensors."""
        return {"batches_drawn": self.batches_drawn, "head_steps": self.head_steps}

    def load_state_dict(self, state: Json) -> None:
        """Continue from the cursors."""
        self.batches_drawn, self.head_steps = state["batches_drawn"], state["head_steps"]

    def _head_batches(self) -> Iterator[tuple[Labelled, Tensor]]:
        if self.head_steps == 0:  # the backbone does not change meanwhile: its features are computed once
            epoch = max(1, len(self._for_heads) // self.config.head_batch_size)
            pool = [self._with_features(i) for i in range(min(_FIRST_POOL, epoch, self.config.first_head_steps))]
            for step in range(self.config.first_head_steps):
                yield pool[step % len(pool)]
        for _ in range(self.config.head_steps):
            yield self._with_features(self.head_steps)

    def _with_features(self, number: int) -> tuple[Labelled, Tensor]:
        images = self._draw(self._for_heads, "heads", number, self.config.head_batch_size)
        return images, self._grid(self.learner.features(images.image_B3HW))

    def _grid(self, tokens_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B D h w"]:
        return self.learner.backbone.grid(tokens_BTD, self.config.size, self.config.size)

    def _fit(self, images: Labelled, grid_BDhw: Tensor) -> None:
        self.heads.train()
        with torch.enable_grad():
            loss = torch.stack([label_loss(task, self.heads[task], grid_BDhw, images) for task in self.tasks]).sum()
            if not torch.isfinite(loss):
                what = f"the loss of the feedback's heads is {float(loss.detach())}"
                raise NonFinite(what, "lower feedback.head_lr or optimizer.lr")
            self.optimizer.zero_grad()  # before: backward passes of a meta update reach the heads, too
            loss.backward()  # the features are frozen: only the heads get gradients
        self.optimizer.step()
        self.head_steps += 1

    def _draw(self, pool: Pool, role: str, number: int, size: int) -> Labelled:
        order = Shuffled(len(pool), f"{self.seed}/{role}")
        return pool[[order[number * size + i] for i in range(size)]].to(self.learner.device)


def _check(role: str, pool: Pool, tasks: Iterable[LabelKind]) -> None:
    """Look for a label of each task in a few images of every set. Raises UserError if there is none."""
    for task in tasks:
        if not pool.having(task) or _labelled_pixels(task, _sample(pool, task)) == 0:
            what = "a class" if task == "segmentation" else "a valid depth"
            raise UserError(f"no pixel of feedback.{role} has {what}: set feedback.{task}=0, or give other images")


def _sample(pool: Pool, task: LabelKind) -> Labelled:
    """Return a few images of all sets that have labels for a task."""
    having = pool.having(task)
    return pool[having[:: max(1, len(having) // _SAMPLE)]].to("cpu")


def _labelled_pixels(task: LabelKind, images: Labelled) -> int:
    valid_BHW = images.label_BHW != IGNORED if task == "segmentation" else valid_depth(images.depth_BHW)
    return int(valid_BHW.sum())
