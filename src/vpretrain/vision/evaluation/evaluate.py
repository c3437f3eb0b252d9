"""Evaluate a frozen backbone: dense probes, classification, retrieval. Nothing here changes the learner.

Shapes: N images, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from vpretrain import distributed
from vpretrain.console import steady
from vpretrain.errors import UserError
from vpretrain.types import Json
from vpretrain.vision.config import EvaluationConfig
from vpretrain.vision.data.ahead import ahead
from vpretrain.vision.data.readers import read_image
from vpretrain.vision.data.source import Pool
from vpretrain.vision.evaluation.classification import ClassifiedFile, classification_accuracy, read_classes_of_folders
from vpretrain.vision.evaluation.dense import DEPTH_METRICS, DenseProbes, Probed
from vpretrain.vision.evaluation.features import central_part, patch_mean, tokens
from vpretrain.vision.evaluation.retrieval import Revisited, read_revisited, revisited_map, scene_map
from vpretrain.vision.model.heads import LabelKind
from vpretrain.vision.model.learner import VisionLearner


class Evaluation:
    """The evaluation of a backbone; its data are opened before the training, and read as they are needed.

    Raises:
        UserError: a source has no labels, no probe fits both roles' labels, the folders of classes do not match, or retrieval
            has no valid ground truth.
    """

    def __init__(self, config: EvaluationConfig) -> None:
        self.config = config
        self.test = Pool(config.test, None)
        self.train = {shape: Pool(config.train, shape) for shape in {config.shape, config.depth_shape}}
        self.tasks = _tasks(self.train[config.shape], self.test)
        self.classes = None if config.classes is None else read_classes_of_folders(config.classes)
        self.retrieval = {name: read_revisited(path) for name, path in config.retrieval.paths.items()}

    def __call__(self, learner: VisionLearner) -> Json:
        """Return the backbone's metrics; `test_images` lists them per image, for paired comparisons."""
        images: list[Json] = [{"scene": int(scene)} for scene in self.test.scene_N]
        metrics: Json = dict.fromkeys(("miou", *DEPTH_METRICS))
        probes = self._probes()
        spent, work = 0, sum(probe.work for probe in probes)
        with steady("       evaluation", work) as done:

            def spend(parts: int) -> None:
                nonlocal spent
                spent += parts
                done(spent)

            found = [probe(learner, spend) for probe in probes]
        for probed in found:
            metrics |= probed.together
            for number, image in probed.images.items():
                images[number] |= image
        metrics["accuracy"] = self._accuracy(learner, found[0])
        metrics["retrieval_map"] = scene_map(found[0].test_mean_ND, self.test.scene_N)
        for name, revisited in self.retrieval.items():
            scores = self._retrieval(learner, revisited)
            metrics |= {f"{name}_{protocol}": score for protocol, score in scores.items()}
        return metrics | {"test_images": images}

    def _probes(self) -> list[DenseProbes]:
        """Return the probes of all images at one size, and, if depth has a size of its own, those of images with depths."""
        config, test, train = self.config, self.test, self.train[self.config.shape]
        tasks, of_depth = self.tasks, list[DenseProbes]()
        if "depth" in tasks and config.depth_shape != config.shape:
            tasks = [task for task in tasks if task != "depth"]
            of_depth = [DenseProbes(config, self.train[config.depth_shape], test, ["depth"], having="depth")]
        return [DenseProbes(config, train, test, tasks, summaries=self._classifies_own), *of_depth]

    @property
    def _classifies_own(self) -> bool:
        """Whether the dense probes' images are classified: the recipe names no others, and their categories are known."""
        known = [pool.category_N for pool in (self.train[self.config.shape], self.test)]
        return self.classes is None and all(int(category_N.min()) >= 0 for category_N in known) and len(known[0]) > 1

    def _accuracy(self, learner: VisionLearner, probed: Probed) -> float | None:
        """Return a linear classifier's accuracy: on separate images if the recipe names some, else on the dense probes'."""
        steps, device = self.config.probe_steps, learner.device
        if self.classes is not None:
            train, test = self.classes
            with steady("   classification", len(train) + len(test), "images") as done:
                fitted_on = self._classified(learner, train, done)
                tested_on = self._classified(learner, test, lambda seen: done(len(train) + seen))
            return classification_accuracy(*fitted_on, *tested_on, steps, device)
        if probed.train_ND is None:
            return None
        train_N = self.train[self.config.shape].category_N
        return classification_accuracy(probed.train_ND, train_N, probed.test_ND, self.test.category_N, steps, device)

    def _classified(
        self, learner: VisionLearner, images: list[ClassifiedFile], done: Callable[[int], None]
    ) -> tuple[Float[Tensor, "N D"], Tensor]:
        """Return the summaries and the classes of images in files, which several threads read and all processes divide."""
        assert self.config.classes is not None
        side, summaries, step = self.config.classes.size, list[Tensor](), self.config.batch_size
        batches = [images[first : first + step] for first in range(0, len(images), step)]
        groups = [batches[first : first + distributed.size()] for first in range(0, len(batches), distributed.size())]
        # A process without a batch of its own repeats another's: a pass through a sharded learner takes all processes.
        own = [together[distributed.rank() % len(together)] for together in groups]
        read = ahead(partial(central_part, shape=(side, side)), [file for batch in own for file, _ in batch])
        for together, batch in zip(groups, own, strict=True):
            parts: list[Tensor] = []
            # A broken file stops all processes.
            distributed.on_all_ranks(partial(parts.extend, itertools.islice(read, len(batch))))
            batch_B3HW = torch.cat(parts).to(learner.device)
            # A copy: what is sent, and kept, is not the whole tensor that it is a part of.
            summary_BD = learner.backbone.summary(tokens(learner, batch_B3HW.float() / 255)).cpu().clone()
            summaries += distributed.all_gather(summary_BD)[: len(together)]
            done(min(len(images), step * len(summaries)))
        return torch.cat(summaries), torch.tensor([number for _, number in images])

    def _retrieval(self, learner: VisionLearner, revisited: Revisited) -> dict[str, float | None]:
        """Measure instance retrieval by the mean of the patch tokens, with each image at its own proportions."""
        queries, gallery, longer = revisited.queries, revisited.gallery, self.config.retrieval.size
        rows = []

        def images() -> Iterator[tuple[Tensor, float]]:
            """Yield images, with the pixels of their longer sides: a query's part is scaled by its whole image's factor."""
            for query in queries:
                whole_3HW = read_image(query.file)
                part_3HW = query.part_of(whole_3HW)
                yield part_3HW, longer * max(part_3HW.shape[1:]) / max(whole_3HW.shape[1:])
            yield from ((read_image(file), longer) for file in gallery)

        with steady("        retrieval", len(queries) + len(gallery), "images") as done:
            for image_3HW, pixels in images():
                rows.append(patch_mean(learner, image_3HW, pixels))
                done(len(rows))
        mean_ND = torch.cat(rows)
        return revisited_map(mean_ND[: len(queries)], mean_ND[len(queries) :], queries)


def _tasks(train: Pool, test: Pool) -> list[LabelKind]:
    """Return the kinds of labels that both have. Raises UserError if there are none, or if their classes differ."""
    kinds: tuple[LabelKind, ...] = ("segmentation", "depth")
    tasks = [kind for kind in kinds if all(pool.having(kind) for pool in (train, test))]
    if "segmentation" in tasks and train.classes != test.classes:
        raise UserError(
            f"evaluation.train has {train.classes} classes and evaluation.test {test.classes}: give both images of one data set"
        )
    if not tasks:
        raise UserError(
            "evaluation.train and evaluation.test have different kinds of labels: give both classes, or both depths"
        )
    return tasks
