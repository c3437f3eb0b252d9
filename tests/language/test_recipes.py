"""The recipes in recipes/ load, and the paper's run through on a tiny Qwen2 with files in their data sets' formats."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import yaml
from worlds import save_learner, sums, write_jsonl

from vpretrain import UserError, load_recipe, run_recipe
from vpretrain.cli.parser import main
from vpretrain.language.data.source import open_source
from vpretrain.language.inspection.check import GENERATED, check
from vpretrain.modality import modality_of
from vpretrain.plain import texts
from vpretrain.recipe import parse_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(path.name for path in RECIPES.glob("*.yaml"))
PAPER = sorted(path.name for path in RECIPES.glob("qwen*.yaml"))


def rows_like(name: str, split: str, count: int = 40) -> list[dict]:
    """Rows with the fields of a data set on the hub; the text is ours and differs from set to set."""
    pairs = sums(count, sum(map(ord, name + split)))
    text = [f"{i} about {name} " * 12 for i in range(count)]
    match name:
        case "AI-MO/NuminaMath-CoT":
            return [
                {"source": "gsm8k" if i % 4 == 0 else "olympiads", "problem": p["question"], "solution": p["answer"],
                 "messages": [{"content": p["question"], "role": "user"}]}
                for i, p in enumerate(pairs)
            ]  # fmt: skip
        case "TIGER-Lab/MathInstruct":
            kinds = [
                "data/CoT/gsm_train.json",
                "data/PoT/MATH_train.json",
                "data/CoT/aqua_rat.json",
                "data/PoT/mathqa.json",
            ]
            return [
                {"source": kinds[i % 4], "instruction": p["question"], "output": p["answer"]}
                for i, p in enumerate(pairs)
            ]
        case "openai/gsm8k":
            return pairs
        case "nvidia/OpenMathReasoning":
            kinds = ["has_answer_extracted", "no_answer_extracted", "has_answer_extracted", "converted_proof"]
            return [
                {"problem_type": kinds[i % 4], "problem": p["question"], "generated_solution": p["answer"],
                 "expected_answer": p["answer"][-2:], "inference_mode": "cot"}
                for i, p in enumerate(pairs)
            ]  # fmt: skip
        case "meta-math/MetaMathQA":
            return [
                {"query": p["question"], "response": p["answer"], "type": "GSM_AnsAug", "original_question": "?"}
                for p in pairs
            ]
        case "ise-uiuc/Magicoder-OSS-Instruct-75K":
            return [{"lang": "python", "problem": p["question"], "solution": p["answer"], "seed": ""} for p in pairs]
        case "cais/mmlu":
            return [
                {
                    "question": f"{p['question']} {split}",
                    "subject": "",
                    "choices": ["1", "2", "3", p["answer"][-2:]],
                    "answer": 3,
                }
                for p in pairs
            ]
        case "tatsu-lab/alpaca":
            return [
                {"instruction": p["question"], "input": "" if i % 2 else "now", "output": p["answer"], "text": "all"}
                for i, p in enumerate(pairs)
            ]
        case "codeparrot/codeparrot-clean":
            return [{"repo_name": "a/b", "path": "c.py", "content": t, "license": "mit"} for t in text]
        case "allenai/c4":
            return [{"text": t, "timestamp": "2019-04-25T12:57:54Z", "url": "http://x"} for t in text]
        case "open-web-math/open-web-math":
            return [{"url": "http://x", "text": t, "date": "2019", "metadata": "{}"} for t in text]
    raise AssertionError(f"no fixture for {name}")


def in_miniature(name: str, root: Path, tokenizer):
    """The recipe with its hub names replaced by files, and its sizes by small ones; all else stands."""
    recipe = yaml.safe_load((RECIPES / name).read_text())
    roles = [recipe["stream"]["sources"], recipe["feedback"]["sources"], recipe["evaluation"]["sources"]]
    for source in sum(roles, recipe["evaluation"]["retention"]):
        hub, split = source.pop("hub"), source.pop("split", "train")
        source.pop("config", None)
        file = root / f"{hub.replace('/', '-')}-{split}.jsonl"
        source["path"] = write_jsonl(file, rows_like(hub, split))
        source["limit"] = {50000: 20, 5000: 10, 1024: 10}.get(source.get("limit"), 10 if "limit" in source else None)
        source["skip"] = {0: 0, 5000: 10, 6024: 20}[source.get("skip", 0)]
    recipe["learner"]["name"] = save_learner(root / "learner", tokenizer, "qwen2")
    recipe["output"] = str(root / "runs")
    recipe["stream"] |= {"length": 64, "batch_size": 4, "accumulation": 2}
    recipe["feedback"] |= {"length": 64, "batch_size": 2}
    recipe["designer"] |= {"hidden_size": 16, "layers": 1, "heads": 2, "top_k": 8}
    recipe["value"] |= {"length": 64, "every_steps": 2}
    recipe["budget"] = {"steps": 4}
    recipe["evaluation"] |= {
        "problems": 4,
        "pass_at_1_problems": 2,
        "max_new_tokens": 4,
        "retention_tokens": 128,
        "length": 64,
    }
    return parse_recipe(recipe)


def needs(name: str) -> tuple[set[str], bool]:
    """The files that a recipe needs from outside, and whether it needs the hub."""
    data = yaml.safe_load((RECIPES / name).read_text())
    words = set(texts(data))
    return {word for word in words if word.startswith("data/")}, "hub" in words or "/" in data["learner"]["name"]


ON_HUB = [name for name in ALL if needs(name)[1]]
WHOLE = [name for name in ALL if needs(name) == (set(), False)]  # with the packages of the quickstarts


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_loads_and_is_named_after_its_file(name):
    recipe = load_recipe(RECIPES / name)
    assert f"{recipe.name}.yaml" == name


@pytest.mark.parametrize("name", ALL)
def test_the_first_line_of_a_recipe_says_what_to_fetch(name):
    first = (RECIPES / name).read_text().splitlines()[1]  # after that of the schema
    files, hub = needs(name)
    assert first.startswith("# Fetch: ") == bool(files or hub)
    assert "hub" in first or not hub
    assert [file for file in files if "/".join(file.split("/")[:2]) not in first] == []


@pytest.mark.parametrize("name", ON_HUB)
def test_without_the_hub_a_recipe_is_refused_with_remedies(name):
    recipe = load_recipe(RECIPES / name)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set: give a directory of save_pretrained, or take pypi:"):
        list(modality_of(recipe).check(recipe))


@pytest.mark.parametrize("name", [name for name in WHOLE if "vision" not in name])
def test_the_roles_of_a_generated_recipe_share_no_problem(name):
    recipe = load_recipe(RECIPES / name)
    roles = (recipe.stream, recipe.feedback, recipe.evaluation)
    keys = [
        {example.key for source in role.sources for example in itertools.islice(open_source(source), GENERATED)}
        for role in roles
    ]
    assert [len(one & other) for one, other in itertools.combinations(keys, 2)] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_recipe_passes_its_check(name, monkeypatch, capsys):
    monkeypatch.chdir(RECIPES.parent)
    files, hub = needs(name)
    if hub or not all(Path(file).exists() for file in files):
        pytest.skip("what its first line names is not here")
    assert main(["check", f"recipes/{name}"]) == 0
    assert "memory: about" in capsys.readouterr().out


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings(name):
    recipe = load_recipe(RECIPES / name)
    first = name.startswith("qwen1.5")  # of the paper's version 1
    assert recipe.learner.name == ("Qwen/Qwen1.5-0.5B" if first else "Qwen/Qwen2.5-0.5B")
    assert (recipe.designer.top_k, recipe.designer.alpha_max, recipe.value.every_steps) == (64, 0.5, 8)
    assert (recipe.designer.hidden_size, recipe.designer.layers, recipe.value.subset) == (256, 6, "last-mlp")
    assert recipe.model_copy(update={"arm": "v-paper"}).effective_value.subset == "last-2"
    assert recipe.optimizer.lr == (2e-4 if recipe.learner.lora else 7.5e-6 if first else 1.5e-5)
    assert (recipe.optimizer.warmup_fraction, recipe.optimizer.clip_norm) == (0.03, 1.0)
    if "openmathreasoning" not in name:
        assert recipe.stream.batch_size * recipe.stream.accumulation == (32 if recipe.learner.lora else 128)
    if first:
        assert (recipe.optimizer.schedule, recipe.stream.packing, recipe.stream.length) == ("cosine", True, 1024)
        asked = [s for part in (recipe.stream, recipe.feedback, recipe.evaluation) for s in part.sources]
        assert all(re.fullmatch(r"Question: \{\w+\}\nAnswer:", source.prompt) for source in asked)


@pytest.mark.usefixtures("judged_early")
@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("arm", ["one-hot", "v"])
def test_the_papers_recipes_run_through(name, arm, tmp_path, tokenizer):
    recipe = in_miniature(name, tmp_path, tokenizer).model_copy(update={"arm": arm})
    lines = list(check(recipe))
    assert "stream examples share no problem" in lines[1]
    result = run_recipe(recipe)
    assert result.steps == 4
    assert result.meta_updates == (1 if arm == "v" else 0)
    if "multitask" in name:
        assert set(result.answer_nll_by_domain) == {"math", "code", "general"}
