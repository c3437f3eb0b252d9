"""The vision benchmark's recipe and table."""

from __future__ import annotations

import argparse

import benchmarks.vision.__main__ as vision
from benchmarks.vision.table import markdown
from vpretrain.recipe import load_recipe


def test_choices_are_made_on_other_scenes_than_results():
    options = argparse.Namespace(quick=False, validation=False, minutes=2.0, settings=["threads=1"])
    test = vision.recipe_of(options)
    validation = vision.recipe_of(argparse.Namespace(**vars(options) | {"validation": True}))
    quickstart = load_recipe("recipes/quickstart-vision.yaml", [])
    seeds = [recipe.evaluation.test[0].seed for recipe in (test, validation, quickstart)]
    assert len(set(seeds)) == 3
    roles = [*test.stream.sources, *test.feedback.heads, *test.feedback.meta, *test.evaluation.train]
    assert not set(seeds) & {source.seed for source in roles}
    assert test.optimizer.schedule == "constant"  # otherwise nothing is read off after equal images
    assert test.threads == 1


def test_differences_are_those_of_the_arm_of_the_row():
    def found(mean):
        return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}

    arms = {
        name: {"miou": 0.5, "depth_rmse": 0.4, "accuracy": 0.6, "retrieval_map": 0.4, "steps": 9}
        for name in ("fixed", "v")
    }
    differences = {
        key: {"fixed": {"v": found(-value)}, "v": {"fixed": found(value)}}
        for key, value in (("miou", 0.02), ("depth_rmse", -0.03))
    }
    matched = {"at": 80, **{key: {"differences": of} for key, of in differences.items()}}
    results = {
        "seeds": [0, 1],
        "arms": arms,
        "of": ["miou", "depth_rmse"],
        "differences": differences,
        "matched": {"images": matched},
    }
    for name, speed in (("fixed", 5.0), ("v", 4.9)):
        arms[name]["images_per_s"] = speed
    _, _, fixed, v, *_, after = markdown(vision.summary(results)).strip().splitlines()
    assert [cell.strip() for cell in fixed.split("|")][3:5] == ["-", "+0.0200 [+0.0100, +0.0300]"]
    assert [cell.strip() for cell in v.split("|")][3:8] == [
        "+0.0200 [+0.0100, +0.0300]", "-", "0.4000", "-0.0300 [-0.0400, -0.0200]", "-",
    ]  # fmt: skip
    assert after.startswith("After equal images (80): V minus fixed +0.0200")
