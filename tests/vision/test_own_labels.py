"""Own labelled images: a folder with images/, masks/ and perhaps depths/."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from vision.test_pixels import exif
from worlds import vision_recipe

from vpretrain import UserError, run_recipe
from vpretrain.recipe import parse_recipe
from vpretrain.vision.assemble import assemble
from vpretrain.vision.config import SourceConfig
from vpretrain.vision.data.feedback import VisionFeedback
from vpretrain.vision.data.fingerprint import fingerprints
from vpretrain.vision.data.own import Own, own_images
from vpretrain.vision.data.source import Pool
from vpretrain.vision.model.batch import IGNORED

CLASSES = 5


def save_own(root, count=6, *, depths=False, seed=0):
    """Images of 64 x 48 pixels; each mask has class 4 on the right, and on the left its number modulo 4, below ignored."""
    draw = np.random.default_rng(seed)
    for folder in ("images", "masks", "depths") if depths else ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = draw.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / f"images/{number}.jpg")
        mask = np.full((48, 64), number % 4, dtype=np.uint8)
        mask[:, 32:], mask[40:] = 4, IGNORED
        Image.fromarray(mask).save(root / f"masks/{number}.png")
        if depths:
            depth = np.full((48, 64), 1500 + number, dtype=np.uint16)
            depth[:, :8] = 0
            Image.fromarray(depth).save(root / f"depths/{number}.png")
    return str(root)


def source(root, **settings):
    return {"labelled": str(root), "classes": CLASSES} | settings


def whole(root, **settings):
    """All images of a source at their own size."""
    pool = Pool([SourceConfig(**source(root, **settings))], None)
    return pool, pool[range(len(pool))]


def test_classes_are_those_of_the_masks(tmp_path):
    pool, found = whole(save_own(tmp_path))
    assert (len(pool), pool.classes, pool.having("depth")) == (6, CLASSES, [])
    assert sorted(label.unique().tolist() for label in found.label_BHW) == sorted([n % 4, 4, IGNORED] for n in range(6))
    assert float(found.depth_BHW.max()) == 0
    assert len(set(found.scene_B.tolist())) == 6


def test_depths_are_millimetres_and_0_is_unknown(tmp_path):
    pool, found = whole(save_own(tmp_path, depths=True))
    assert pool.having("depth") == list(range(6))
    assert float(found.depth_BHW[:, :, :8].max()) == 0
    known = sorted(found.depth_BHW[:, 0, 20].tolist())
    assert known == pytest.approx([1.5 + number / 1000 for number in range(6)], abs=1e-3)  # kept in half precision


def test_images_are_counted_along_the_hashes_of_their_names(tmp_path):
    root = save_own(tmp_path, 20)
    _, first = whole(root, limit=12)
    _, rest = whole(root, skip=12)
    together = torch.cat([first.image_B3HW, rest.image_B3HW])
    assert torch.equal(together, whole(root)[1].image_B3HW)
    left = torch.cat([first.label_BHW, rest.label_BHW])[:, 0, 0].tolist()
    assert left != [number % 4 for number in range(20)]  # not in the order of the files
    (tmp_path / "images/0.jpg").unlink()  # whose absence moves no other
    found = whole(root)[1].image_B3HW
    assert torch.equal(found, torch.stack([i for i in together if any(torch.equal(i, other) for other in found)]))


def test_a_mask_and_depths_turn_with_their_image(tmp_path):
    save_own(tmp_path, 1, depths=True)
    stored = np.zeros((48, 64, 3), dtype=np.uint8)
    stored[:, 32:] = 255  # where class 4 is
    Image.fromarray(stored).save(tmp_path / "images/0.jpg", exif=exif(6))
    _, found = whole(tmp_path)
    image_3HW, class_HW, depth_HW = found.image_B3HW[0], found.label_BHW[0], found.depth_BHW[0]
    assert image_3HW.shape[1:] == class_HW.shape == depth_HW.shape == (64, 48)
    assert ((image_3HW[0] > 128) == (class_HW == 4))[class_HW != IGNORED].all()
    assert float(depth_HW[:8].max()) == 0  # what was on the left is above
    assert float(depth_HW[8:].min()) > 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("turned_before", [False, True])
def test_labels_turn_with_images_of_any_format(tmp_path, suffix, orientation, turned_before):
    """Labels that are upright already stay as they are where sizes tell, which are those of the image as it is shown."""
    save_own(tmp_path, 1, depths=True)
    (tmp_path / "images/0.jpg").unlink()
    stored = np.zeros((48, 64), dtype=np.uint8)
    stored[:24, :16] = 255
    Image.fromarray(stored).save(tmp_path / f"images/0.{suffix}", exif=exif(orientation))
    marked = stored > 0
    if turned_before and orientation > 4:
        marked = {5: marked.T, 6: np.rot90(marked, 3), 7: np.rot90(marked, 2).T, 8: np.rot90(marked)}[orientation]
    Image.fromarray(np.where(marked, 3, 1).astype(np.uint8)).save(tmp_path / "masks/0.png")
    Image.fromarray(np.where(marked, 3000, 1000).astype(np.uint16)).save(tmp_path / "depths/0.png")
    _, found = whole(tmp_path)
    shown = found.image_B3HW[0, 0] > 128
    assert shown.shape == ((48, 64) if orientation < 5 else (64, 48))
    assert torch.equal(found.label_BHW[0] == 3, shown)
    assert torch.equal(found.depth_BHW[0] == 3, shown)


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    root = tmp_path / "own"
    save_own(root, 1, depths=True)
    mask, depth = root / "masks/0.png", root / "depths/0.png"

    def refusal():
        with pytest.raises(UserError) as caught:
            whole(root)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    Image.fromarray(np.ones((48, 64), dtype=np.uint8)).save(depth)
    assert "it has mode L, and depths are millimetres in a PNG file of 16 bits" in refusal()
    depth.unlink()
    assert "0.jpg has no labels" in refusal()
    shutil.rmtree(root / "depths")
    Image.fromarray(np.full((48, 64), 7, dtype=np.uint8)).save(mask)
    assert "has class 7: with classes: 5, masks have 0 to 4, and 255 for what is ignored" in refusal()
    Image.fromarray(np.ones((64, 48), dtype=np.uint8)).save(mask)
    assert "has 48 x 64 pixels and its image 64 x 48: give them the same size" in refusal()
    Image.new("RGB", (64, 48)).save(mask)
    assert "is no map of classes but an image of 3 channels" in refusal()
    Image.new("RGB", (64, 48)).save(root / "images/0.jpeg")
    assert "have the same labels" in refusal()
    (root / "images/0.jpeg").unlink()
    mask.unlink()
    assert "0.jpg has no labels" in refusal()
    shutil.rmtree(root)
    assert "labelled names a folder with images/ and masks/" in refusal()
    for name in ("cats", "dogs", "owls"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(root / name / "0.jpg")
    assert (
        "(it looks like a folder per class: cats, dogs, ...; vision's feedback needs a class for each pixel"
        in refusal()
    )


def test_of_copies_the_first_counts(tmp_path):
    root = save_own(tmp_path, 6)
    pool, before = whole(root)
    for copy in ("z", "copies/0"):
        for folder, suffix in (("images", "jpg"), ("masks", "png")):
            (tmp_path / folder / "copies").mkdir(exist_ok=True)
            shutil.copy(tmp_path / f"{folder}/0.{suffix}", tmp_path / f"{folder}/{copy}.{suffix}")
    again, after = whole(root)
    assert len(again) == len(pool)
    assert sorted(image.sum().item() for image in after.image_B3HW) == sorted(i.sum().item() for i in before.image_B3HW)


@pytest.mark.parametrize("wrong", [{"labelled": "x"}, {"classes": 4, "scenes": 3}, {"labelled": "x", "classes": 256}])
def test_a_source_has_both_or_neither_of_folder_and_classes(wrong):
    with pytest.raises(ValueError, match="classes"):
        SourceConfig(**wrong)


def recipe_over(root, tmp_path, heads=3, **changes):
    limits = [heads, 3, 3, 3]
    parts = [[source(root, skip=sum(limits[:number]), limit=limit)] for number, limit in enumerate(limits)]
    return vision_recipe(
        tmp_path,
        **changes,
        stream={"sources": [{"path": f"{root}/images"}]},
        feedback={"heads": parts[0], "meta": parts[1], "batch_size": 2, "segmentation": 4.0, "depth": 16.0},
        evaluation={"train": parts[2], "test": parts[3]},
    )


def test_a_run_on_them(tmp_path):
    recipe = recipe_over(save_own(tmp_path / "own", 12, depths=True), tmp_path)
    result = run_recipe(recipe)
    assert result.miou is not None
    assert result.depth_rmse is not None
    assert result.accuracy is None
    (test,) = [one for one in fingerprints(recipe) if one["role"] == "evaluation, test"]
    assert (test["rows"], test["files"], test["classes"], test["skip"]) == (3, 36, CLASSES, 9)


@pytest.mark.parametrize("broken", ["mask", "image"])
def test_a_broken_file_of_the_feedback_ends_a_run_before_its_first_step(tmp_path, monkeypatch, broken):
    root = tmp_path / "own"
    save_own(root, 43, depths=True)
    file = own_images(SourceConfig(**source(root)))[33]  # that no look at a few images finds
    if broken == "mask":
        Image.fromarray(np.full((48, 64), 7, dtype=np.uint8)).save(root / f"masks/{file.stem}.png")
    else:
        file.write_bytes(file.read_bytes()[:300])
    monkeypatch.setattr(VisionFeedback, "next", lambda self: pytest.fail("the feedback is used"))
    with pytest.raises(UserError, match=rf"{file.stem}\.(png has class 7|jpg: .*[Tt]runcated)"):
        run_recipe(recipe_over(root, tmp_path, heads=34))
    control = assemble(recipe_over(root, tmp_path, heads=34, arm="fixed"))
    monkeypatch.setattr(Own, "read", lambda self, index: pytest.fail("the control uses no feedback"))
    control.warm_up()


def test_an_image_has_one_role_under_any_name(tmp_path):
    save_own(tmp_path / "own", 12, depths=True)
    data = recipe_over(tmp_path / "own", tmp_path).model_dump()
    other = tmp_path / "other"
    save_own(other, 3, seed=1)
    data["evaluation"]["test"] = [source(other)]
    assemble(parse_recipe(data))
    shutil.copy(tmp_path / "own/images/3.jpg", other / "images/1.jpg")
    roles = (
        r"(feedback\.heads|feedback\.meta|evaluation\.train) and evaluation\.test share the image "
        r".*other/images/1\.jpg, a copy of .*own/images/3\.jpg: keep them apart"
    )
    with pytest.raises(UserError, match=roles):
        assemble(parse_recipe(data))
    for number in range(12):
        for folder, suffix in (("images", "jpg"), ("masks", "png"), ("depths", "png")):
            (other / folder).mkdir(exist_ok=True)
            shutil.copy(tmp_path / f"own/{folder}/{number}.{suffix}", other / f"{folder}/{number}.{suffix}")
    with pytest.raises(UserError, match=r", a copy of .*, and 2 more: keep them apart"):
        assemble(parse_recipe(data))
    data["evaluation"]["test"] = [source(tmp_path / "own", skip=9, limit=3)]
    data["evaluation"]["train"] = data["feedback"]["heads"]
    assemble(parse_recipe(data))  # probes may be fitted on images of the feedback
    data["evaluation"]["test"] = [source(tmp_path / "own", skip=5)]
    with pytest.raises(UserError, match=r"feedback\.meta and evaluation\.test share the image \S+: keep them apart"):
        assemble(parse_recipe(data))
