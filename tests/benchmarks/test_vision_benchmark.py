"""The vision benchmark's recipe and table."""

from __future__ import annotations

import argparse

import pytest

import benchmarks.vision.__main__ as vision
from benchmarks.vision.settings import PAPER
from benchmarks.vision.table import markdown
from vpretrain.compare.entry import parse_entry
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


def test_controls_have_the_settings_of_what_they_control():
    own = {entry.arm: entry.settings for entry in map(parse_entry, vision.ARMS)}
    assert own["regulariser-only"] == own["v-paper"] == PAPER
    assert own["random-feedback"] == own["v"] == own["random-mask"] == own["fixed"] == ()


def test_tables_do_not_spell_out_the_settings_of_the_paper():
    results = results_of(0.02, -0.03)
    designed = vision.ARMS[2]
    results["arms"][designed] = results["arms"]["v"]
    for key in results["of"]:
        results["differences"][key] |= {designed: {"fixed": found(0.1)}}
    rows = markdown(vision.summary(results)).splitlines()
    assert cells(rows[4])[1:5] == ["v-paper (its own settings)", "0.5000", "+0.1000 [+0.0900, +0.1100]", "-"]


def found(mean, reach=0.01):
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def differences_of(v_minus_fixed):
    return {"fixed": {"v": found(-v_minus_fixed)}, "v": {"fixed": found(v_minus_fixed)}}


def results_of(miou, depth_rmse, *, after_images=(0.02, -0.03)):
    """Made-up results: V minus fixed at the end, and after equal images."""

    def matched(at, *values):
        of = zip(("miou", "depth_rmse"), values, strict=True)
        means = {"fixed": 0.5, "v": 0.6}
        return {"at": at, **{key: {"arms": means, "differences": differences_of(value)} for key, value in of}}

    figures = {"miou": 0.5, "depth_rmse": 0.4, "accuracy": 0.6, "retrieval_map": 0.4, "steps": 9}
    return {
        "seeds": [0, 1],
        "arms": {"fixed": figures | {"images_per_s": 5.0}, "v": figures | {"images_per_s": 4.9}},
        "of": {"miou": "segmentation", "depth_rmse": "depth"},
        "differences": {"miou": differences_of(miou), "depth_rmse": differences_of(depth_rmse)},
        "matched": {"seconds": matched(119.0, miou, depth_rmse), "images": matched(80, *after_images)},
    }


def cells(line):
    return [cell.strip() for cell in line.split("|")]


def test_differences_are_those_of_the_arm_of_the_row():
    report = vision.summary(results_of(0.02, -0.03), [0.04, 0.06])
    at_end, after, matched, said = markdown(report).strip().split("\n\n")
    _, _, fixed, v = at_end.splitlines()
    assert cells(fixed)[3:5] == ["-", "+0.0200 [+0.0100, +0.0300]"]
    assert cells(v)[3:8] == [
        "+0.0200 [+0.0100, +0.0300]", "-", "0.4000", "-0.0300 [-0.0400, -0.0200]", "-",
    ]  # fmt: skip
    assert after == "After equal images (80):"
    _, _, fixed, v = matched.splitlines()
    assert cells(fixed)[1:6] == ["fixed", "0.5000", "-", "0.5000", "-"]
    assert cells(v)[1:6] == ["v", "0.6000", "+0.0200 [+0.0100, +0.0300]", "0.6000", "-0.0300 [-0.0400, -0.0200]"]
    off_0 = "95 % intervals off 0; ahead also after Holm's correction"
    ahead = f"v is ahead of fixed in mIoU and RMSE, behind in nothing ({off_0}): met"
    assert said.splitlines() == [
        f"- equal seconds: {ahead}",
        f"- equal images: {ahead}",
        "- images/s within the run: v has 0.952 of fixed's, at least 0.95 was to be shown: met",
    ]


@pytest.mark.parametrize(
    ("miou", "rmse", "ahead", "behind", "met"),
    [
        (0.02, 0.005, ["miou"], [], True),
        (0.005, -0.02, ["depth_rmse"], [], True),  # a smaller error is better
        (0.005, -0.005, [], [], False),  # both intervals hold 0
        (0.02, 0.02, ["miou"], ["depth_rmse"], False),
        (-0.02, -0.02, ["depth_rmse"], ["miou"], False),
    ],
)
def test_v_must_be_ahead_in_one_metric_and_behind_in_none(miou, rmse, ahead, behind, met):
    bars = vision.summary(results_of(miou, rmse))["bars"]
    assert bars["equal seconds"] == {"ahead": ahead, "behind": behind, "met": met}
    assert bars["equal images"] == {"ahead": ["miou", "depth_rmse"], "behind": [], "met": True}
    assert set(bars) == {"equal seconds", "equal images"}  # no steps were timed


def test_v_is_ahead_only_where_the_correction_leaves_it_so():
    found = {
        "miou": {"low": 0.01, "high": 0.03, "p_holm": 0.06},
        "depth_rmse": {"low": 0.01, "high": 0.03, "p_holm": 0.06},
    }
    assert vision.bars.quality(found) == {"ahead": [], "behind": ["depth_rmse"], "met": False}


def test_the_speed_is_the_mean_over_seeds_of_ordinary_time_over_all_of_it():
    bar = vision.summary(results_of(0.02, 0.0), [0.0, 0.25])["bars"]["images/s within the run"]
    assert (bar["ratio"], bar["seeds"]) == (pytest.approx(0.9), pytest.approx([1.0, 0.8]))
    assert not bar["met"]


def test_without_v_or_fixed_nothing_is_judged():
    results = results_of(0.02, -0.03)
    for part in (results, *(results["matched"][axis][key] for axis in results["matched"] for key in results["of"])):
        part["arms"] = {"v": part["arms"]["v"]}
    assert vision.summary(results)["bars"] == {}


def test_the_timed_steps_are_those_of_v_with_its_whole_tilt_and_each_seed(monkeypatch):
    timed = []
    monkeypatch.setattr(
        vision, "profile", lambda recipe, steps: timed.append((recipe, steps)) or {"added": {"ratio": recipe.seed / 10}}
    )
    options = argparse.Namespace(quick=False, validation=False, minutes=2.0, settings=[])
    recipe = vision.recipe_of(options)
    assert vision.added_by_v(recipe, [0, 1]) == [0.0, 0.1]
    assert [(own.arm, own.value.strength, own.seed, steps) for own, steps in timed] == [
        ("v", 1.0, seed, 4 * recipe.value.every_steps) for seed in (0, 1)
    ]
    assert timed[0][0].directory != recipe.directory  # the comparison's runs lie there
