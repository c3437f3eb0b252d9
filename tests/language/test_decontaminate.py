"""`vpretrain decontaminate` on files and recipes: what goes, what stays, what is told, what is refused."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from worlds import recipe_data, sums, write_jsonl

from vpretrain.cli.parser import main
from vpretrain.errors import UserError
from vpretrain.files import read_lines
from vpretrain.language.assemble import assemble
from vpretrain.language.config import SourceConfig
from vpretrain.language.data.decontaminate import _line, _source
from vpretrain.language.data.source import count_rows, open_source
from vpretrain.recipe import load_recipe, save_recipe
from vpretrain.recipe import parse_recipe as parse

PROBLEM = "Maria buys nine red apples and gives four of them to her brother Tom, how many apples are left for her?"
CHANGED = PROBLEM.replace("Maria", "Marie")
SOLUTION = "She has nine apples and gives away four, so five are left."
CLEAN = (
    "A quite different question about the number of days that the ship needs to cross the wide ocean, sailing north."
)


ROWS = [
    {"problem": CHANGED, "solution": "Five.", "id": 1},
    {"problem": CLEAN, "solution": SOLUTION, "id": 2, "tags": ["ß", 1]},
    {"problem": PROBLEM.upper() + "!", "solution": SOLUTION, "id": 3},
]


def write_evaluation(root) -> str:
    rows = [{"question": PROBLEM, "answer": SOLUTION}, {"question": "Which of the two came first?", "answer": "None."}]
    return write_jsonl(root / "known.jsonl", rows) + ":question,answer"


@pytest.fixture
def evaluation(tmp_path) -> str:
    return write_evaluation(tmp_path)


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory):
    """ROWS cleaned: the command, its folder, and what it wrote there and printed, read at once."""
    root = tmp_path_factory.mktemp("cleaned")
    stream = write_jsonl(root / "stream.jsonl", ROWS)
    output = root / "clean"
    against = ["--against", write_evaluation(root), "--output", str(output)]
    command = ["decontaminate", f"{stream}:problem,solution", *against]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(command) == 0
    return SimpleNamespace(
        command=command,
        output=output,
        kept=read_lines(output / "stream-0.jsonl"),
        dropped=read_lines(output / "dropped.jsonl"),
        report=json.loads((output / "report.json").read_text()),
        printed=" ".join(printed.getvalue().split()),
    )


def test_near_duplicates_go_and_everything_else_stays_as_it_was(cleaned):
    assert cleaned.kept == ROWS[1:2]


def test_every_dropped_row_is_kept_aside_with_what_it_is_like(cleaned):
    first, second = cleaned.dropped
    assert (first["example"], first["part"], first["text"]) == (0, "problem", CHANGED)
    assert first["like"] == {"source": 0, "example": 0, "part": "problem", "text": PROBLEM}
    assert 0.7 <= first["jaccard"] < 1
    assert (second["example"], second["jaccard"]) == (2, 1.0)


def test_what_was_dropped_and_found_is_counted_in_the_report_and_printed(cleaned):
    assert [(s["examples"], s["dropped"]) for s in cleaned.report["sources"]] == [(3, 2)]
    assert [(s["examples"], s["found"]) for s in cleaned.report["evaluation"]] == [(2, 1)]
    assert "66.667%" in cleaned.printed
    assert "1 were in it" in cleaned.printed


def test_an_earlier_output_is_replaced_only_if_asked(cleaned, capsys):
    assert main(cleaned.command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*cleaned.command, "--overwrite", "--jaccard", "1"]) == 0
    assert [row["id"] for row in read_lines(cleaned.output / "stream-0.jsonl")] == [1, 2]


def test_a_full_disk_leaves_the_earlier_output_as_it_was(tmp_path, evaluation, monkeypatch, capsys):
    stream = write_jsonl(tmp_path / "stream.jsonl", ROWS)
    output = tmp_path / "clean"
    command = ["decontaminate", f"{stream}:problem,solution", "--against", evaluation, "--output", str(output)]
    assert main(command) == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    whole = Path.write_text

    def full(path, *rest, **options):
        if "report.json" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return whole(path, *rest, **options)

    monkeypatch.setattr(Path, "write_text", full)
    assert main([*command, "--overwrite", "--jaccard", "1"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_a_stream_is_cleaned_in_place_and_nothing_old_is_left(tmp_path, tokenizer, evaluation):
    data = recipe_data(tmp_path, tokenizer)
    write_jsonl(tmp_path / "stream.jsonl", [{"question": PROBLEM, "answer": "5"}, {"question": CLEAN, "answer": "9"}])
    save_recipe(parse(data), tmp_path / "recipe.yaml")
    output = tmp_path / "clean"
    arguments = ["--against", str(tmp_path / "recipe.yaml"), "--output", str(output), "--overwrite"]
    assert main(["decontaminate", str(tmp_path / "recipe.yaml"), *arguments]) == 0
    assert len(read_lines(output / "stream-0.jsonl")) == 2
    arguments[1] = evaluation
    assert main(["decontaminate", str(output / "recipe.yaml"), *arguments]) == 0
    assert [row["question"] for row in read_lines(output / "stream-0.jsonl")] == [CLEAN]
    assert main(["decontaminate", f"{output / 'stream-0.jsonl'}:question,answer", *arguments]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["dropped.jsonl", "report.json", "stream-0.jsonl"]


def test_files_of_the_user_in_the_folder_are_neither_removed_nor_written_over(tmp_path, evaluation, capsys):
    stream = write_jsonl(tmp_path / "stream-all.jsonl", ROWS)
    command = ["decontaminate", f"{stream}:problem,solution", "--against", evaluation, "--output", str(tmp_path)]
    (tmp_path / "recipe.yaml").write_text("mine")
    assert main(command) == 2
    assert f"{tmp_path} holds recipe.yaml already: add --overwrite, or give another --output" in capsys.readouterr().err
    for _ in range(2):
        assert main([*command, "--overwrite"]) == 0  # which writes no recipe
        assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert read_lines(tmp_path / "stream-all.jsonl") == ROWS
    assert read_lines(tmp_path / "stream-0.jsonl") == ROWS[1:2]


def test_a_name_in_brackets_is_printed_as_it_is(tmp_path, evaluation, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows[all].jsonl", ROWS)
    assert (
        main(["decontaminate", "rows[all].jsonl:problem,solution", "--against", evaluation, "--output", "clean"]) == 0
    )
    assert "stream: rows[all].jsonl" in capsys.readouterr().out


def test_a_similarity_that_nearly_all_texts_have_is_refused_at_once(tmp_path, evaluation, capsys):
    words = ["--against", evaluation, "--output", str(tmp_path / "clean"), "--jaccard", "1e-9"]
    assert main(["decontaminate", str(tmp_path / "nowhere.jsonl"), *words]) == 2
    assert "--jaccard 1e-09 is of texts with next to nothing in common: give 0.1 or more" in capsys.readouterr().err


def test_a_home_directory_is_that_of_the_recipe_too(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    save_recipe(parse(recipe_data(tmp_path, tokenizer)), tmp_path / "recipe.yaml")
    assert main(["decontaminate", "recipe.yaml", "--against", "recipe.yaml", "--output=~/clean"]) == 0
    assert not (tmp_path / "~").exists()
    clean = load_recipe(tmp_path / "home/clean/recipe.yaml")
    assert clean.stream.sources[0].path == str(tmp_path / "home/clean/stream-0.jsonl")


def test_a_paragraph_of_raw_text_is_enough(tmp_path, evaluation):
    texts = [f"{CLEAN}\n\n{CHANGED}\n \n{CLEAN}", f"{CLEAN}\n\n{SOLUTION}", f"{CLEAN}\n\n{PROBLEM}\n{SOLUTION}"]
    path = str(tmp_path / "texts.parquet")
    datasets.Dataset.from_dict({"text": texts}).to_parquet(path)
    output = tmp_path / "clean"
    assert main(["decontaminate", path, "--against", evaluation, "--output", str(output)]) == 0
    assert [line["part"] for line in read_lines(output / "dropped.jsonl")] == ["paragraph 2", "paragraph 2"]
    assert [line["like"]["part"] for line in read_lines(output / "dropped.jsonl")] == ["problem", "whole"]
    assert [row["text"] for row in read_lines(output / "stream-0.jsonl")] == texts[1:2]


def test_rows_that_stay_keep_the_spelling_of_their_numbers(tmp_path, evaluation):
    row = f'{{"problem": "{CLEAN}", "solution": "2024-01-02", "id": 1e3, "n": [2.0, -0, null], "large": {10**30}}}'
    (tmp_path / "stream.jsonl").write_text(row + "\n")
    output = tmp_path / "clean"
    stream = f"{tmp_path / 'stream.jsonl'}:problem,solution"
    assert main(["decontaminate", stream, "--against", evaluation, "--output", str(output)]) == 0
    assert (output / "stream-0.jsonl").read_text() == row + "\n"


def test_rows_that_cannot_be_read_are_skipped_counted_and_named(tmp_path, evaluation, capsys):
    stream, output = tmp_path / "stream.jsonl", tmp_path / "clean"
    stream.write_text("\n".join([json.dumps(ROWS[1]), "no", json.dumps(ROWS[0])]))
    assert main(["decontaminate", f"{stream}:problem,solution", "--against", evaluation, "--output", str(output)]) == 0
    assert read_lines(output / "stream-0.jsonl") == ROWS[1:2]
    assert [line["example"] for line in read_lines(output / "dropped.jsonl")] == [2]  # rows that are skipped count
    reason = "is no JSON (Expecting value, at character 1)"
    expected = {"source": str(stream), "place": "line 2 of stream.jsonl", "reason": reason}
    assert read_lines(output / "skipped.jsonl") == [expected]
    (counts,) = json.loads((output / "report.json").read_text())["sources"]
    assert (counts["examples"], counts["dropped"], counts["skipped"]) == (2, 1, 1)
    assert "skipped.jsonl, 1 of the rows, which cannot be read" in capsys.readouterr().out


def test_too_many_rows_that_cannot_be_read_are_named_and_end_it(tmp_path, evaluation, capsys):
    stream, output = tmp_path / "stream.jsonl", tmp_path / "clean"
    stream.write_text(json.dumps(ROWS[1]) + "\nno" * 11)
    assert main(["decontaminate", f"{stream}:problem,solution", "--against", evaluation, "--output", str(output)]) == 2
    assert "11 of 12 rows or images cannot be read" in capsys.readouterr().err
    assert len(read_lines(output / "skipped.jsonl")) == 11
    assert not (output / "report.json").exists()


def test_a_recipe_gets_a_recipe_whose_stream_is_clean(tmp_path, tokenizer, monkeypatch):
    data = recipe_data(tmp_path, tokenizer)
    first = data["stream"]["sources"][0]
    stream, evaluation = sums(40, 1), sums(10, 3)
    write_jsonl(tmp_path / "stream.jsonl", [*stream, *evaluation])
    first["exclude"] = {"question": "99"}
    save_recipe(parse(data), tmp_path / "recipe.yaml")
    output = tmp_path / "clean"
    recipe = str(tmp_path / "recipe.yaml")
    assert main(["decontaminate", recipe, "--against", recipe, "--output", str(output), "--ngram", "2"]) == 0
    kept = [row for row in stream if "99" not in row["question"]]
    assert read_lines(output / "stream-0.jsonl") == kept
    clean = load_recipe(output / "recipe.yaml")
    assert [(s.path, s.weight, s.domain) for s in clean.stream.sources] == [
        (str(output / "stream-0.jsonl"), 0.7, "sums"),
        (str(output / "stream-1.jsonl"), 0.3, "text"),
    ]
    assert clean.evaluation == load_recipe(recipe).evaluation
    parts = assemble(clean)
    for _ in range(40):
        parts.stream.next()
    assert not parts.left_out(parts.stream.state_dict())


@pytest.mark.parametrize(
    ("stream", "against", "message"),
    [
        ("stream.jsonl:problem", "evaluation.jsonl:question", "no field 'problem'"),
        ("stream.jsonl", "evaluation.jsonl:question", "give text, prompt and response, or messages"),
        ("stream.jsonl:question", "nowhere.jsonl:question", "no data at"),
        ("~nobody-is-here/a.jsonl", "evaluation.jsonl:question", "no home directory ~nobody-is-here: write it out"),
        ("~nobody-is-here/a.jsonl:question", "evaluation.jsonl:question", "there is no home directory"),
        ("stream.jsonl:question", "broken.jsonl:question", "check the file"),
        ("stream.jsonl:question", "nowhere.yaml", "cannot read the recipe"),
        ("stream.jsonl:", "evaluation.jsonl:question", "'' is no name of a field"),
        ("stream.jsonl:question;answer", "evaluation.jsonl:question", "is no name of a field"),
    ],
)
def test_wrong_input_gets_one_line(tmp_path, monkeypatch, capsys, stream, against, message):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "stream.jsonl", sums(5, 1))
    write_jsonl(tmp_path / "evaluation.jsonl", sums(5, 2))
    (tmp_path / "broken.jsonl").write_text('{"question": "a"}\n{"question": \n')
    assert main(["decontaminate", stream, "--against", against, "--output", "clean"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "clean" / "report.json").exists()


@pytest.mark.parametrize(
    ("name", "path", "templates"),
    [
        ("rows.jsonl", "rows.jsonl", (None, None, None)),
        ("rows.jsonl:body", "rows.jsonl", ("{body}", None, None)),
        ("rows.jsonl:final answer", "rows.jsonl", ("{final answer}", None, None)),
        ("hf://datasets/a/b/test-*.parquet", "hf://datasets/a/b/test-*.parquet", (None, None, None)),
        ("http://host:80/rows.jsonl", "http://host:80/rows.jsonl", (None, None, None)),
        ("hf://datasets/a/b.parquet:question,answer", "hf://datasets/a/b.parquet", (None, "{question}", "{answer}")),
    ],
)
def test_a_source_is_a_path_or_a_url_with_or_without_fields(name, path, templates):
    source = _source(name)
    assert (source.path, (source.text, source.prompt, source.response)) == (path, templates)


def test_rows_are_counted_before_they_are_read(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", sums(7, 1))
    assert count_rows(SourceConfig(path=path)) == len(read_lines(tmp_path / "rows.jsonl"))
    assert count_rows(SourceConfig(path=path, limit=3)) == 3
    datasets.Dataset.from_list(sums(7, 1)).to_parquet(tmp_path / "rows.parquet")
    assert count_rows(SourceConfig(path=str(tmp_path / "rows.parquet"))) == count_rows(SourceConfig(path=path))
    (tmp_path / "rows.json").write_text("[]")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    for name in ("rows.json", "broken.parquet"):
        assert count_rows(SourceConfig(path=str(tmp_path / name))) is None
    assert count_rows(SourceConfig(hub="no/such", limit=5)) == 5
    assert count_rows(SourceConfig(reasoning_gym="gsm_symbolic", size=9)) == 9


def test_a_column_of_bytes_that_are_no_text_cannot_be_kept(tmp_path):
    table = pyarrow.table({"question": ["1 + 1 ?"], "answer": ["2"], "digest": [b"\xff"]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    config = SourceConfig(path=str(tmp_path / "rows.parquet"), prompt="{question}", response="{answer}")
    with pytest.raises(
        UserError, match=r"rows\.parquet: a row is no UTF-8 .*, and kept rows are written as JSON: remove"
    ):
        _line(config, open_source(config)[0])
