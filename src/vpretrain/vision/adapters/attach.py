"""V-pretraining in a self-distillation loop of your own, as DINO's are: from a backbone and labelled images to a step's losses.

Shapes: V views, B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpretrain import distributed
from vpretrain.errors import UserError
from vpretrain.method.protocols import Task
from vpretrain.method.step import Schedule
from vpretrain.run.attached import Attached
from vpretrain.types import Model
from vpretrain.vision.arms import ARMS
from vpretrain.vision.assemble import constructed, warn_if_judged_by_the_same
from vpretrain.vision.config import DesignerConfig, DinoConfig, FeedbackConfig, ValueConfig
from vpretrain.vision.data.feedback import VisionFeedback
from vpretrain.vision.model.backbone import Backbone
from vpretrain.vision.model.batch import ViewBatch
from vpretrain.vision.model.dino import DinoLearner
from vpretrain.vision.task.construction import Fixed


class VisionPretraining(Attached):
    """The exact task (arm `v`) as a part of a loop that has its own crops, optimizer and schedule.

    Args:
        model: a vision transformer of transformers, in float32, on its device.
        feedback: the section of a recipe: labelled images.
        dino, value: the sections of a recipe. The head is new: load yours into `learner.module.head` and
            `learner.teacher.head`.
        bf16: the learner's own passes, and the feedback's, are under bf16 autocast.
        seed: of the initial heads and of the feedback's order.

    Raises:
        UserError: something cannot work; the message gives the cause and the remedy.

    Examples:
        >>> v = VisionPretraining(model, FeedbackConfig(heads=labelled, meta=held_out))
        >>> optimizer = torch.optim.AdamW(v.parameters(), lr=1e-5)
        >>> for step, (global_crops, local_crops) in enumerate(stream):
        ...     batches = [view_batch(global_crops, local_crops, seed=step)]
        ...     for loss in v.losses(step, batches, optimizer=optimizer):
        ...         loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     v.after_step((step + 1) / len(stream))
    """

    def __init__(
        self,
        model: Model,
        feedback: FeedbackConfig,
        *,
        dino: DinoConfig | None = None,
        value: ValueConfig | None = None,
        bf16: bool = False,
        seed: int = 0,
    ) -> None:
        if distributed.size() > 1:
            raise UserError("a loop of one's own trains in one process: use torchrun with `vpretrain run`")
        value = value or ValueConfig()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            backbone = Backbone(model).to(model.device).train()  # its own buffers, too
            self.learner = DinoLearner(backbone, dino or DinoConfig(), bf16=bf16)
        labelled = VisionFeedback(feedback, self.learner, seed=seed)
        construction, meta, _ = constructed(ARMS["v"], self.learner, labelled, DesignerConfig(), value, seed=seed)
        assert meta is not None
        warn_if_judged_by_the_same(labelled, meta)
        super().__init__(
            self.learner,
            labelled,
            construction,
            meta,
            base=Fixed(),
            schedule=Schedule(value.every_steps),
            aware=value.metric == "adamw",
            modules={"teacher": self.learner.teacher, "heads": labelled.heads},
            optimizers={"heads": labelled.optimizer},
        )
        self._tasks: list[Task] = []

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters to train: those of the backbone and of the student's head."""
        return [parameter for _, parameter in self.learner.named_parameters()]

    def losses(
        self,
        step: int,
        batches: Sequence[ViewBatch],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        progress: float = 0.0,
    ) -> Iterator[Tensor]:
        """Yield the losses of a step's micro-batches, whose sum is the step's loss: lines 2 to 4 of Algorithm 1.

        Go backward through each before taking the next. If a meta update is due, it comes before the first.

        Args:
            step: number of the learner step, from 0.
            batches: the micro-batches of one optimizer step, see `view_batch`.
            optimizer: the loop's own, over `parameters()`; as in the language adapter.
            progress: the fraction of training that is done before this step.
        """
        self._tasks = []
        views = [batch.to(self.learner.device) for batch in batches]
        for part in self.micro_steps(step, views, optimizer=optimizer, total=None, progress=progress):
            self._tasks.append(part.task)
            yield part.loss

    def after_step(self, progress: float) -> None:
        """Move the teacher and its centre after an optimizer step; `progress` is the fraction of training that is done then."""
        self.learner.after_step(self._tasks, progress)
        self._tasks = []


def view_batch(
    global_VB3HW: Float[Tensor, "V B 3 H W"], local_VB3HW: Float[Tensor, "Vl B 3 Hl Wl"], *, seed: int
) -> ViewBatch:
    """Return a micro-batch of crops in [0, 1], view by view; V of the local ones may be 0. `seed` draws the hidden patches.

    Examples:
        >>> import torch
        >>> batch = view_batch(torch.rand(2, 4, 3, 32, 32), torch.rand(6, 4, 3, 16, 16), seed=0)
        >>> batch.weight  # its images
        4.0
    """
    images = range(global_VB3HW.shape[1])
    return ViewBatch(
        global_VB3HW,
        local_VB3HW,
        keys=tuple(str(image) for image in images),
        places=tuple(images),
        whole=len(images),
        local_views=len(local_VB3HW),
        seed=seed,
    )
