"""Sets for probes alone: retrieval in the form of revisited Oxford and Paris, and folders of classes."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from models import tiny_vision_model
from PIL import Image
from worlds import vision_recipe

from vpretrain import UserError, run_recipe
from vpretrain.compare.tables import table
from vpretrain.vision.assemble import assemble
from vpretrain.vision.config import ClassesConfig, DinoConfig
from vpretrain.vision.evaluation.classification import read_classes_of_folders
from vpretrain.vision.evaluation.evaluate import Evaluation
from vpretrain.vision.evaluation.retrieval import Query, interpolated_precision, read_revisited, revisited_map
from vpretrain.vision.model.backbone import Backbone
from vpretrain.vision.model.dino import DinoLearner


def save_revisited(root, change=lambda truth: None):
    """Two queries over six pictures; returns the file of the ground truth."""
    (root / "jpg").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ("q0", "q1", *(f"p{i}" for i in range(6))):
        Image.fromarray(draw.integers(0, 255, (30, 50, 3), dtype=np.uint8)).save(root / "jpg" / f"{name}.jpg")
    truth = {
        "imlist": [f"p{i}" for i in range(6)],
        "qimlist": ["q0", "q1"],
        "gnd": [
            {"bbx": [2.0, 3.0, 40.0, 28.0], "easy": [0], "hard": [1, 2], "junk": [3]},
            {"bbx": [0, 0, 20, 20], "easy": [], "hard": [4], "junk": []},
        ],
    }
    change(truth)
    (root / "gnd.json").write_text(json.dumps(truth))
    return str(root / "gnd.json")


def by_definition(ranking, wanted, ignored):
    """Area under precision against recall, by trapezoids, walking down a ranking."""
    kept = [picture for picture in ranking if picture not in ignored]
    area, recall, precision, found = 0.0, 0.0, 1.0, 0
    for position, picture in enumerate(kept):
        found += picture in wanted
        now = found / (position + 1), found / len(wanted)
        area += (now[1] - recall) * (precision + now[0]) / 2
        precision, recall = now
    return area


def test_the_three_protocols_are_the_published_ones():
    torch.manual_seed(0)
    queries_QD, gallery_GD = torch.randn(5, 8), torch.randn(40, 8)
    draw, queries = np.random.default_rng(1), []
    for _ in range(5):
        some = draw.permutation(40)[:12].tolist()
        queries.append(Query(None, (0, 0, 1, 1), {"easy": some[:4], "hard": some[4:8], "junk": some[8:]}))
    ours = revisited_map(queries_QD, gallery_GD, queries)
    similarity = torch.nn.functional.normalize(queries_QD) @ torch.nn.functional.normalize(gallery_GD).T
    for protocol, wanted, ignored in (
        ("easy", ["easy"], ["hard", "junk"]),
        ("medium", ["easy", "hard"], ["junk"]),
        ("hard", ["hard"], ["easy", "junk"]),
    ):
        expected = [
            by_definition(
                row.argsort(descending=True).tolist(),
                {i for grade in wanted for i in query.grades[grade]},
                {i for grade in ignored for i in query.grades[grade]},
            )
            for row, query in zip(similarity, queries, strict=True)
        ]
        assert ours[protocol] == pytest.approx(sum(expected) / 5)
    assert len(set(ours.values())) == 3


def test_a_perfect_ranking_scores_one_and_a_query_without_answer_does_not_count():
    assert interpolated_precision(torch.tensor([True, True, False])) == 1.0
    features = torch.eye(3)
    found = Query(None, (0, 0, 1, 1), {"easy": [0], "hard": [], "junk": []})
    nothing = Query(None, (0, 0, 1, 1), {"easy": [], "hard": [], "junk": [1]})
    figures = revisited_map(features[:2], features, [found, nothing])
    assert figures == {"easy": 1.0, "medium": 1.0, "hard": None}


def test_a_run_with_retrieval_and_classes_reports_them(tmp_path):
    for split in ("train", "test"):
        for kind, shade in (("dark", 20), ("light", 220)):
            folder = tmp_path / split / kind
            folder.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40 + i, 32), (shade + i, shade, shade)).save(folder / f"{i}.png")

    def swapped(truth):
        truth["gnd"].reverse()

    recipe = vision_recipe(
        tmp_path,
        arm="fixed",
        budget={"steps": 1},
        evaluation={
            "train": [{"scenes": 12, "seed": 4, "size": 32}],
            "test": [{"scenes": 6, "seed": 5, "size": 32}],
            "size": [24, 32],
            "probe_steps": 20,
            "classes": {"train": str(tmp_path / "train"), "test": str(tmp_path / "test"), "limit": 3},
            "retrieval": {
                "oxford": save_revisited(tmp_path / "oxford"),
                "paris": save_revisited(tmp_path / "paris", swapped),
            },
        },
    )
    result = run_recipe(recipe)
    assert result.accuracy == 1.0  # of light against dark; the scenes' own categories are not so easy
    assert 0 < result.oxford_hard <= 1
    assert result.oxford_hard != result.paris_hard > 0
    assert result.retrieval_map is None  # one camera a scene
    view = table({"arms": {"fixed": result.figures}}, recipe)
    assert {"Oxford easy", "Paris hard"} <= {column.header for column in view.columns}
    assert "mAP" not in {column.header for column in view.columns}
    assert "(images of generated scenes, accuracy of test)" in str(view.title)


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    def refusal(change):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(UserError) as caught:
            read_revisited(save_revisited(root, change))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no ground truth of revisited Oxford or Paris" in refusal(lambda t: t.pop("imlist"))
    assert "there is no image 77" in refusal(lambda t: t["gnd"][0]["easy"].append(77))
    assert "is no name of an image" in refusal(lambda t: t["imlist"].append("../../secret"))
    assert "is missing: images lie in jpg/ beside gnd.json" in refusal(lambda t: t["imlist"].append("p9"))
    assert "is empty" in refusal(lambda t: t["gnd"][0].update(bbx=[5, 5, 5, 9]))
    with pytest.raises(UserError, match="is a pickle, which may run code"):
        read_revisited(str(tmp_path / "gnd_roxford5k.pkl"))
    with pytest.raises(UserError, match="cannot read"):
        read_revisited(str(tmp_path / "gnd_none.json"))
    with pytest.raises(UserError, match="it is no file"):
        read_revisited(os.devnull)  # as /dev/zero, which has no end


def test_a_box_takes_every_pixel_that_it_touches_and_must_lie_inside():
    image = torch.arange(20).expand(3, 10, 20)
    assert Query(None, (2.6, 0.2, 3.4, 0.4), {}).part_of(image).tolist() == [[[2, 3]]] * 3
    assert Query(None, (-5, -5, 400, 400), {}).part_of(image).shape == (3, 10, 20)
    with pytest.raises(UserError, match="lies outside its image"):
        Query("a.jpg", (30, 0, 40, 5), {}).part_of(image)


def test_a_querys_part_is_scaled_like_its_whole_image(tmp_path, monkeypatch):
    """The images have 50 x 30 pixels, the parts 38 x 25 and 20 x 20; sides are cut to whole patches of 8."""
    retrieval = {"oxford": save_revisited(tmp_path / "oxford"), "size": 40}
    evaluation = Evaluation(vision_recipe(tmp_path, evaluation={"retrieval": retrieval}).evaluation)
    learner, seen = DinoLearner(Backbone(tiny_vision_model()), DinoConfig(outputs=8, hidden=8, bottleneck=8)), []
    features = learner.features
    monkeypatch.setattr(learner, "features", lambda x: seen.append(tuple(x.shape[2:])) or features(x))
    evaluation._retrieval(learner, evaluation.retrieval["oxford"])
    assert seen == [(16, 24), (16, 16), *[(24, 40)] * 6]  # of 20 x 30, 16 x 16 and 24 x 40 pixels


def test_folders_of_classes_must_agree(tmp_path):
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / folder).mkdir(parents=True)
    config = ClassesConfig(train=str(tmp_path / "train"), test=str(tmp_path / "test"))
    with pytest.raises(UserError, match=r"no images in .*train/a"):
        read_classes_of_folders(config)
    (tmp_path / "test/c").mkdir()
    with pytest.raises(UserError, match=r"lacks the class c of"):
        read_classes_of_folders(config)
    with pytest.raises(UserError, match="must hold a folder of images for each of two classes"):
        read_classes_of_folders(ClassesConfig(train=str(tmp_path / "train/a"), test=str(tmp_path / "test")))
    with pytest.raises(UserError, match=r"no folder at .*trains: did you mean .*train\? give one with a subfolder"):
        read_classes_of_folders(ClassesConfig(train=str(tmp_path / "trains"), test=str(tmp_path / "test")))
    with pytest.raises(ValueError, match="train and test are one folder"):
        ClassesConfig(train="all", test="./all")


def test_one_folder_of_classes_is_divided_by_names_and_copies_count_once(tmp_path):
    for name in ("light", "dark"):
        (tmp_path / name).mkdir()
        for number in range(11):
            colour = (number, 0, 200 if name == "light" else 0)
            Image.new("RGB", (8, 8), colour).save(tmp_path / name / f"{number:02}.png")
        copy = (tmp_path / name / "03.png").read_bytes()
        (tmp_path / name / "03 copy.png").write_bytes(copy)
    train, test = read_classes_of_folders(ClassesConfig(train=str(tmp_path)))
    assert [[number for _, number in part] for part in (train, test)] == [[0] * 9 + [1] * 9, [0] * 2 + [1] * 2]
    contents = [file.read_bytes() for file, _ in train + test]
    assert len(set(contents)) == len(contents) == 22
    less_train, less_test = read_classes_of_folders(ClassesConfig(train=str(tmp_path), limit=1))
    assert less_train == [train[0], train[9]]
    assert less_test == [test[0], test[2]]
    for file, number in train:
        if number:
            file.unlink()
    with pytest.raises(UserError, match="light has fewer than 5 different images, of which one would be for the test"):
        read_classes_of_folders(ClassesConfig(train=str(tmp_path)))


def test_a_size_may_have_two_sides(tmp_path):
    wide = {"train": [{"scenes": 8, "seed": 4}], "test": [{"scenes": 4, "seed": 5}], "probe_steps": 2}
    with pytest.raises(UserError, match=r"evaluation\.size=30 is no multiple of the learner's patch of 8 pixels"):
        assemble(vision_recipe(tmp_path, evaluation=wide | {"size": [32, 30]}))
