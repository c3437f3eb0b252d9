"""Model cards: what they say is what was done, and no text from a recipe or from data is anything but text."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import character_tokenizer
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from worlds import recipe_data, tiny_recipe, vision_recipe, write_jsonl

from vpretrain import run_recipe
from vpretrain.compare.compare import compare
from vpretrain.recipe import parse_recipe
from vpretrain.run.card import model_card, provenance
from vpretrain.run.export import export
from vpretrain.run.fingerprint import of_files, of_hub

RESULT = {
    "name": "x",
    "arm": "v",
    "seed": 0,
    "steps": 6,
    "tokens": 500,
    "images": 24,
    "seconds": 2.5,
    "meta_updates": 3,
}
NOTHING = {"versions": {"torch": "1"}, "base": {}, "data": []}


def rendered(text):
    """A card as a reader of Markdown sees it: its tables, their cells as plain text, and all kinds of markup in it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(text).text)
    tables, kinds = [], set()
    for number, token in enumerate(tokens):
        kinds |= {token.type} | {child.type for child in token.children or ()}
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and tokens[number - 1].type in ("td_open", "th_open"):
            tables[-1][-1].append("".join(child.content for child in token.children))
    return tables, kinds


@pytest.fixture(scope="module")
def carded(tmp_path_factory):
    """A finished run: the directory of its data, its result, and the card beside its model."""
    root = tmp_path_factory.mktemp("carded")
    recipe = tiny_recipe(root, character_tokenizer())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vpretrain.method.strength.FIRST", 2)  # as judged_early
        result = run_recipe(recipe)
    return root, result, (recipe.directory / "model" / "README.md").read_text()


def test_the_card_names_the_library_the_method_and_the_arm_and_guesses_nothing(carded):
    front = ModelCard(carded[-1]).data
    assert front.to_dict()["library_name"] == "transformers"
    assert {"v-pretraining", "arm:v"} <= set(front.tags)
    assert (front.base_model, front.license, front.datasets) == (None, None, None)  # nobody knows


def test_the_card_has_no_markup_from_elsewhere_and_no_local_path(carded):
    root, _, text = carded
    assert not rendered(text)[1] & {"html_block", "html_inline", "link_open", "image"}
    assert str(root) not in text  # it is published, and home directories have names


def test_the_card_lists_the_settings_defaults_too(carded):
    (settings, _, _), _ = rendered(carded[-1])
    assert ["optimizer.lr", "0.001"] in settings
    assert ["stream.accumulation", "1"] in settings
    assert ["designer.top_k", "8"] in settings


def test_the_card_lists_every_data_file_with_its_rows_and_hash(carded):
    root, _, text = carded
    (_, data, _), _ = rendered(text)
    assert [row[:3] for row in data[1:]] == [
        ["stream", "stream.jsonl", "40"],
        ["stream", "text.jsonl", "5"],
        ["feedback", "feedback.jsonl", "12"],
        ["evaluation", "evaluation.jsonl", "10"],
        ["retention", "other.jsonl", "1"],
    ]
    digest = hashlib.sha256((root / "feedback.jsonl").read_bytes()).hexdigest()
    assert f"sha256 {digest}" in data[3][3]


def test_the_card_has_the_figures_the_cost_and_the_budget(carded):
    _, result, text = carded
    (_, _, figures), _ = rendered(text)
    assert dict(figures)["answer_nll"] == f"{result.answer_nll:.6g}"
    assert f"6 steps, {result.tokens:,} tokens, {result.seconds:.1f} seconds" in text
    assert re.search(r"1 meta update from feedback|2 meta updates from feedback", text)
    assert "Budget: 6 steps; seed 0" in text


def test_the_card_cites_the_paper(carded):
    assert "eprint        = {2601.22108}" in carded[-1]


def test_an_export_has_the_card_too_and_so_has_that_of_a_checkpoint(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, arm="one-hot")
    run_recipe(recipe)
    card = (recipe.directory / "model" / "README.md").read_text()
    (tmp_path / "stream.jsonl").unlink()  # what it says of the data is from when the run had them
    export(str(recipe.directory), str(tmp_path / "finished"))
    assert (tmp_path / "finished" / "README.md").read_text() == card
    assert "meta updates" not in card
    assert "designer." not in card
    for name in ("result.json", "provenance.json"):
        (recipe.directory / name).unlink()
    export(str(recipe.directory), str(tmp_path / "unfinished"))
    card = (tmp_path / "unfinished" / "README.md").read_text()
    assert "before the run had ended: not evaluated" in card
    assert "6 steps" in card
    assert "The data were gone when this card was written." in card


def test_a_run_of_a_comparison_shows_all_its_arms(tmp_path, tokenizer, in_this_process):
    recipe = tiny_recipe(tmp_path, tokenizer, name="both")
    results = compare(recipe, ["one-hot", "v"])
    text = (recipe.directory / "v" / "model" / "README.md").read_text()
    controls = rendered(text)[0][-1]
    assert [row[0] for row in controls] == ["arm", "step-0", "one-hot", "v"]
    assert controls[1][1].startswith(f"{results.arms['step-0']['answer_nll']:.4f} [")
    assert "v minus one-hot: " in text
    export(str(recipe.directory / "v"), str(tmp_path / "exported"))
    assert (tmp_path / "exported" / "README.md").read_text() == text
    beside = tiny_recipe(tmp_path, tokenizer, name="beside", output=str(recipe.directory))
    run_recipe(beside)  # its results.json is of other runs
    assert "step-0" not in (beside.directory / "model" / "README.md").read_text()


@pytest.mark.parametrize("text", ["{", "[]", '{"arms": {"v": 3}}', '{"arms": {"v": {"runs": [{}]}}}', '{"arms": null}'])
def test_a_results_file_that_is_something_else_does_not_stop_a_run(tmp_path, tokenizer, text):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "results.json").write_text(text)
    recipe = tiny_recipe(tmp_path, tokenizer, output=str(tmp_path / "runs"))
    assert run_recipe(recipe).steps == 6
    assert "step-0" not in (recipe.directory / "model" / "README.md").read_text()


HOSTILE = (
    "a|b`c` <img src=x onerror=alert(1)> [t](http://x) ![i](y) **b** _e_ \\| | x\n\n# title\n\n---\nlicense: mit\n---\n"
)


@pytest.mark.security
def test_texts_of_recipes_and_data_are_shown_as_text(tmp_path, tokenizer):
    data = recipe_data(tmp_path, tokenizer)
    (tmp_path / "<b>`|_x_.jsonl").write_text((tmp_path / "stream.jsonl").read_text())
    data["stream"]["sources"][0] |= {"path": str(tmp_path / "<b>`|_x_.jsonl"), "domain": HOSTILE}
    data["stream"]["sources"][1] = {"reasoning_gym": "leg_counting", "options": {HOSTILE: "x"}, "domain": "d"}
    data["feedback"]["sources"][0] = {"hub": HOSTILE, "prompt": "p", "response": "r"}
    data["learner"] = {"name": HOSTILE}
    recipe = parse_recipe(data)
    learner = recipe.learner.model_copy(update={"device": HOSTILE})  # parsing refuses it
    recipe = recipe.model_copy(update={"learner": learner})
    made = provenance(recipe)
    text = model_card(recipe, {**RESULT, "warning": HOSTILE}, made, {})
    (settings, data, _), kinds = rendered(text)
    assert not kinds & {
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "code_inline",
        "strong_open",
        "em_open",
        "s_open",
    }
    assert [heading.strip("# ") for heading in text.splitlines() if heading.startswith("#")] == [
        "tiny", "What was done", "Settings", "Data", "Results", "Versions", "Citation",
    ]  # fmt: skip
    line = " ".join(HOSTILE.split())
    assert ["learner.device", line] in settings
    assert data[1][1] == "<b>`|_x_.jsonl"
    assert f"domain {line}" in data[1][3]
    assert line in [" ".join(row[1].split()) for row in data]
    assert {len(row) for row in data} == {4}
    front = ModelCard(text).data
    assert (front.license, front.base_model, front.datasets) == (None, None, None)


def test_base_and_licence_come_from_the_hub_or_the_card_of_the_learner(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer)
    Path(recipe.learner.name, "README.md").write_text("---\nbase_model: some/base\nlicense: apache-2.0\n---\ntext")
    text = model_card(recipe, RESULT, provenance(recipe), {})
    assert (ModelCard(text).data.base_model, ModelCard(text).data.license) == ("some/base", "apache-2.0")
    Path(recipe.learner.name, "README.md").write_text("---\nlicense: [\n---\n")
    assert provenance(recipe)["base"] == {}
    hub = recipe.model_copy(update={"learner": recipe.learner.model_copy(update={"name": "no/such-learner"})})
    assert provenance(hub)["base"] == {"base_model": "no/such-learner"}


def test_a_file_that_is_broken_and_was_not_read_is_fingerprinted(tmp_path, tokenizer):
    data = recipe_data(tmp_path, tokenizer)
    file = tmp_path / "broken.parquet"
    file.write_bytes(b"PAR1 and no more")
    data["stream"]["sources"][0] = {"path": str(file), "text": "{text}", "streaming": True}
    found = provenance(parse_recipe(data))["data"][0]
    assert (found["rows"], found["sha256"]) == (None, hashlib.sha256(file.read_bytes()).hexdigest())


def test_hub_data_sets_are_named(tmp_path, tokenizer):
    source = {"hub": "some/pairs", "revision": "abc", "rows": 7, "config": None, "split": "train"}
    made = {**NOTHING, "data": [{"role": "stream", **source}, {"role": "evaluation", **source, "hub": "some/test"}]}
    text = model_card(tiny_recipe(tmp_path, tokenizer), RESULT, made, {})
    assert ModelCard(text).data.datasets == ["some/pairs"]
    assert ["stream", "some/pairs", "7", "revision abc, split train"] in rendered(text)[0][1]


def test_a_vision_card(tmp_path):
    recipe = vision_recipe(tmp_path)
    text = model_card(recipe, {**RESULT, "miou": 0.5}, provenance(recipe), {})
    settings, data, figures = rendered(text)[0]
    assert "6 steps, 24 images, 2.5 seconds" in text
    assert ["learner.dino.outputs", "32"] in settings
    assert [row[0] for row in data[1:]] == [
        "stream",
        "feedback, heads",
        "feedback, meta",
        "evaluation, train",
        "evaluation, test",
    ]
    assert data[-1][1:3] == ["scenes of seed 5", "12"]  # two cameras
    assert "package pybullet 3" in data[-1][3]
    assert ["miou", "0.5"] in figures


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_hash_of_several_files_is_that_of_what_sha256sum_prints(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        write_jsonl(tmp_path / name, [{"text": name}])
    found = of_files([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path)
    printed = subprocess.run(
        "sha256sum a.jsonl b.jsonl | sha256sum", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found == {"files": 2, "bytes": 2 * 20, "sha256": printed.stdout.split()[0]}


@pytest.mark.parametrize("most", [2**30, 2**20])
def test_hashing_tells_its_share(tmp_path, monkeypatch, most):
    titles, shares = [], []

    @contextlib.contextmanager
    def working(title, share):
        titles.append(title)
        shares.append(share())
        yield
        shares.append(share())

    monkeypatch.setattr("vpretrain.run.fingerprint.working", working)
    monkeypatch.setattr("vpretrain.run.fingerprint.MOST", most)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x" * (3 * 2**20 + 1))
    of_files([tmp_path / "a", tmp_path / "b"])
    of_files([tmp_path / "a"])
    assert titles == ["hashing 2 files", "hashing a"]
    assert shares == [0, 1, 0, 1]


def test_much_data_is_hashed_at_its_ends_and_recorded_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr("vpretrain.run.fingerprint.MOST", 3 * 2**20)
    file = tmp_path / "much"
    content = bytearray(b"x" * (4 * 2**20))
    digests = set()
    for place in (None, 0, 2**20 - 1, -1):
        if place is not None:
            content[place] = 0
        file.write_bytes(content)
        digests.add(of_files([file])["sha256"])
    assert len(digests) == 4
    content[2 * 2**20] = 0  # nobody looks there
    file.write_bytes(content)
    found = of_files([file])
    assert found["sha256"] in digests
    assert found["of"] == "the first and the last 1,048,576 bytes of each file"
    many = of_files([file] * 6)  # no more is read of many files
    assert many["of"] == "the first and the last 262,144 bytes of each file"


def test_a_data_set_has_a_revision_and_rows_where_they_can_be_had(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}] * 3)
    found = of_hub(str(tmp_path), None, "train")
    assert found["revision"]
    assert of_hub("no/such-data", None, "train")["revision"] is None
