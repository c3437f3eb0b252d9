"""The report: what its tables and parts say is what the files say, and files that cannot be read are named."""

from __future__ import annotations

import json
import re

import pytest
from report.directories import recipe_data, write_comparison, write_json, write_probe, write_profile, write_run
from report.page import made

from vpretrain import UserError
from vpretrain.cli.parser import main
from vpretrain.report import page as page_module
from vpretrain.report.collect import collect
from vpretrain.report.glossary import Glossary
from vpretrain.report.page import report
from vpretrain.report.verdict import verdict_lines


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


def test_without_matplotlib_there_are_numbers(tmp_path, monkeypatch):
    write_comparison(tmp_path / "study")
    write_probe(tmp_path / "study")
    monkeypatch.setattr("vpretrain.report.page.can_draw", lambda: False)
    page = made(tmp_path, tmp_path / "study")
    assert "pip install matplotlib" in page.text()
    assert not [tag for tag, _ in page.tags if tag == "svg"]


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
    assert " ".join(["study:", *verdict_lines(collect(tmp_path / "study"))]) in printed
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
