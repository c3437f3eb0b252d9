"""`vpretrain init` on a folder of images."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from models import tiny_vision_model
from PIL import Image
from vision.test_own_labels import CLASSES, save_own
from vision.test_readers import save_ade20k, save_nyuv2, save_splits

from vpretrain.cli.parser import main
from vpretrain.recipe import load_recipe
from vpretrain.vision.config import FeedbackConfig, ValueConfig
from vpretrain.vision.inspection import draft

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart-vision.yaml"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Six images of 40 x 60 pixels in the working directory, beside a learner with patches of 8."""
    monkeypatch.chdir(tmp_path)
    tiny_vision_model().save_pretrained("learner")
    draw = np.random.default_rng(1)
    (tmp_path / "photos").mkdir()
    for number in range(6):
        image = draw.integers(0, 255, (60, 44, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"photos/{number}.png")
    return ["init", "mine.yaml", "--learner", "./learner", "--stream", "photos"]


def ranges(sources):
    return [(source.split, source.skip, source.limit) for source in sources]


def test_a_folder_of_images_makes_a_vision_recipe_that_check_passes(photos, tmp_path, capsys):
    save_ade20k(tmp_path / "ade", 10)
    assert main([*photos, "--feedback", "ade"]) == 0
    shown = capsys.readouterr().out
    assert "stream: photos, 6 images" in shown
    assert "photos/1.png: 44 x 60" in shown
    recipe = load_recipe("mine.yaml")
    assert recipe.modality == "vision"
    assert (recipe.stream.batch_size, recipe.stream.global_size, recipe.stream.local_size) == (6, 40, 40)
    assert (recipe.feedback.segmentation, recipe.feedback.depth) == (1, 0)
    assert recipe.feedback.batch_size == 2
    assert ranges(recipe.feedback.heads + recipe.feedback.meta) == [("training", 0, 4), ("training", 4, 2)]
    assert ranges(recipe.evaluation.train + recipe.evaluation.test) == [("training", 0, 4), ("training", 6, 4)]
    assert main(["check", "mine.yaml"]) == 0


@pytest.mark.parametrize("package", ["kornia", "torchmetrics", "sklearn", "PIL"])
def test_without_the_extra_every_command_on_images_names_it(photos, tmp_path, capsys, monkeypatch, package):
    save_ade20k(tmp_path / "ade", 10)
    assert main([*photos, "--feedback", "ade"]) == 0
    monkeypatch.setitem(sys.modules, package, None)
    for command in (
        [*photos, "--feedback", "ade", "--overwrite"],
        ["check", "mine.yaml"],
        ["run", "mine.yaml"],
        ["evaluate", "./learner", "mine.yaml"],
    ):
        assert main(command) == 2, command
        assert 'pip install "vpretrain[vision]"' in " ".join(capsys.readouterr().err.split()), command


@pytest.mark.parametrize("labelled", ["ade", "scenes:6"])
def test_a_text_file_among_the_images_makes_no_language_recipe(photos, tmp_path, labelled):
    (tmp_path / "photos/README.txt").write_text("Where these were taken.")
    save_ade20k(tmp_path / "ade", 10)
    (tmp_path / "ade/objectInfo150.txt").write_text("which SceneParse150 comes with")
    assert main([*photos, "--feedback", labelled]) == 0
    assert load_recipe("mine.yaml").modality == "vision"


def test_an_archive_of_which_an_image_is_broken_makes_one_as_well(photos, tmp_path):
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.writestr("0.png", b"")
        for file in sorted((tmp_path / "photos").iterdir()):
            archive.write(file, f"photos/{file.name}")
    save_ade20k(tmp_path / "ade", 10)
    assert main([*photos[:-1], "photos.zip", "--feedback", "ade"]) == 0
    recipe = load_recipe("mine.yaml")
    assert (recipe.modality, recipe.stream.sources[0].path) == ("vision", "photos.zip")
    assert recipe.stream.global_size == 40
    assert main(["check", "mine.yaml"]) == 0


def test_a_set_with_a_test_split_is_tested_on_that(photos, tmp_path):
    save_ade20k(tmp_path / "ade", 10)
    save_ade20k(tmp_path / "ade", 3, split="validation")
    assert main([*photos, "--feedback", "ade"]) == 0
    recipe = load_recipe("mine.yaml")
    assert ranges(recipe.feedback.heads + recipe.feedback.meta) == [("training", 0, 7), ("training", 7, 3)]
    assert ranges(recipe.evaluation.train) == [("training", 0, 10)]
    assert ranges(recipe.evaluation.test) == [("validation", 0, None)]
    assert main(["check", "mine.yaml"]) == 0


def test_depths_steer_and_another_set_is_evaluated_on(photos, tmp_path):
    save_nyuv2(tmp_path / "nyu.mat", 6, height=48, width=64)
    save_ade20k(tmp_path / "ade", 8)
    assert main([*photos, "--feedback", "nyu.mat", "--evaluation", "ade"]) == 0
    recipe = load_recipe("mine.yaml")
    assert (recipe.feedback.segmentation, recipe.feedback.depth) == (0, 1)
    assert [(s.nyuv2, s.skip, s.limit) for s in recipe.feedback.meta] == [("nyu.mat", 4, 2)]
    assert ranges(recipe.evaluation.train + recipe.evaluation.test) == [("training", 0, 4), ("training", 4, 4)]
    assert main(["check", "mine.yaml"]) == 0


def test_nyuv2_is_tested_on_its_official_split(photos, tmp_path):
    save_nyuv2(tmp_path / "nyu.mat", 13, height=48, width=64)
    save_splits(tmp_path / "splits.mat", range(1, 11), [11, 12, 13])
    assert main([*photos, "--feedback", "nyu.mat"]) == 0
    recipe = load_recipe("mine.yaml")
    assert ranges(recipe.feedback.heads + recipe.feedback.meta) == [("train", 0, 7), ("train", 7, 3)]
    assert ranges(recipe.evaluation.train + recipe.evaluation.test) == [("train", 0, 10), ("test", 0, None)]
    assert {s.splits for sources in recipe.roles.values() for s in sources} == {None, "splits.mat"}
    assert main(["check", "mine.yaml"]) == 0


def roles(recipe):
    feedback, evaluation = recipe.feedback, recipe.evaluation
    return [*feedback.heads, *feedback.meta, *evaluation.train, *evaluation.test]


def test_own_labelled_images_steer_and_their_classes_are_counted(photos, tmp_path, capsys):
    save_own(tmp_path / "own", 10, depths=True)
    assert main([*photos, "--feedback", "own"]) == 0
    assert "feedback: own, 10 labelled images, classes and depths (5 classes)" in capsys.readouterr().out
    recipe = load_recipe("mine.yaml")
    assert (recipe.feedback.segmentation, recipe.feedback.depth) == (1, 0)
    assert {(one.labelled, one.classes) for one in roles(recipe)} == {("own", CLASSES)}
    assert [(one.skip, one.limit) for one in roles(recipe)] == [(0, 4), (4, 2), (0, 4), (6, 4)]
    assert main(["check", "mine.yaml"]) == 0


def test_copies_are_left_out_so_that_no_two_roles_share_an_image(photos, tmp_path, capsys):
    save_own(tmp_path / "own", 8)
    for number in range(8):
        for folder, suffix in (("images", "jpg"), ("masks", "png")):
            shutil.copy(tmp_path / f"own/{folder}/{number}.{suffix}", tmp_path / f"own/{folder}/copy{number}.{suffix}")
    assert main([*photos, "--feedback", "own"]) == 0
    assert "8 labelled images, classes (5 classes); 8 copies of them are left out" in capsys.readouterr().out
    assert "loss mask" not in (tmp_path / "mine.yaml").read_text()
    assert main(["check", "mine.yaml"]) == 0


def test_an_evaluation_that_shares_images_with_the_feedback_is_refused(photos, tmp_path, capsys):
    save_own(tmp_path / "own", 6)
    save_own(tmp_path / "same", 6)
    assert main([*photos, "--feedback", "own", "--evaluation", "same"]) == 2
    told = capsys.readouterr().err
    assert ": keep them apart with skip and limit, or remove the copies" in told
    assert ", a copy of own/images/" in told
    assert not (tmp_path / "mine.yaml").exists()


def test_generated_scenes_do_for_a_first_try(photos):
    assert main([*photos, "--feedback", "scenes:6"]) == 0
    recipe = load_recipe("mine.yaml")
    assert (recipe.feedback.segmentation, recipe.feedback.depth) == (1, 0)
    assert [(one.scenes, one.seed) for one in roles(recipe)] == [(6, 1), (6, 2), (6, 3), (6, 4)]
    assert recipe.feedback.batch_size == 3  # half of them, so that others judge what these give
    assert main(["check", "mine.yaml"]) == 0


def test_the_recipe_has_the_settings_with_which_v_was_ahead(photos, monkeypatch):
    assert main([*photos, "--feedback", "scenes:6"]) == 0
    ours, quickstart = load_recipe("mine.yaml"), load_recipe(QUICKSTART)
    own = {"heads", "meta", "size", "batch_size", "head_steps"}  # the quickstart is too short to fit the heads further
    assert ours.feedback.model_dump(exclude=own) == quickstart.feedback.model_dump(exclude=own)
    own = {"batch_size", "subset"}
    assert ours.value.model_dump(exclude=own) == quickstart.value.model_dump(exclude=own)
    assert ValueConfig().subset == quickstart.value.subset == f"last-{draft._BLOCKS}"
    assert ours.value.subset == "last-3"  # the learner has no more
    monkeypatch.setattr(FeedbackConfig.model_fields["batch_size"], "default", 2)
    assert main([*photos, "--feedback", "scenes:6", "--overwrite"]) == 0
    assert (ours.feedback.batch_size, load_recipe("mine.yaml").feedback.batch_size) == (3, 2)


def test_a_sheet_shows_two_images_of_each_role_and_their_labels(photos, tmp_path, capsys):
    save_own(tmp_path / "own", 5)
    assert main([*photos, "--feedback", "own"]) == 0
    assert "images:  mine.png" in capsys.readouterr().out
    with Image.open("mine.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (3 * 196, 4 * 196, 3)  # two images, or two with their labels, of 192 pixels in frames
    assert pixels[:196, 392:].min() == 255  # nothing beside the two of the stream
    assert (pixels[196 + 190, 196 + 2 : 196 + 194] == 0).all()  # the lowest rows of a mask are ignored
    assert not (pixels[196 + 20, 196 + 2 : 196 + 194] == 0).all(axis=1).any()
    (tmp_path / "mine.yaml").unlink()
    assert main([*photos, "--feedback", "own"]) == 2
    assert "mine.png exists: give the recipe another name, or --overwrite" in capsys.readouterr().err
    assert main([*photos, "--feedback", "own", "--overwrite"]) == 0


def test_templates_are_for_text(photos, tmp_path, capsys):
    save_own(tmp_path / "own", 5)
    assert main([*photos, "--feedback", "own", "--text", "caption"]) == 2
    assert "photos holds images: leave out --text, --prompt and --response" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ("photos", "has no labels that vision reads: give"),
        (
            "by-class",
            "reads (it looks like a folder per class: cats, dogs; vision's feedback needs a class for each pixel",
        ),
        ("few", "has 3 labelled"),
        ("nyu.mat", "put NYUv2's official splits.mat beside it"),
    ],
)
def test_labels_that_cannot_steer_get_one_line(photos, tmp_path, capsys, feedback, message):
    save_ade20k(tmp_path / "few", 3)
    save_nyuv2(tmp_path / "nyu.mat", 6, height=48, width=64)
    for name in ("cats", "dogs"):
        shutil.copytree("photos", f"by-class/{name}")
    assert main([*photos, "--feedback", feedback]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
