"""The parts of an evaluation that processes divide."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from distributed.processes import together
from distributed.test_equal import recipe_of
from PIL import Image

from vpretrain.errors import UserError
from vpretrain.run.train import begin
from vpretrain.vision.config import ClassesConfig
from vpretrain.vision.evaluation import evaluate
from vpretrain.vision.evaluation.features import central_part

pytestmark = pytest.mark.distributed


def with_classes(recipe, root):
    """The recipe with five images of two classes, in batches of two."""
    for split in ("train", "test"):
        for kind, count in (("dark", 3), ("light", 2)):
            folder = root / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.new("RGB", (40, 32 + i), (50 * i, 100 if kind == "light" else 20, 30)).save(folder / f"{i}.png")
    classes = ClassesConfig(train=str(root / "train"), test=str(root / "test"), size=32)
    evaluation = recipe.evaluation.model_copy(update={"classes": classes, "batch_size": 2})
    return recipe.model_copy(update={"evaluation": evaluation})


def classified(recipe):
    """Summaries and classes as every process has them, and how many files it has read; or why it failed."""
    read = []

    def counted(file, shape):
        read.append(file)
        return central_part(file, shape)

    learner, evaluation = begin(recipe).learner, evaluate.Evaluation(recipe.evaluation)
    with mock.patch.object(evaluate, "central_part", counted):
        try:
            summary_ND, class_N = evaluation._classified(learner, evaluation.classes[0], lambda seen: None)
        except UserError as error:
            return type(error).__name__, str(error)
    return summary_ND.tolist(), class_N.tolist(), len(read)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_processes_divide_the_images_of_classes(tmp_path, tokenizer, parallel):
    recipes = [
        with_classes(recipe_of("vision-dino", kind, tmp_path, tokenizer, "run"), tmp_path) for kind in ("ddp", parallel)
    ]
    ((expected, classes, _),) = together(1, classified, recipes[0])
    assert classes == [0, 0, 0, 1, 1]
    for summaries, classes_too, read in together(2, classified, recipes[1]):
        torch.testing.assert_close(torch.tensor(summaries), torch.tensor(expected))
        assert classes_too == classes
        assert read == 3  # one of the first two batches, and the last, of one image, which both have


def test_a_broken_file_of_classes_stops_all_processes(tmp_path, tokenizer):
    recipe = with_classes(recipe_of("vision-dino", "ddp", tmp_path, tokenizer, "run"), tmp_path)
    (tmp_path / "train/dark/2.png").write_bytes(b"broken")
    first, second = together(2, classified, recipe)
    assert second[0] == "Unreadable"  # this process has read it
    assert "2.png" in second[1]
    assert first == ("FailedOnAnotherRank", second[1])
