"""ADE20K and NYUv2 in the formats that they come in, and one clear line for what is wrong with them."""

from __future__ import annotations

import hashlib
import math

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from worlds import vision_recipe

from vpretrain import UserError
from vpretrain.errors import Unreadable
from vpretrain.files import read_lines
from vpretrain.recipe import parse_recipe
from vpretrain.vision.assemble import assemble
from vpretrain.vision.config import SourceConfig
from vpretrain.vision.data.readers import Ade20k, Nyuv2, nyuv2_numbers
from vpretrain.vision.data.source import Pool, _LabelledScenes, _part, check_disjoint
from vpretrain.vision.model.batch import IGNORED


def save_ade20k(root, count=6, split="training"):
    """SceneParse150: JPEG pictures, PNG maps with 0 for other and 1 to 150 for classes."""
    draw = np.random.default_rng(0)
    for part in ("images", "annotations"):
        (root / part / split).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        label = np.zeros((48, 64), dtype=np.uint8)
        label[:, 16:32], label[:, 32:] = 1 + i, 150
        Image.fromarray(draw.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(
            root / "images" / split / f"ADE_{i}.jpg"
        )
        Image.fromarray(label).save(root / "annotations" / split / f"ADE_{i}.png")
    return str(root)


def save_nyuv2(file, count=6, *, height=480, width=640, depth=2.0, by_number=False):
    """nyu_depth_v2_labeled.mat: a MATLAB 7.3 file, which is HDF5, with axes from last to first."""
    with h5py.File(file, "w") as data:
        images = np.zeros((count, 3, width, height), dtype=np.uint8)
        images[:, 0, :, : height // 2] = 200  # the upper half is red
        if by_number:
            images[:, 0, :, height // 2 :] = np.arange(count)[:, None, None]
        depths = np.full((count, width, height), depth, dtype=np.float32)
        depths[:, :, : height // 2] = 2 * depth
        data["images"], data["depths"] = images, depths
    return str(file)


def save_splits(file, train, test):
    """splits.mat: the numbers of images, counted from 1."""
    savemat(file, {"trainNdxs": np.array(train)[:, None], "testNdxs": np.array(test)[:, None]})
    return str(file)


def read(shape, **source):
    """All images of a source."""
    pool = Pool([SourceConfig(**source)], shape)
    return pool[range(len(pool))]


def test_ade20k_classes_are_remapped_as_the_paper_does(tmp_path):
    pool = Pool([SourceConfig(ade20k=save_ade20k(tmp_path))], None)
    assert (len(pool), pool.classes) == (6, 150)
    data = pool[range(6)]
    assert sorted(label.unique().tolist() for label in data.label_BHW) == [[i, 149, IGNORED] for i in range(6)]
    assert float(data.depth_BHW.max()) == 0
    assert len(set(data.scene_B.tolist())) == 6


def test_ade20k_which_is_sorted_by_scene_is_counted_along_the_hashes_of_its_names(tmp_path):
    root = save_ade20k(tmp_path, 40)
    first = [int(label.min()) for label in read(None, ade20k=root, limit=20).label_BHW]
    rest = [int(label.min()) for label in read(None, ade20k=root, skip=20).label_BHW]
    assert sorted(first + rest) == list(range(40))
    assert 5 <= sum(number < 20 for number in first) <= 15  # not the first half of the files
    hashed = sorted(range(40), key=lambda i: hashlib.sha256(f"ADE_{i}".encode()).digest())
    assert first == hashed[:20]


def test_nyuv2_is_split_as_its_authors_did(tmp_path):
    file = save_nyuv2(tmp_path / "nyu.mat", 8, height=48, width=64, by_number=True)
    train, test = [1, 2, 5, 7, 8], [3, 4, 6]  # counted from 1, as MATLAB does
    splits = save_splits(tmp_path / "splits.mat", train, test)
    found = read((48, 64), nyuv2=file, splits=splits, split="test")
    assert sorted(found.image_B3HW[:, 0, 40, 0].tolist()) == [n - 1 for n in test]
    found = read((48, 64), nyuv2=file, splits=splits, split="train", skip=1, limit=3)
    hashed = sorted((n - 1 for n in train), key=lambda number: hashlib.sha256(str(number).encode()).digest())
    assert found.image_B3HW[:, 0, 40, 0].tolist() == hashed[1:4]


def test_the_images_of_a_split_of_nyuv2_come_from_all_over_the_file():
    train = list(range(1, 41))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "scipy.io.loadmat", lambda file: {"trainNdxs": np.array(train)[:, None], "testNdxs": np.array([])}
        )
        source = SourceConfig(nyuv2="nyu.mat", splits="splits.mat", split="train", limit=20)
        first = nyuv2_numbers(source, 40)
        rest = nyuv2_numbers(source.model_copy(update={"skip": 20, "limit": None}), 40)
    assert sorted(first + rest) == list(range(40))
    assert 5 <= sum(number < 20 for number in first) <= 15  # not the first half of the file


def refusal_of(data):
    """What is said of a recipe, in one line."""
    with pytest.raises(UserError) as caught:
        check_disjoint(parse_recipe(data).roles)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_that_mixes_official_test_images_of_nyuv2_is_refused(tmp_path):
    data = recipes_of("nyuv2", tmp_path).model_dump()
    file, splits = str(tmp_path / "nyu.mat"), str(tmp_path / "splits.mat")
    (test,) = data["evaluation"]["test"]
    heads, meta, train, scenes = ([x] for x in (
        {"nyuv2": file, "limit": 3}, {"nyuv2": file, "skip": 3, "limit": 3}, {"nyuv2": file, "limit": 6},
        {"scenes": 4, "seed": 9},
    ))  # fmt: skip
    part = {"nyuv2": file, "skip": 9}
    data["feedback"] |= {"heads": heads, "meta": meta}
    data["evaluation"] |= {"train": scenes, "test": [part]}
    mixed = refusal_of(data)
    assert "feedback.heads and evaluation.test take parts of" in mixed
    assert mixed.endswith("give both splits, with split: train and split: test")
    data["evaluation"]["test"] = [test]
    assert "feedback.heads and evaluation.test count the images of" in refusal_of(data)
    data["evaluation"]["test"] = [{"scenes": 4, "seed": 10}]
    check_disjoint(parse_recipe(data).roles)  # the feedback alone may take parts of the file
    data["feedback"] |= {"heads": [{"scenes": 4, "seed": 11}], "meta": [{"scenes": 4, "seed": 12}]}
    data["evaluation"] |= {"train": train, "test": [part]}
    assert "evaluation.train and evaluation.test take parts of" in refusal_of(data)
    data["evaluation"]["train"] = [{"nyuv2": file, "splits": splits, "split": "train"}]
    data["evaluation"]["test"] = [test | {"splits": str(tmp_path / "others.mat")}]
    assert "count the images of" in refusal_of(data)  # two files of splits may contradict each other
    data["evaluation"]["test"] = [test | {"splits": str(tmp_path / "here" / ".." / "splits.mat")}]
    check_disjoint(parse_recipe(data).roles)  # one file, by two paths


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_of_nyuv2_needs_the_file_that_names_its_images(tmp_path, split):
    data = recipes_of("nyuv2", tmp_path).model_dump()
    data["evaluation"]["test"] = [{"nyuv2": str(tmp_path / "nyu.mat"), "split": split}]
    assert f"nyuv2 has no split {split} without splits: give the official splits.mat" in refusal_of(data)


def test_labelled_images_are_read_as_they_are_needed(tmp_path, monkeypatch):
    pool = Pool([SourceConfig(ade20k=save_ade20k(tmp_path))], (16, 16))
    seen = []
    whole = Ade20k.read
    monkeypatch.setattr(Ade20k, "read", lambda self, index: seen.append(index) or whole(self, index))
    assert torch.equal(pool[[4, 1]].image_B3HW, pool[[4, 1]].image_B3HW)
    assert seen == [4, 1]  # once each: the first ones are kept
    pool._left = 0
    pool[[2]], pool[[2]]
    assert seen == [4, 1, 2, 2]


@pytest.mark.parametrize("kind", [Ade20k, Nyuv2])
def test_files_that_threads_have_read_before_are_the_same_and_kept(tmp_path, monkeypatch, kind):
    nyuv2 = save_nyuv2(tmp_path / "nyu.mat", 40, height=48, width=64, by_number=True)
    source = {"nyuv2": nyuv2} if kind is Nyuv2 else {"ade20k": save_ade20k(tmp_path, 40)}
    expected = read((16, 16), **source)
    pool = Pool([SourceConfig(**source)], (16, 16))
    pool[[3]]
    seen = []
    whole = kind.read
    monkeypatch.setattr(kind, "read", lambda self, index: seen.append(index) or whole(self, index))
    pool.read_files("feedback.meta")
    found = pool[range(40)]
    assert sorted(seen) == [number for number in range(40) if number != 3]  # once each
    for name in ("image_B3HW", "label_BHW", "depth_BHW"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_generated_images_are_no_files(monkeypatch):
    pool = Pool([SourceConfig(scenes=2, size=32)], (16, 16))
    monkeypatch.setattr(_LabelledScenes, "read", lambda self, index: pytest.fail("read"))
    pool.read_files("feedback.meta")


def test_nyuv2_has_its_axes_and_eigens_crop(tmp_path):
    file = save_nyuv2(tmp_path / "nyu.mat")
    data = read((480, 640), nyuv2=file)
    assert torch.equal(data.image_B3HW, read(None, nyuv2=file).image_B3HW)
    assert data.image_B3HW.shape == (6, 3, 480, 640)
    assert float(data.image_B3HW[0, 0, :240].min()) == 200  # red above
    assert float(data.image_B3HW[0, 0, 240:].max()) == 0
    depth = data.depth_BHW[0]
    assert depth[150, 320] == 4.0
    assert depth[400, 320] == 2.0
    valid = (depth > 0).nonzero()
    assert valid.amin(0).tolist() == [45, 41]  # Eigen's crop
    assert valid.amax(0).tolist() == [470, 600]
    whole = read((64, 64), nyuv2=file, eigen_crop=False)
    assert float(whole.depth_BHW.min()) == 2.0
    assert len(read((16, 16), nyuv2=file, skip=2, limit=3)) == 3


def test_images_are_scaled_alike_and_cut_and_never_squeezed(tmp_path):
    """The map has a class from column 16 to 31 of 64, of 48 rows: at 24 rows, from column 8 to 15 of 32."""
    root = save_ade20k(tmp_path, 12)
    labels = read((24, 24), ade20k=root).label_BHW
    seen = set()
    for label in labels:
        known = (label < 149).any(0).nonzero()[:, 0].tolist()  # the columns of the first class
        other = (label == IGNORED).any(0).nonzero()[:, 0].tolist()  # those before it
        assert label.shape == (24, 24)
        assert len(other) <= 8
        assert known == list(range(len(other), len(other) + 8))
        seen.add(len(other))
    assert len(seen) > 4  # parts from all over the image
    assert torch.equal(labels, read((24, 24), ade20k=root).label_BHW)


def test_an_image_and_its_labels_are_cut_at_the_same_place():
    column = torch.arange(64, dtype=torch.uint8).expand(24, 64)
    image, label, depth = _part((column.expand(3, 24, 64), column, column.half()), (24, 24), 0.3)
    assert label[0].tolist() == list(range(12, 36))
    assert torch.equal(image, label.expand(3, 24, 24))
    assert torch.equal(depth, label.half())


def recipes_of(kind, root):
    if kind == "ade20k":
        source = {"ade20k": save_ade20k(root / "ade", 12)}
        path, tasks = str(root / "ade" / "images"), {"segmentation": 4.0, "depth": 0.0}
    else:
        splits = save_splits(root / "splits.mat", [1, 2, 4, 5, 7, 8, 10, 11, 12], [3, 6, 9])
        source = {"nyuv2": save_nyuv2(root / "nyu.mat", 12, height=48, width=64), "splits": splits, "split": "train"}
        path, tasks = save_ade20k(root / "pictures"), {"segmentation": 0.0, "depth": 16.0}
    parts = [[source | {"skip": 3 * i, "limit": 3}] for i in range(4)]
    if kind == "nyuv2":
        parts[3] = [source | {"split": "test"}]
    return vision_recipe(
        root,
        stream={"sources": [{"path": path}]},
        feedback={"heads": parts[0], "meta": parts[1], "batch_size": 2, **tasks},
        evaluation={"train": parts[2], "test": parts[3]},
    )


@pytest.mark.parametrize("kind", ["ade20k", "nyuv2"])
def test_a_run_on_either(tmp_path, kind):
    from vpretrain import run_recipe

    result = run_recipe(recipes_of(kind, tmp_path))
    assert (result.miou is None) == (kind == "nyuv2")
    assert (result.depth_rmse is None) == (kind == "ade20k")
    assert result.accuracy is None
    assert result.retrieval_map is None
    assert set(result.test_images[0]) == {"scene", "miou" if kind == "ade20k" else "depth_rmse"}


def test_both_share_an_evaluation_and_each_picture_is_judged_by_what_it_has(tmp_path):
    from vpretrain import run_recipe
    from vpretrain.compare.results import summarise

    ade, nyu = recipes_of("ade20k", tmp_path), recipes_of("nyuv2", tmp_path)
    sources = {role: [*getattr(ade.evaluation, role), *getattr(nyu.evaluation, role)] for role in ("train", "test")}
    recipe = ade.model_copy(update={"evaluation": ade.evaluation.model_copy(update=sources | {"points": 2})})
    result = run_recipe(recipe)
    assert [set(picture) - {"scene"} for picture in result.test_images] == [{"miou"}] * 3 + [{"depth_rmse"}] * 3
    assert all(math.isfinite(result.figures[key]) for key in ("miou", "depth_rmse"))
    scores = read_lines(recipe.directory / "scores.jsonl")
    runs = {"step-0": [scores[0]], "fixed": [result.figures], "v": [result.figures]}
    found = summarise(runs, {"step-0": [[]], "fixed": [scores], "v": [scores]}, recipe)
    assert set(found["of"]) == {"miou", "depth_rmse"}
    for differences in (
        found["differences"],
        {key: found["matched"]["images"][key]["differences"] for key in found["of"]},
    ):
        assert all(of_key["v"]["fixed"]["mean"] == 0 for of_key in differences.values())


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    root = tmp_path / "ade"
    save_ade20k(root, 3)

    def refusal(**source):
        with pytest.raises(UserError) as caught:
            read((16, 16), **source)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    annotation = root / "annotations/training/ADE_1.png"
    Image.new("RGB", (64, 48)).save(annotation)
    assert "is no map of classes but an image of 3 channels" in refusal(ade20k=str(root))
    Image.fromarray(np.full((48, 64), 200, dtype=np.uint8)).save(annotation)
    assert "has class 200: SceneParse150 has 0 to 150" in refusal(ade20k=str(root))
    Image.fromarray(np.full((64, 48), 1, dtype=np.uint8)).save(annotation)
    assert "has 48 x 64 pixels and its image 64 x 48: give them the same size" in refusal(ade20k=str(root))
    annotation.unlink()
    assert "cannot read the map of classes" in refusal(ade20k=str(root))
    assert "ade20k names the folder" in refusal(ade20k=str(tmp_path / "none"))
    assert "nyuv2 names nyu_depth_v2_labeled.mat" in refusal(nyuv2=str(tmp_path / "none.mat"))
    (tmp_path / "other.mat").write_bytes(b"no MATLAB")
    file = save_nyuv2(tmp_path / "nyu.mat", 4)
    assert "splits names NYUv2's official splits.mat" in refusal(
        nyuv2=file, splits=str(tmp_path / "other.mat"), split="test"
    )
    savemat(tmp_path / "long.mat", {"trainNdxs": [1], "testNdxs": [9]})
    assert "names image 9, and" in refusal(nyuv2=file, splits=str(tmp_path / "long.mat"), split="test")
    savemat(tmp_path / "zero.mat", {"trainNdxs": [0, 1], "testNdxs": [2]})
    assert "nyu.mat has 1 to 4: another file's split" in refusal(
        nyuv2=file, splits=str(tmp_path / "zero.mat"), split="train"
    )
    savemat(tmp_path / "shared.mat", {"trainNdxs": [1, 2, 3], "testNdxs": [3, 4, 2]})
    assert "has image 2 in both trainNdxs and testNdxs" in refusal(
        nyuv2=file, splits=str(tmp_path / "shared.mat"), split="test"
    )
    savemat(tmp_path / "empty.mat", {"trainNdxs": [1], "testNdxs": []})
    assert "no images are left after skip=0" in refusal(nyuv2=file, splits=str(tmp_path / "empty.mat"), split="test")
    file = save_nyuv2(tmp_path / "nyu.mat", 4)
    assert "no images are left after skip=9" in refusal(nyuv2=file, skip=9)


def test_tasks_without_labels_are_refused(tmp_path):
    both = recipes_of("ade20k", tmp_path).model_dump()
    both["feedback"]["depth"] = 1.0
    with pytest.raises(UserError, match=r"no pixel of feedback\.heads has a valid depth: set feedback\.depth=0"):
        assemble(parse_recipe(both))
    deep = save_nyuv2(tmp_path / "far.mat", 4, height=48, width=64, depth=50.0)
    both = recipes_of("nyuv2", tmp_path).model_dump()
    both["feedback"]["meta"] = [{"nyuv2": deep}]
    with pytest.raises(UserError, match=r"no pixel of feedback\.meta has a valid depth"):
        assemble(parse_recipe(both))


def test_feedback_of_two_sets_of_classes_is_refused(tmp_path):
    data = recipes_of("ade20k", tmp_path).model_dump()
    data["feedback"]["heads"] = [{"scenes": 4, "seed": 2}]
    with pytest.raises(UserError, match=r"feedback\.heads has 8 classes and feedback\.meta 150: give both"):
        assemble(parse_recipe(data))


def test_probes_need_labels_of_one_kind_and_set_in_both_roles(tmp_path):
    data = recipes_of("ade20k", tmp_path).model_dump()
    data["evaluation"]["train"] = [{"scenes": 4, "seed": 2}]
    with pytest.raises(UserError, match=r"evaluation\.train has 8 classes and evaluation\.test 150: give both"):
        assemble(parse_recipe(data))
    data["evaluation"]["train"] = recipes_of("nyuv2", tmp_path).evaluation.model_dump()["train"]
    with pytest.raises(UserError, match=r"evaluation\.train and evaluation\.test have different kinds of labels"):
        assemble(parse_recipe(data))


def test_batches_that_are_read_ahead_are_those_that_are_read_one_by_one(tmp_path):
    source = SourceConfig(ade20k=save_ade20k(tmp_path, 40))
    rows_of = [[(7 * batch + 3 * i) % 40 for i in range(4)] for batch in range(40)]
    for kept in (0, 40_000, 2**30):
        one, ahead = (Pool([source], (16, 16)) for _ in range(2))
        one._left = ahead._left = kept
        expected = [one[rows] for rows in rows_of]
        found = list(ahead.batches(rows_of))
        for ours, theirs in zip(found, expected, strict=True):
            for name in ("image_B3HW", "label_BHW", "depth_BHW", "scene_B"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert (list(ahead._kept), ahead._left) == (list(one._kept), one._left)


def test_a_broken_image_that_is_read_ahead_stops_where_its_turn_comes(tmp_path):
    pool = Pool([SourceConfig(ade20k=save_ade20k(tmp_path, 6))], (16, 16))
    pool.readers[0].files[3].write_bytes(b"broken")
    batches = pool.batches([[1, 2], [0, 3], [4, 5]])
    assert len(next(batches)) == 2
    with pytest.raises(Unreadable, match="cannot read the image"):
        next(batches)


def test_images_of_a_split_of_nyuv2_have_one_role(tmp_path):
    data = recipes_of("nyuv2", tmp_path).model_dump()
    (meta,) = data["feedback"]["meta"]
    data["feedback"]["meta"] = [meta | {"skip": 2}]
    assert "feedback.heads and feedback.meta share images of" in refusal_of(data)
    data["feedback"]["meta"], data["evaluation"]["test"] = [meta], [meta | {"skip": 5, "limit": None}]
    assert "feedback.meta and evaluation.test share images of" in refusal_of(data)
    data["evaluation"]["test"] = [meta | {"split": "test"}]
    check_disjoint(parse_recipe(data).roles)  # the same numbers of another split


def test_labelled_pictures_have_one_role(tmp_path):
    data = recipes_of("ade20k", tmp_path).model_dump()
    (source,) = data["evaluation"]["test"]
    data["evaluation"]["test"] = [source | {"skip": 5, "limit": None}]
    with pytest.raises(UserError, match=r"feedback\.meta and evaluation\.test share images of .*: keep them apart"):
        assemble(parse_recipe(data))
    data["evaluation"]["test"], data["evaluation"]["train"] = [source], data["feedback"]["heads"]
    assemble(parse_recipe(data))  # probes may be fitted on pictures of the feedback


def test_labels_do_not_go_through_the_stream(tmp_path):
    with pytest.raises(UserError, match="is labelled: the stream takes scenes, hub, or a path"):
        assemble(vision_recipe(tmp_path, stream={"sources": [{"nyuv2": "x.mat"}]}))
    assert read((16, 16), scenes=2, seed=9, size=16).image_B3HW.shape == (2, 3, 16, 16)
