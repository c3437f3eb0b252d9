"""The report: what it says is what the files say, whatever they hold stays text, and nothing is loaded from elsewhere."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report.directories import (
    DIFFERENCE,
    OPPOSITE,
    hostile_study,
    recipe_data,
    write_comparison,
    write_json,
    write_probe,
    write_profile,
    write_run,
)

from vpretrain import UserError
from vpretrain.cli.parser import main
from vpretrain.compare.alike import trained_as
from vpretrain.compare.changes import changes, headline
from vpretrain.recipe import load_recipe, parse_recipe, save_recipe
from vpretrain.report import page as page_module
from vpretrain.report.collect import collect
from vpretrain.report.curves import between_seeds, thin
from vpretrain.report.glossary import Glossary
from vpretrain.report.page import report
from vpretrain.report.verdict import notes, verdict, warnings


class Page(HTMLParser):
    """What a browser would make of it: tags with attributes, texts, and tables by their captions."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.texts, self.tables, self._open = [], [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "caption":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("th", "td"):
            self._rows[-1].append("")
        self._open.append(tag)

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        self.texts.append(data)
        if "caption" in self._open:
            self.tables[data.split(";")[0].split(".")[0].split(",")[0]] = self._rows
        if self._open and self._open[-1] in ("th", "td"):
            self._rows[-1][-1] += data

    def text(self):
        return " ".join(self.texts)


def made(tmp_path, *directories):
    return Page(report(directories, tmp_path / "report.html").read_text(encoding="utf-8"))


def test_the_verdict_is_one_sentence_with_the_paired_interval(tmp_path):
    write_comparison(tmp_path / "study")
    text = verdict(collect(tmp_path / "study"))
    assert text == (
        "After equal training time, v is better than one-hot on held-out answers: v minus one-hot is -0.0917 nats per token, "
        "95 % interval [-0.1517, -0.0497], paired over 8 problems and 2 seeds (lower is better). "
        "v made 40 steps with 5 meta updates, one-hot 40 steps. Nothing that was measured is worse than in the untouched "
        "learner. Nothing else that was measured is worse than in one-hot."
    )


def test_the_report_shows_what_was_attempted_and_what_it_was_compared_with(tmp_path):
    study = tmp_path / "study"
    write_comparison(study, seeds=(0,))
    for run, solved, attempt in (("step-0", False, "I do not know\n"), ("v", True, "so it is 12")):
        found = json.loads((study / run / "result.json").read_text())
        found["problems"][0] |= {"solved": solved, "attempt": attempt, "answer": "12"}
        write_json(study / run / "result.json", found)
    assert made(tmp_path, study).tables["Ends of attempts"] == [
        ["true answer", "step-0", "v"],
        ["12", "wrong: ... I do not know", "right: ... so it is 12"],
    ]


def test_of_a_sweep_the_runs_are_asked_for(tmp_path):
    for name in ("recipe.yaml", "sweep.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="its own table and pictures are there; name the directories of its runs"):
        collect(tmp_path)


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


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The results of a comparison with a probe and a profile, the page of it, and its file."""
    root = tmp_path_factory.mktemp("study")
    results = write_comparison(root / "study")
    write_probe(root / "study")
    write_profile(root / "study")
    return results, made(root, root / "study"), root / "report.html"


def test_the_table_of_results_equals_results_json(study):
    results, page, _ = study
    head, *rows = page.tables["Results on held-out answers"]
    assert [row[0] for row in rows] == list(results["arms"]) == ["step-0", "one-hot", "v"]
    for row, arm in zip(rows, results["arms"].values(), strict=True):
        shown = dict(zip(head, row, strict=True))
        assert float(shown["answer NLL [95 %]"].split()[0]) == pytest.approx(arm["answer_nll"], abs=5e-5)
        assert int(shown["tokens"].replace(",", "")) == arm["tokens"]
        assert float(shown["seconds"]) == arm["seconds"]


def test_the_table_of_changes_has_every_figure_against_both_others(study):
    head, *rows = study[1].tables["What became better and what became worse"]
    assert head == ["figure", "step-0", "one-hot", "v", "v against step-0", "v against one-hot"]
    assert rows == [
        ["answer NLL", "1.5448", "1.2444", "1.1527", "better", "better"],
        ["Pass@1", "6.2%", "6.2%", "6.2%", "equal", "equal"],
        ["retention NLL", "2.8301", "2.8301", "2.8301", "equal", "equal"],
    ]


def test_the_table_of_differences_has_every_pair_with_its_interval(study):
    differences = {tuple(row[:2]): row[4:] for row in study[1].tables["Differences"][1:]}
    assert set(differences) == {("one-hot", "step-0"), ("v", "step-0"), ("v", "one-hot")}
    assert differences["v", "one-hot"] == ["-0.0917", "[-0.1517, -0.0497]"]


def test_the_table_of_costs_has_every_run(study):
    costs = {row[0]: row for row in study[1].tables["What the runs took"][1:]}
    assert set(costs) == {"one-hot.0", "one-hot.1", "v.0", "v.1"}
    assert costs["v.1"][6] == "5"


def test_settings_that_differ_from_the_defaults_have_a_table_of_their_own(study):
    page = study[1]
    settings = {row[0]: row[1] for row in page.tables["Settings that are not the defaults"]}
    assert settings["optimizer.lr"] == "3e-05"
    assert "optimizer.eps" not in settings
    assert dict(page.tables["Settings that are the defaults"])["optimizer.eps"] == "1e-08"


def test_data_versions_and_phases_have_tables(study):
    page = study[1]
    assert page.tables["What identifies the data"][1][:2] == ["stream", "stream.jsonl"]
    assert dict(page.tables["Versions"][1:])["torch"] == "2.10.0"
    assert page.tables["Phases of a step of v"][1] == ["learner backward", "9.00", "45.0%"]


def test_no_name_of_a_user_is_in_the_page(study):
    assert "somebody" not in study[1].text()  # a review is blind


def test_the_contents_list_every_part_and_lead_there(study):
    page = study[1]
    headings = [a["id"] for tag, a in page.tags if tag in ("h2", "h3")]
    links = [a["href"][1:] for tag, a in page.tags if tag == "a" and a.get("class") != "skip"]
    assert links == headings
    assert headings[:3] == ["study-1", "study-1-further", "study-1-results"]
    assert "study-1-warnings" not in headings


def test_each_term_is_explained_once_before_its_part(study):
    html = study[2].read_text(encoding="utf-8")
    terms = re.findall(r"<dt>(.*?)</dt>", html)
    assert len(terms) == len(set(terms))
    assert {"v", "one-hot", "step-0", "answer NLL", "95 % interval", "Pass@1", "retention NLL", "alpha"} <= set(terms)
    assert "mIoU" not in terms
    assert html.index("<dt>answer NLL</dt>") < html.index("Results on held-out answers")
    assert html.index('id="study-1-steps"') < html.index("<dt>value</dt>") < html.index('id="study-1-cost"')


def test_a_term_is_found_in_text_and_not_in_markup():
    glossary = Glossary({"v": "the exact task", "v-paper": "the designer"})
    assert glossary.first('<p class="alpha" title="seed"><style>mask</style>v-paper &amp; Pass@1</p>') == [
        ("v-paper", "the designer"),
        ("Pass@1", "the fraction of the problems that greedy decoding solves"),
    ]
    assert [term for term, _ in glossary.first("v:value.align=dot beats Pass@1")] == ["v"]


def test_pictures_have_labels_with_what_they_show(study):
    page = study[1]
    labels = [a.get("aria-label", "") for tag, a in page.tags if tag == "svg"]
    assert sum("answer NLL, lower is better, against" in label for label in labels) == 3
    assert any("at the end one-hot 1.244, v 1.153; untouched 1.545" in label for label in labels)
    assert sum("Realised against predicted" in label for label in labels) == 4


def test_what_is_missing_is_named_in_a_line(tmp_path):
    write_comparison(tmp_path / "study")
    for file in (tmp_path / "study/v.1").iterdir():
        file.unlink()
    text = made(tmp_path, tmp_path / "study").text()
    assert "vpretrain probe RECIPE arm=v makes it" in text
    assert "vpretrain profile RECIPE arm=v makes it" in text
    assert "the directory of the run v.1: its curves are left out" in text


@pytest.mark.parametrize(("points", "named"), [(None, True), (0, True), (1, True), (2, False)])
def test_curves_of_their_ends_alone_are_named(tmp_path, points, named):
    evaluation = recipe_data(tmp_path)["evaluation"] | {"points": points}
    write_comparison(tmp_path / "study", evaluation=evaluation)
    assert ("curves have their ends alone" in made(tmp_path, tmp_path / "study").text()) is named


def test_single_runs_finished_and_at_work(tmp_path):
    write_run(tmp_path / "done", "v", 0, 1.2)
    write_run(tmp_path / "begun", "v", 0, 1.2)
    (tmp_path / "begun/result.json").unlink()
    with (tmp_path / "begun/metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # as it is being written
    text = made(tmp_path, tmp_path / "done", tmp_path / "begun").text()
    assert "so it shows no effect: answer NLL [95 %] is 1.2000 [1.100, 1.300]." in text
    assert "A run of v that is not finished" in text
    assert "vpretrain compare` runs them under the same budget" in text


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


def test_without_matplotlib_there_are_numbers(tmp_path, monkeypatch):
    write_comparison(tmp_path / "study")
    write_probe(tmp_path / "study")
    monkeypatch.setattr("vpretrain.report.page.can_draw", lambda: False)
    page = made(tmp_path, tmp_path / "study")
    assert "pip install matplotlib" in page.text()
    assert not [tag for tag, _ in page.tags if tag == "svg"]


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


def test_date_commit_hardware_and_seeds_are_told_or_said_to_be_unknown(tmp_path):
    write_comparison(tmp_path / "study")
    file = tmp_path / "study/v.1/provenance.json"
    write_json(file, json.loads(file.read_text()) | {"date": "2026-11-29T16:40:00+00:00"})
    page = made(tmp_path, tmp_path / "study")
    assert page.tables["When"][1:] == [
        ["date of the runs' ends", "2026-11-29T15:20:00+00:00 to 2026-11-29T16:40:00+00:00"],
        ["commit", "b68c0a5"],
        ["hardware", "a processor, 2 cores, 8 GiB"],
        ["vpretrain", "0.1.0"],
        ["seeds", "0, 1"],
    ]
    assert "commit: b68c0a5; hardware: a processor, 2 cores, 8 GiB; vpretrain: 0.1.0; seeds: 0, 1." in "".join(
        page.texts
    )
    for file in (tmp_path / "study").glob("*/provenance.json"):
        write_json(file, {"versions": {}, "data": None})
    assert dict(made(tmp_path, tmp_path / "study").tables["When"])["commit"] == "not recorded"


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


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    """The page of a comparison that holds hostile text wherever text can come from."""
    root = tmp_path_factory.mktemp("hostile")
    hostile_study(root / "study")
    return made(root, root / "study")


def test_hostile_text_adds_no_tags_and_no_handlers(hostile_page):
    assert not [
        tag
        for tag, _ in hostile_page.tags
        if tag in ("script", "iframe", "object", "embed", "img", "link", "image", "base")
    ]
    # The page's, and that of the first seed's inspector, which has nothing to show.
    assert [tag for tag, _ in hostile_page.tags].count("style") == 1 + 1
    names = {name for _, attributes in hostile_page.tags for name in attributes}
    assert not [name for name in names if name.startswith("on")]


def test_hostile_text_is_shown_as_text(hostile_page):
    texts = hostile_page.texts
    assert hostile_page.text().count("<script>alert(1)</script>") > 10
    assert "{{ 7*7 }}" in hostile_page.text()
    assert "alert(1)" in " ".join(texts[texts.index("Other figures of each step") :])  # a picture's title


def test_links_lead_to_places_in_the_page_and_each_place_has_an_id_of_its_own(hostile_page):
    links = [a[n] for _, a in hostile_page.tags for n in ("href", "src", "xlink:href", "action", "data") if n in a]
    assert links
    assert all(link.startswith("#") for link in links)
    ids = [a["id"] for _, a in hostile_page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(link[1:] in ids for link in links)


def test_styles_and_clips_load_nothing_from_elsewhere(hostile_page):
    texts = hostile_page.texts
    styles = [a["style"] for _, a in hostile_page.tags if "style" in a] + [texts[texts.index("\n") + 1]]
    assert not [style for style in styles if "http" in style or "@import" in style]
    clips = [a["clip-path"] for _, a in hostile_page.tags if "clip-path" in a]
    ids = [a["id"] for _, a in hostile_page.tags if "id" in a]
    assert all(clip.startswith("url(#") and clip[5:-1] in ids for clip in clips)


def test_text_in_pictures_follows_the_page(tmp_path):
    write_comparison(tmp_path / "study")
    html = report([tmp_path / "study"], tmp_path / "report.html").read_text()
    svg = html[html.index("<svg") :]
    assert "currentColor" in svg
    assert "var(--series-1)" in svg
    assert "#0101" not in svg
    assert "#0202" not in svg
    assert "#000000" not in svg
    assert "<metadata" not in svg


def test_tables_and_headings_can_be_read_out(tmp_path):
    write_comparison(tmp_path / "study")
    page = made(tmp_path, tmp_path / "study")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 4
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    assert [tag for tag in tags if tag in ("h1", "h2", "h3")][:3] == ["h1", "h2", "h3"]
    assert all(a["role"] == "img" and a["aria-label"] for tag, a in page.tags if tag == "svg")
    assert ("a", {"class": "skip", "href": "#content"}) in page.tags
    assert all(a.get("tabindex") == "0" for _, a in page.tags if a.get("class") in ("scroll", "wide"))


def contrast(one, other):
    """WCAG's, of two colours as #rrggbb."""

    def luminance(colour):
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_curves_stand_out_from_the_paper(scheme):
    style = (Path(page_module.__file__).parent / "templates/style.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", style.split(":root {")[1 + scheme]))
    assert len(colours) == 16
    for name in ("ink", "quiet", "link"):
        assert min(contrast(colours[name], colours[paper]) for paper in ("paper", "tint")) >= 4.5, name
    assert contrast(colours["warn"], colours["warn-tint"]) >= 4.5
    assert all(contrast(colours[f"series-{number}"], colours["paper"]) >= 3 for number in range(1, 8))


@pytest.mark.parametrize("points", [1, 7, 240, 241, 20_000])
def test_thinning_keeps_extremes_and_means(points):
    draw = np.random.default_rng(points)
    x, y = np.arange(points), draw.normal(size=(2, points))
    y[0, points // 3], y[1, points // 2] = 99.0, -99.0  # lost by any thinning that skips
    band = thin([(x, y[0]), (x, y[1])])
    assert len(band.x) == min(points, 240)
    assert (band.low.min(), band.high.max()) == (y.min(), y.max())
    assert np.all(np.diff(band.x) > 0)
    assert np.all((band.low <= band.mean) & (band.mean <= band.high))
    where = np.abs(band.x - points // 2).argmin()
    assert band.low[where] == -99.0
    edges = np.append((band.x[1:] + band.x[:-1]) / 2, np.inf)
    own = np.searchsorted(edges, x)
    for each in {0, len(band.x) // 2, len(band.x) - 1}:
        of_band = y[:, own == each]
        assert of_band.size
        assert band.mean[each] == pytest.approx(of_band.mean())
        assert (band.low[each], band.high[each]) == (of_band.min(), of_band.max())


def test_thinning_leaves_out_what_is_no_number():
    band = thin([([0, 1, 2], [1.0, float("nan"), 3.0])])
    assert band.mean.tolist() == [1.0, 3.0]


def test_seeds_are_met_where_all_have_got():
    band = between_seeds([([0, 2, 4], [4.0, 2.0, 0.0]), ([0, 3], [4.0, 7.0])])
    assert band.x.tolist() == [0, 2, 3]
    assert band.mean.tolist() == [4.0, 4.0, 4.0]
    assert band.low.tolist() == [4.0, 2.0, 1.0]
    assert band.high.tolist() == [4.0, 6.0, 7.0]


def test_twenty_thousand_steps_are_a_small_page_in_seconds(tmp_path):
    write_comparison(tmp_path / "study", steps=20_000, seeds=(0,))
    begun = time.monotonic()
    file = report([tmp_path / "study"], tmp_path / "report.html")
    assert time.monotonic() - begun < 20
    assert file.stat().st_size < 2 * 2**20


def test_the_inspectors_of_each_arms_first_seed_stand_in_the_page_as_they_are(tmp_path, monkeypatch):
    from markupsafe import Markup

    write_comparison(tmp_path / "study")
    monkeypatch.setattr(
        page_module, "inspectors", lambda run: [Markup(f"<b>{run.name}</b>")] if "v" in run.name else []
    )
    html = report([tmp_path / "study"], tmp_path / "report.html").read_text()
    assert html.count("<b>v.0</b>") == 1
    assert "<b>v.1</b>" not in html  # a learner each
    assert "Inspectors" in html


def test_the_command(tmp_path, capsys):
    write_comparison(tmp_path / "study")
    assert main(["report", str(tmp_path / "study")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert str(tmp_path / "study/report.html") in printed
    assert f"study: {verdict(collect(tmp_path / 'study'))}" in printed
    assert (tmp_path / "study/report.html").read_text().startswith("<!doctype html>")
    assert main(["report", str(tmp_path / "study/v.0"), "--output", str(tmp_path / "new/one.html")]) == 0
    assert (tmp_path / "new/one.html").exists()


def test_directories_that_are_neither_are_refused_with_the_remedy(tmp_path, capsys):
    write_comparison(tmp_path / "study")
    (tmp_path / "study/results.json").unlink()
    for directory, words in {
        "study": "finish the comparison with --resume",
        "gone": "neither a run's directory",
        "stuyd": f"did you mean {tmp_path / 'study'}?",
    }.items():
        assert main(["report", str(tmp_path / directory)]) == 2
        printed = capsys.readouterr().err
        assert words in printed
        assert printed.count("\n") == 1
    assert not (tmp_path / "study/report.html").exists()


def test_a_file_that_cannot_be_written_is_refused_before_the_drawing_and_nothing_is_left(tmp_path, capsys):
    write_comparison(tmp_path / "study")
    (tmp_path / "taken").write_text("")
    for output in (tmp_path / "study", tmp_path / "taken/report.html"):
        assert main(["report", str(tmp_path / "study"), "--output", str(output)]) == 2
        printed = capsys.readouterr().err
        assert f"cannot write to {output}: " in printed
        assert printed.count("\n") == 1
    assert main(["report", str(tmp_path / "gone"), "--output", str(tmp_path / "new.html")]) == 2
    assert not (tmp_path / "new.html").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"arms": {"step-0": 3}},
        {"arms": {"v": {"steps": 1}}},
        {"seeds": 3},
        {"of": []},
        {"differences": {"nll": {"v": {"one-hot": {"mean": "?"}}}}},
        {"matched": {"seconds": {}}},
    ],
)
def test_results_that_were_broken_by_hand_are_named(tmp_path, change):
    results = write_comparison(tmp_path / "study")
    write_json(tmp_path / "study/results.json", results | change)
    with pytest.raises(UserError, match=r"results\.json is damaged"):
        collect(tmp_path / "study")


@pytest.mark.parametrize("name", ["results.json", "v.0/result.json", "v.0/metrics.jsonl", "probe.json"])
@pytest.mark.parametrize("damage", ["{", "[]", "{}\n{}"])
def test_damaged_files_are_named(tmp_path, name, damage):
    write_comparison(tmp_path / "study")
    file = tmp_path / "study" / name
    file.write_text(f"{damage}\n{damage}\n")
    with pytest.raises(UserError, match=f"{file.name} is damaged"):
        collect(tmp_path / "study")


def test_examples_that_were_not_used_are_counted_by_run_source_and_reason(tmp_path):
    found = write_run(tmp_path / "run", "v", 0, 1.2)
    counts = {"stream /home/somebody/a.jsonl": {"response null": 1200}, "feedback b.jsonl": {"prompt empty": 1}}
    write_json(tmp_path / "run/result.json", found | {"left_out": counts})
    assert made(tmp_path, tmp_path / "run").tables["Examples that were met and not used"] == [
        ["run", "role", "source", "reason", "examples"],
        ["run", "stream", "a.jsonl", "response null", "1,200"],
        ["run", "feedback", "b.jsonl", "prompt empty", "1"],
    ]
