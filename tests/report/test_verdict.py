"""The verdict: one sentence with its interval, what became worse, and what makes arms unequal."""

from __future__ import annotations

import json

import pytest
from report.directories import DIFFERENCE, OPPOSITE, recipe_data, write_comparison, write_json, write_run
from report.page import made

from vpretrain.compare.alike import trained_as
from vpretrain.compare.changes import changes, headline
from vpretrain.recipe import load_recipe, parse_recipe, save_recipe
from vpretrain.report.collect import collect
from vpretrain.report.verdict import notes, verdict_lines, warnings


def verdict(study):
    """Return the lines of the verdict as one."""
    return " ".join(verdict_lines(study))


def test_the_verdict_is_one_sentence_with_the_paired_interval(tmp_path):
    write_comparison(tmp_path / "study")
    text = verdict(collect(tmp_path / "study"))
    assert text == (
        "After equal training time, v is better than one-hot on held-out answers: v minus one-hot is -0.0917 nats per token, "
        "95 % interval [-0.1517, -0.0497], paired over 8 problems and 2 seeds (lower is better). "
        "v made 40 steps with 5 meta updates, one-hot 40 steps. Nothing that was measured is worse than in the untouched "
        "learner. Nothing else that was measured is worse than in one-hot."
    )


def test_the_verdict_names_what_became_worse_with_and_without_an_interval(tmp_path):
    results = write_comparison(tmp_path / "study", seeds=(0,))
    results["arms"]["v"] |= {"pass_at_1": 0.0, "retention_nll": 2.9}
    fall = {"mean": -0.0625, "low": -0.196, "high": 0.071}
    results["differences"]["solved"] = {"v": {"step-0": fall, "one-hot": fall}}
    write_json(tmp_path / "study/results.json", results)
    said = verdict(collect(tmp_path / "study"))
    assert "greedy decoding solves (Pass@1) v cannot be told from one-hot: -0.0625 of the problems" in said
    assert said.endswith(
        "Worse than in the untouched learner: Pass@1 0.0% against 6.2% (may be chance), "
        "retention NLL 2.9000 against 2.8301 (no interval). Worse than in one-hot: retention NLL 2.9000 against 2.8301 "
        "(no interval)."
    )
    results["differences"]["solved"]["v"]["step-0"] = {"mean": -0.0625, "low": -0.1, "high": -0.01}
    results["arms"]["one-hot"]["retention_nll"] = 3.0
    write_json(tmp_path / "study/results.json", results)
    said = verdict(collect(tmp_path / "study"))
    assert "Pass@1 0.0% against 6.2%, retention NLL" in said
    assert said.endswith("Nothing else that was measured is worse than in one-hot.")


@pytest.mark.parametrize(
    ("whole", "tempered", "remains"),
    [
        (DIFFERENCE, -0.0596, "; 65 % of the difference remains"),
        (DIFFERENCE, 0.01, "; 0 % of the difference remains"),
        (DIFFERENCE | {"high": 0.01}, -0.0596, None),  # there may be no difference
    ],
)
def test_the_verdict_tells_how_much_of_a_difference_one_temperature_leaves(tmp_path, whole, tempered, remains):
    results = write_comparison(tmp_path / "study", seeds=(0,))
    results["differences"]["nll"]["v"]["one-hot"] = whole
    left = {"mean": tempered, "low": tempered - 0.05, "high": tempered + 0.05}
    results["differences"]["nll_tempered"] = {"v": {"one-hot": left}}
    write_json(tmp_path / "study/results.json", results)
    said = verdict(collect(tmp_path / "study"))
    assert ". On held-out answers after one temperature per arm v" in said
    assert said.count("of the difference remains") == (remains is not None)
    assert remains is None or remains in said


def test_with_several_seeds_a_fall_of_retention_has_an_interval(tmp_path):
    results = write_comparison(tmp_path / "study")
    results["arms"]["v"]["retention_nll"] = 2.9
    rise = {"mean": 0.0699, "low": 0.05, "high": 0.09}
    results["over_seeds"] = {"retention NLL": {"v": {"step-0": rise, "one-hot": rise | {"low": -0.01}}}}
    write_json(tmp_path / "study/results.json", results)
    assert verdict(collect(tmp_path / "study")).endswith(
        "Worse than in the untouched learner: retention NLL 2.9000 against 2.8301. "
        "Worse than in one-hot: retention NLL 2.9000 against 2.8301 (may be chance)."
    )


@pytest.fixture
def never_tilted(tmp_path):
    """A comparison whose `v` trained as one-hot in fewer steps; one-hot is better, and v after equal tokens."""
    results = write_comparison(tmp_path / "study", seeds=(0,))
    results["arms"]["v"] |= {"steps": 7, "meta_updates": 0, "mean_alpha": 0.0, "warning": "too short"}
    results["differences"]["nll"]["v"]["one-hot"] = OPPOSITE | {"p_holm": 2.8e-12}
    of = {"one-hot": {"v": OPPOSITE}, "v": {"one-hot": DIFFERENCE}}
    results["matched"] = {"tokens": {"at": 3584, "nll": {"differences": of, "arms": {}}}}
    write_json(tmp_path / "study/results.json", results)
    return tmp_path / "study"


def test_an_arm_that_trained_as_the_baseline_is_not_compared_with_it(never_tilted):
    study = collect(never_tilted)
    assert verdict(study) == (
        "v trained exactly as one-hot throughout: the feedback never moved its targets, so that this comparison says nothing "
        "about V. v made 7 steps, one-hot 40 steps; from such differences alone, v minus one-hot is +0.0917 nats per token. "
        "Nothing that was measured is worse than in the untouched learner."
    )
    assert not [line for line in notes(study) if "3,584" in line]
    assert headline(study.results, study.recipe) == "v trained exactly as one-hot: this says nothing about V"
    page = made(never_tilted, never_tilted)
    assert page.tables["What became better and what became worse"][0] == ["figure", "step-0", "v", "v against step-0"]
    assert {row[3] for row in page.tables["Differences"][1:]} == {"end of budget"}
    text = page.text()
    assert text.index("says nothing about V") < text.index("too short") < text.index("v made 7 steps")


@pytest.mark.parametrize(
    ("label", "of", "alpha", "same"),
    [
        ("v", "v", 0.0, True),
        ("v:value.align=dot", "v", 0.0, True),
        ("random-feedback", "random-feedback", 0.0, True),
        ("v", "v", 1e-9, False),
        ("v:optimizer.lr=1e-3", "v", 0.0, False),
        ("v-mixed-in", "v-mixed-in", 0.0, False),  # another stream
        ("selection", "selection", 0.0, False),
        ("step-0", "one-hot", 0.0, False),
    ],
)
def test_an_arm_trained_as_the_baseline_if_nothing_else_differs(tmp_path, label, of, alpha, same):
    recipe = parse_recipe(recipe_data(tmp_path))
    results = {"arms": {label: {"arm": of, "mean_alpha": alpha}}}
    assert trained_as(results, recipe, label) == ("one-hot" if same else label)


@pytest.mark.parametrize(("retention", "direction"), [(2.8302, "equal"), (2.8329, "equal"), (2.8331, "worse")])
def test_a_figure_without_an_interval_is_worse_only_beyond_a_thousandth(tmp_path, retention, direction):
    results = write_comparison(tmp_path / "study", seeds=(0,))
    results["arms"]["v"]["retention_nll"] = retention
    found = changes(results, collect(tmp_path / "study").recipe, "v", "one-hot")
    assert [change.direction for change in found if change.title == "retention NLL"] == [direction]


def test_a_metric_that_is_nan_is_worse(tmp_path):
    results = write_comparison(tmp_path / "study", seeds=(0,))
    results["arms"]["v"] |= {"pass_at_1": float("nan"), "retention_nll": float("nan")}
    found = changes(results, collect(tmp_path / "study").recipe, "v", "one-hot")
    assert {c.title: c.direction for c in found if "nan" in c.own} == {"Pass@1": "worse", "retention NLL": "worse"}
    found = changes(results, collect(tmp_path / "study").recipe, "one-hot", "v")
    assert {c.title: c.direction for c in found if "nan" in c.other} == {"Pass@1": "better", "retention NLL": "better"}


@pytest.mark.parametrize(
    ("difference", "relation"),
    [
        (DIFFERENCE, "is better than"),
        (OPPOSITE, "is worse than"),
        ({"mean": 0.0144, "low": -0.0024, "high": 0.0313}, "cannot be told from"),
        ({"mean": 0.01, "low": 0.0, "high": 0.03}, "cannot be told from"),
        (dict.fromkeys(("mean", "low", "high"), float("nan")), "cannot be told from"),
        (DIFFERENCE | {"p_holm": 0.049}, "is better than"),
        (DIFFERENCE | {"p_holm": 0.051}, "cannot be told from"),
    ],
)
def test_the_verdict_goes_no_further_than_its_interval(tmp_path, difference, relation):
    results = write_comparison(tmp_path / "study", seeds=(0,))
    results["differences"]["nll"]["v"]["one-hot"] = difference
    results["matched"] = {"seconds": {"at": 120.0, "nll": {"differences": {"v": {"one-hot": DIFFERENCE}}, "arms": {}}}}
    write_json(tmp_path / "study/results.json", results)
    study = collect(tmp_path / "study")
    assert f", v {relation} one-hot on" in verdict(study)
    agrees = relation == "is better than"
    assert ("But after 120 seconds v is better than one-hot: -0.0917" in verdict(study)) == (not agrees)
    assert "problems of one seed, which says nothing about other seeds" in verdict(study)


def test_a_higher_figure_is_better_where_its_modality_defines_it_so(tmp_path):
    from worlds import vision_recipe

    results = write_comparison(tmp_path / "study")
    recipe = vision_recipe(tmp_path, name="study", output=str(tmp_path))
    save_recipe(recipe, tmp_path / "study/recipe.yaml")
    keys = ("miou", "depth_rmse", "depth_abs_rel", "depth_delta_1", "accuracy", "retrieval_map", "images_per_s")
    arms = {
        name.replace("one-hot", "fixed"): arm | dict.fromkeys(keys) | {"images": arm["tokens"]}
        for name, arm in results["arms"].items()
    }
    gain = {"v": {"fixed": OPPOSITE, "step-0": OPPOSITE}}
    results |= {"arms": arms, "differences": {"miou": gain}, "of": {"miou": "mIoU per image"}}
    write_json(tmp_path / "study/results.json", results)
    for run in (tmp_path / "study").glob("*/result.json"):
        run.write_text(run.read_text().replace("problems", "test_images"))
    said = verdict(collect(tmp_path / "study"))
    assert "v is better than fixed on segmentation: v minus fixed is +0.0917 mIoU" in said
    assert "paired over 8 test images and 2 seeds" in said
    for run in (tmp_path / "study").glob("*/result.json"):
        found = json.loads(run.read_text())
        found["test_images"] = [{**image, "scene": n // 2} for n, image in enumerate(found["test_images"])]
        write_json(run, found)
    assert "paired over 4 scenes and 2 seeds" in verdict(collect(tmp_path / "study"))
    results["differences"]["depth_rmse"] = gain
    results["of"]["depth_rmse"] = "metres of RMSE per image"
    write_json(tmp_path / "study/results.json", results)
    study = collect(tmp_path / "study")
    assert ". On depth v is worse than fixed: +0.0917 metres of RMSE per image" in verdict(study)
    assert [line.split(" per ")[0] for line in notes(study)[:2]] == [
        "v minus fixed: +0.0917 mIoU",
        "v minus fixed: +0.0917 metres of RMSE",
    ]


def test_the_verdict_on_the_untouched_learner_is_not_one_on_an_arm(tmp_path):
    write_run(tmp_path / "step-0", "one-hot", 0, 1.5, steps=0)
    assert verdict(collect(tmp_path / "step-0")) == (
        "The untouched learner, with nothing to compare it with: answer NLL [95 %] is 1.5000 [1.400, 1.600]."
    )


def test_steps_that_differ_between_seeds_are_told_as_an_average(tmp_path):
    results = write_comparison(tmp_path / "study")
    v = results["arms"]["v"]
    v["runs"][0]["steps"], v["steps"] = 38, 39
    write_json(tmp_path / "study/results.json", results)
    said = verdict(collect(tmp_path / "study"))
    assert ". v made on average 39 steps with 5 meta updates, one-hot 40 steps. " in said


def test_runs_made_with_other_data_or_versions_are_named(tmp_path):
    write_comparison(tmp_path / "study")
    file = tmp_path / "study/v.1/provenance.json"
    found = json.loads(file.read_text())
    found["data"][0]["sha256"] = "1" * 64
    write_json(file, found)
    write_json(file, found | {"hardware": "another", "commit": None})
    assert warnings(collect(tmp_path / "study"))[-3:] == [
        "v.1: made with other data than step-0",
        "v.1: made with another commit than step-0",
        "v.1: made with other hardware than step-0",
    ]
    (tmp_path / "study/step-0/provenance.json").unlink()
    for key in ("hardware", "commit"):
        del found[key]
    write_json(file, found)  # as a run of an older version
    assert warnings(collect(tmp_path / "study"))[-1] == "v.1: made with other data than one-hot.0"


def test_the_verdict_on_a_disturbed_comparison_begins_with_its_unequal_times(tmp_path):
    results = write_comparison(tmp_path / "study", steps=96, seeds=(0,))
    assert warnings(collect(tmp_path / "study")) == []
    results["arms"]["v"] |= {"steps": 4, "seconds": 129.0, "tokens_per_s": 16.0, "meta_updates": 1}
    write_json(tmp_path / "study/results.json", results)
    said = verdict(collect(tmp_path / "study"))
    assert said.startswith("After unequal training times (129 and 120 s), v is")
    assert ". v made 4 steps with 1 meta update, one-hot 96 steps. " in said
    differ, slow = warnings(collect(tmp_path / "study"))
    assert differ.startswith("training times differ by more than 3%")
    assert slow.startswith("v read tokens at 4% of one-hot's rate")


@pytest.mark.parametrize(
    ("seeds", "of_v", "of_one_hot", "told"),
    [((0, 1), (96.0, 104.0), (100.0, 100.0), "96 to 104 and 100"), ((0,), (1.14,), (1.02,), "1.14 and 1.02")],
)
def test_unequal_times_look_unequal(tmp_path, seeds, of_v, of_one_hot, told):
    results = write_comparison(tmp_path / "study", seeds=seeds)
    for name, seconds in (("v", of_v), ("one-hot", of_one_hot)):
        arm = results["arms"][name]
        arm["seconds"] = sum(seconds) / len(seconds)
        for run, of_run in zip(arm.get("runs", []), seconds, strict=False):
            run["seconds"] = of_run
    write_json(tmp_path / "study/results.json", results)
    assert verdict(collect(tmp_path / "study")).startswith(f"After unequal training times ({told} s), v is")


@pytest.mark.parametrize(
    ("steps", "equal", "remedy"),
    [((40, 40), "equal steps", None), ((40, 30), "unequal training times (129 and 120 s)", "leave it out")],
)
def test_where_a_budget_has_minutes_and_steps_it_counts_which_ended_the_runs(tmp_path, steps, equal, remedy):
    results = write_comparison(tmp_path / "study", seeds=(0,))
    recipe = load_recipe(tmp_path / "study/recipe.yaml", ["budget.steps=40"])
    save_recipe(recipe, tmp_path / "study/recipe.yaml")
    results["arms"]["one-hot"]["steps"], results["arms"]["v"]["steps"] = steps
    results["arms"]["v"]["seconds"] = 129.0
    write_json(tmp_path / "study/results.json", results)
    study = collect(tmp_path / "study")
    assert verdict(study).startswith(f"After {equal}, v is")
    told = [line for line in warnings(study) if line.startswith("training times differ")]
    assert [line.rsplit("; ")[-1] for line in told] == ([remedy] if remedy else [])
    of = results["differences"]["nll"]  # an arm that the minutes ended says nothing of the two that are told
    of["uniform"], of["v"]["uniform"] = {"one-hot": OPPOSITE}, DIFFERENCE
    results["arms"]["uniform"] = results["arms"]["one-hot"] | {"arm": "uniform", "steps": 20}
    write_json(tmp_path / "study/results.json", results)
    assert verdict(collect(tmp_path / "study")).startswith(f"After {equal}, v is")
