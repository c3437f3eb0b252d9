"""Standard benchmarks by lm-eval on local task files: its figures, agreement with our own Pass@1, and one line for mistakes."""

from __future__ import annotations

import contextlib
import functools
import io
import json

import pytest
import yaml
from conftest import character_tokenizer
from lm_eval.tasks import _index
from models import tiny_model
from worlds import save_learner, tiny_recipe

from vpretrain.cli.parser import main
from vpretrain.errors import UserError
from vpretrain.language.data.feedback import problems
from vpretrain.language.data.source import SourceConfig
from vpretrain.language.evaluation import harness
from vpretrain.language.evaluation.evaluate import Evaluation
from vpretrain.language.evaluation.solve import is_correct
from vpretrain.recipe import save_recipe
from vpretrain.run import run_recipe

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

GSM = {
    "output_type": "generate_until",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["Question:"], "do_sample": False, "max_gen_toks": 8},
    "metric_list": [
        {
            "metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True,
            "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
        }
    ],
    "filter_list": [
        {"name": "strict-match", "filter": [
            {"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"}, {"function": "take_first"}]},
        {"name": "flexible-extract", "filter": [
            {"function": "regex", "group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"},
            {"function": "take_first"}]},
    ],
    "num_fewshot": 0,
    "metadata": {"version": 3.0},
}  # fmt: skip
OUTPUTS = {  # what a model says -> the truth
    " 3 + 4 = 7 #### 7": "7",
    " it is 1,200 in all\n#### 1,200": "1200",
    " #### 13": "12",
    " the answer is 42": "42",
    " the answer is 41": "42",
    " first 5, then 6": "6",
    " nothing at all": "6",
    " so #### -3": "-3",
    " costs $18": "18",
}


def write_tasks(root):
    """A folder with a task like the harness's own gsm8k, on a file."""
    folder = root / "tasks"
    folder.mkdir()
    rows = [
        {"question": f"q{number} ?", "answer": f"because #### {truth}", "said": said}
        for number, (said, truth) in enumerate(OUTPUTS.items())
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(root / "rows.jsonl")}}}
    (folder / "local.yaml").write_text(yaml.safe_dump({"task": "local_gsm", "test_split": "test", **data, **GSM}))
    return folder


@pytest.fixture(autouse=True, scope="module")
def _index_read_once():
    """The harness's own thousands of task files are the same for all tests, and take seconds to read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_index, "load_yaml", functools.cache(_index.load_yaml))
        yield


@pytest.fixture
def tasks(tmp_path):
    return write_tasks(tmp_path)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A finished run scored on the task: the command, the recipe's file, what was printed, what was saved."""
    root = tmp_path_factory.mktemp("scored")
    recipe = tiny_recipe(root, character_tokenizer(), arm="one-hot", budget={"steps": 1})
    run_recipe(recipe)
    output = root / "scores.json"
    save_recipe(recipe, root / "recipe.yaml")
    include = ["--include", str(write_tasks(root))]
    command = ["evaluate", str(recipe.directory), "--tasks", "local_gsm", *include, "--limit", "5"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*command, "--output", str(output)]) == 0
    return command, root / "recipe.yaml", printed.getvalue(), json.loads(output.read_text())


def test_a_run_is_scored_by_every_filter_of_a_task(scored):
    _, _, printed, saved = scored
    assert "flexible-extract" in printed
    assert "strict-match" in printed
    scores = saved["tasks"]["local_gsm"]["scores"]
    assert {score["filter"] for score in scores} == {"strict-match", "flexible-extract"}
    assert all(score["metric"] == "exact_match" and score["higher_is_better"] for score in scores)


def test_scores_are_saved_with_what_is_needed_to_repeat_them(scored):
    saved = scored[-1]
    task = saved["tasks"]["local_gsm"]
    assert (task["version"], task["shots"], task["problems"]) == (3.0, 0, 5)
    assert saved["limit"] == 5
    assert "lm_eval" in saved["versions"]
    assert len(saved["samples"]["local_gsm"]) == 10  # by filter


def test_tasks_and_the_evaluation_of_a_recipe_go_together(scored, capsys):
    command, recipe, _, _ = scored
    both = [*command[:2], str(recipe), *command[2:], "--json", "--shots", "0"]
    assert main(both) == 0
    found = json.loads(capsys.readouterr().out)
    assert "answer_nll" in found
    assert "local_gsm" in found["tasks"]


def let_it_say(monkeypatch, said):
    """The model answers each prompt as given."""

    def answer(self, requests, **options):
        return [said[request.args[0]] for request in requests]

    monkeypatch.setattr(harness.HFLM, "generate_until", answer)


def test_our_own_pass_at_1_agrees_on_the_same_outputs(tmp_path, tokenizer, tasks, monkeypatch):
    """What follows #### (its strict-match), else the last number (its flexible-extract)."""
    said = {f"Question: q{number} ?\nAnswer:": text for number, text in enumerate(OUTPUTS)}
    let_it_say(monkeypatch, said)
    learner = save_learner(tmp_path / "learner", tokenizer)
    found = harness.run_tasks(learner, ["local_gsm"], include=str(tasks))
    theirs = {
        (sample["doc"]["said"], sample["filter"]): bool(sample["exact_match"])
        for sample in found["samples"]["local_gsm"]
    }
    for text, truth in OUTPUTS.items():
        assert is_correct(text, truth) is theirs[text, "strict-match" if "####" in text else "flexible-extract"], text

    config = tiny_recipe(tmp_path, tokenizer).evaluation.model_copy(update={"pass_at_1_problems": len(OUTPUTS)})
    source = SourceConfig(
        path=str(tmp_path / "rows.jsonl"), prompt="Question: {question}\nAnswer:", response=" {answer}"
    )
    evaluation = Evaluation(config, problems([source], len(OUTPUTS))[0], [], tokenizer)
    monkeypatch.setattr(
        "vpretrain.language.evaluation.evaluate.solve",
        lambda learner, tokenizer, examples, length, **options: [[said[example.prompt]] for example in examples],
    )
    from vpretrain.language.model.learner import LanguageLearner

    ours = evaluation(LanguageLearner(tiny_model()))["pass_at_1"]
    best = [
        theirs[text, "strict-match"] or ("####" not in text and theirs[text, "flexible-extract"]) for text in OUTPUTS
    ]
    assert ours == pytest.approx(sum(best) / len(best))


def test_groups_and_formulas_the_way_omega_has_them(tmp_path, tokenizer, monkeypatch):
    rows = [
        {"messages": [{"role": "user", "content": f"problem {i}"}], "ground_truth": truth, "setting_key": setting}
        for i, (truth, setting) in enumerate([("\\frac{1}{2}", "b"), ("12", "b"), ("x^2 + 1", "a"), ("0.3333", "a")])
    ]
    folder = tmp_path / "omega"
    folder.mkdir()
    for split in ("in", "out"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = (harness.OWN_TASKS / "omega_explorative_in.yaml").read_text()
        for theirs, ours in {
            "omega_explorative_in": f"local_omega_{split}",
            "allenai/omega-explorative": "json",
            '"*/test_in-*.parquet"': str(tmp_path / f"{split}.jsonl"),
        }.items():
            assert theirs in task
            task = task.replace(theirs, ours)
        (folder / f"{split}.yaml").write_text(task)
    (folder / "omega.py").write_text((harness.OWN_TASKS / "omega.py").read_text())
    group = yaml.safe_load((harness.OWN_TASKS / "omega.yaml").read_text())
    group |= {"group": "local_omega", "task": ["local_omega_in", "local_omega_out"]}
    (folder / "group.yaml").write_text(yaml.safe_dump(group))
    answers = ["It is $\\boxed{0.5}$.", "so 13", "#### 1 + x^2", "\\boxed{0.3339}"]
    asked = "Solve the problem step by step, and put the final answer in \\boxed{}.\nAnswer:"
    said = {f"problem {i}\n{asked}": answer for i, answer in enumerate(answers)}
    let_it_say(monkeypatch, said)
    found = harness.run_tasks(save_learner(tmp_path / "learner", tokenizer), ["local_omega"], include=str(folder))
    assert found["tasks"]["local_omega"]["scores"][0]["value"] == pytest.approx(3 / 4)
    assert found["tasks"]["local_omega"]["parts"] == []
    one = found["tasks"]["local_omega_out"]
    assert one["problems"] == 4
    assert [(part["part"], part["problems"], part["value"]) for part in one["parts"]] == [("a", 2, 1.0), ("b", 2, 0.5)]
    assert [part["standard_error"] for part in one["parts"]] == [0.0, pytest.approx(0.5)]
    cells = list(zip(*(column.cells for column in harness.tasks_table(found).columns), strict=True))
    assert ("  b", "", "", "2", "none", "exact_match", "0.5000 ± 0.5000") in cells
    assert {"omega", "omega_explorative_in", "gsm8k", "mbpp"} <= set(
        harness.TaskManager(include_path=[str(harness.OWN_TASKS)]).all_tasks
    )


def test_mistakes_get_one_line(tmp_path, tokenizer, tasks, capsys):
    learner = save_learner(tmp_path / "learner", tokenizer)
    with pytest.raises(UserError, match="no task 'gsm9k'"):
        harness.run_tasks(learner, ["gsm9k"])
    with pytest.raises(UserError, match="gsm8k: ") as caught:  # its data are on the hub, which tests do not reach
        harness.run_tasks(learner, ["gsm8k"], limit=1)
    assert "\n" not in str(caught.value)
    unsafe = {**yaml.safe_load((tasks / "local.yaml").read_text()), "task": "local_code", "unsafe_code": True}
    (tasks / "code.yaml").write_text(yaml.safe_dump(unsafe))
    with pytest.raises(UserError, match="add --run-code"):
        harness.run_tasks(learner, ["local_code"], include=str(tasks))
    assert main(["evaluate", learner]) == 2
    assert "a recipe, --tasks gsm8k,mmlu or both" in capsys.readouterr().err


def test_a_task_that_there_is_not_is_refused_before_the_evaluation_of_a_recipe(scored, capsys, monkeypatch):
    command, recipe, _, _ = scored
    monkeypatch.setattr("vpretrain.modality.Modality.measure", lambda *_: pytest.fail("measured"))
    words = ["--tasks", "local_gsm, gsm9k", *command[4:]]
    assert main([*command[:2], str(recipe), *words]) == 2
    assert "no task 'gsm9k'" in capsys.readouterr().err
