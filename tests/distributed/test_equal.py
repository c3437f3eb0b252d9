"""One process and two: the same losses, values and designer's gradients, and the same end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from distributed.processes import NUMBERS, distance, run, together
from sessions import end_of
from torch.distributed.tensor import DTensor
from worlds import tiny_recipe, vision_recipe

from vpretrain.files import read_lines
from vpretrain.method.strength import Judgement
from vpretrain.run.train import begin

pytestmark = pytest.mark.distributed

GRADIENT = "designer's gradient"  # its running mean, which Adam keeps
PARTS = {"learner": "", "teacher": "", "designer": "", "designer-optimizer": "exp_avg"}
SMALL = {"predictor_width": 16, "predictor_layers": 1, "predictor_heads": 2, "warm_up_steps": 5}
TINY_HEAD = {"outputs": 32, "hidden": 32, "bottleneck": 16, "warm_up_steps": 5}
LAST_MLP = {"subset": "last-mlp"}
LORA = {"r": 4, "alpha": 8, "dropout": 0.0}
TILT = {"language": "alpha", "vision": "tilt"}  # its mean, in the log
# fp32: sums in another order. A difference quotient magnifies their rounding, Adam that of gradients near 0, in phi alone, and
# the exponent of a tilt that of values near 0, in the gate.
TOLERANCE = {"ddp": 1e-4, "fsdp": 1e-2}
# L1: where biases are refitted, the error of one pixel in some thousand is 0, and its sign is that of rounding.
OF_DEPTHS = 2e-3
OF_PHI = {"ddp": 1e-3, "fsdp": 5e-2}


def two_domains(root):
    """Pairs of which a domain has few: on some steps a process has none of it."""
    from worlds import sums, write_jsonl

    pair = {"prompt": "{question} ", "response": "{answer}"}
    return [
        {"path": write_jsonl(root / f"feedback-{domain}.jsonl", sums(12, seed)), **pair, "domain": domain}
        for domain, seed in (("sums", 2), ("text", 7))
    ]


CASES = {
    "language": {},
    "language-accumulation": {"stream": {"accumulation": 2}},
    "language-shards": {"stream": {"shards": 2}},
    "language-lora": {"learner": {"lora": LORA}},
    "language-exact": {"arm": "v-exact"},
    "language-exact-auto": {"arm": "v-exact", "value": {"strength": "auto", "every_steps": 1}},
    "language-exact-cosine": {"arm": "v-exact", "value": {"align": "cosine"}},
    "language-learned": {"arm": "v-learned"},
    "language-kept": {"arm": "v-learned", "value": {"feedback_every": 2}},
    "language-domains": {"value": {"domains": "matched"}},
    "language-random-feedback": {"arm": "random-feedback"},
    "language-one-hot": {"arm": "one-hot"},
    "language-self-distillation": {"arm": "self-distillation"},
    "vision-dino": {},
    "vision-ijepa": {"learner": {"objective": "ijepa", "ijepa": SMALL}, "stream": {"local_views": 0}},
    "vision-exact": {"arm": "v", "value": LAST_MLP},
    "vision-blocks": {"arm": "v"},
    "vision-patches": {"arm": "v", "value": LAST_MLP, "learner": {"dino": {**TINY_HEAD, "patch_loss": 1.0}}},
    "vision-random-mask": {"arm": "random-mask"},
}
LONG = {
    "language-kept",
    "vision-exact",
    "vision-blocks",
    "language-random-feedback",
    "language-self-distillation",
    "vision-random-mask",
    "language-one-hot",
    ("vision-patches", "fsdp"),
    ("vision-ijepa", "fsdp"),
}


def recipe_of(case, parallel, root, tokenizer, name):
    changes = dict(CASES[case])
    value = {"every_steps": 2, "strength": 1.0, **changes.pop("value", {})}
    if parallel == "fsdp":
        value["engine"] = "finite_difference"
        changes["parallel"] = "fsdp"
    if case.startswith("vision"):
        # The heads' first steps have the signs of gradients near 0, above all from 0.
        heads = {"zero_head": False, "head_lr": 1e-3}
        recipe = vision_recipe(root, name=name, value=value, feedback=heads, **changes)
        config = Path(recipe.learner.name) / "config.json"  # each process drops paths of its own
        config.write_text(config.read_text().replace('"drop_path_rate": 0.1', '"drop_path_rate": 0.0'))
        return recipe
    stream = {"batch_size": 4, **changes.pop("stream", {})}
    feedback = {"batch_size": 4} | ({"sources": two_domains(root)} if "domains" in case else {})
    value = {"batch_size": 4, **value}
    return tiny_recipe(root, tokenizer, name=name, value=value, stream=stream, feedback=feedback, **changes)


def ends_apart(end, end_too):
    """By group, the distance of two runs' last checkpoints."""
    (groups, state), (groups_too, state_too) = end, end_too
    assert state["stream"] == state_too["stream"]
    assert state["feedback"] == state_too["feedback"]
    found = {}
    for group, name_of in PARTS.items():
        if group in groups:
            mine, theirs = (
                torch.cat([t.flatten() for name, t in ends[group].items() if name.endswith(name_of)])
                for ends in (groups, groups_too)
            )
            found[GRADIENT if name_of else group] = distance(mine, theirs)
    return found


def differences(one, other):
    """The largest differences of what two runs logged, and of where they ended."""
    found = {}
    logs = [read_lines(r.directory / "metrics.jsonl") for r in (one, other)]
    assert len(logs[0]) == len(logs[1]) > 0
    for mine, theirs in zip(*logs, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(mine[unit] == theirs[unit] for unit in ("tokens", "images") if unit in mine)
        for name in NUMBERS:
            if name in mine:
                scale = max(abs(mine[name]), 1e-2)
                found[name] = max(found.get(name, 0.0), abs(mine[name] - theirs[name]) / scale)
    return found | ends_apart(end_of(one), end_of(other))


@pytest.mark.usefixtures("both_questions")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(tmp_path, tokenizer, many, differences_seen, case, parallel):
    if (case in LONG or (case, parallel) in LONG) and many(True, False):
        pytest.skip("in the long form")
    if (case, parallel) == ("language-exact-auto", "fsdp"):
        pytest.skip("shards judge the strength on means of pairs, and so a little differently: see the next test")
    if (case, parallel) == ("vision-blocks", "fsdp"):
        pytest.skip("refused: shards have no tangent through blocks")
    one, two = (recipe_of(case, parallel, tmp_path, tokenizer, name) for name in ("one", "two"))
    together(1, run, one)
    together(2, run, two)
    lines = read_lines(two.directory / "metrics.jsonl")
    arm = two.arms[two.arm]
    assert (sum("g_down_norm" in line for line in lines) >= 2) == arm.steered
    if arm.exact:
        assert sum(line[TILT[two.modality]] > 0 for line in lines) >= 2
    assert [line["step"] for line in lines if "strength" in line] == ([2, 4] if two.value.strength == "auto" else [])
    found = differences(one, two)
    differences_seen[f"{case} {parallel}"] = dict(found)
    phi = max(found.pop(name, 0.0) for name in ("designer", "alpha", "tilt"))
    if parallel == "fsdp":  # the value is a finite difference's quotient, whose rounding depends on the processor
        assert found.pop("value", 0.0) < 5e-2
    assert max(found.values()) < max(TOLERANCE[parallel], OF_DEPTHS * case.startswith("vision")), found
    assert phi < max(OF_PHI[parallel], OF_DEPTHS * case.startswith("vision")), phi


def test_shards_judge_the_strength_as_one_process_does(tmp_path, tokenizer):
    """Twice: whether there is a direction, and how far it helps.

    It takes the mean over the pairs of a turn, such as two turns of two in place of four pairs, so the scatter is another.
    """
    one, two = (recipe_of("language-exact", "fsdp", tmp_path, tokenizer, name) for name in ("one", "two"))
    found = []
    for processes, recipe in ((1, one), (2, two)):
        value, budget = (
            recipe.value.model_copy(update={"strength": "auto"}),
            recipe.budget.model_copy(update={"steps": 66}),
        )
        together(processes, run, recipe.model_copy(update={"value": value, "budget": budget}))
        lines = read_lines(recipe.directory / "metrics.jsonl")
        found.append([line["strength"] for line in lines if "strength" in line])
    assert len(found[0]) == len(found[1]) == 2
    assert found[1] == pytest.approx(found[0], abs=0.2)
    assert found[1][0] == 1


@pytest.mark.usefixtures("both_questions")
@pytest.mark.parametrize("case", ["vision-exact", "vision-ijepa"])
def test_two_processes_judge_images_as_one_does(tmp_path, tokenizer, case):
    """Also where one has an image more than the other, of the feedback and of the stream."""
    found = []
    for processes, name in ((1, "one"), (2, "two")):
        recipe = recipe_of(case, "ddp", tmp_path, tokenizer, name)
        update = {"strength": "auto", "batch_size": 3, "every_steps": 2}
        changed = {
            "arm": "v",
            "value": recipe.value.model_copy(update=update),
            "feedback": recipe.feedback.model_copy(update={"batch_size": 5}),
        }
        recipe = recipe.model_copy(update=changed)
        together(processes, run, recipe)
        found.append(judgement_of(recipe))
    assert len(found[0]["agreement"]) == 10
    for name in found[0]:
        apart = distance(*(torch.tensor(judgement[name]) for judgement in found))
        assert apart < 1e-2, (name, apart)


def judgement_of(recipe):
    """The last judgement, by what it measured; its pairs in the order of their numbers."""
    _, state = end_of(recipe)
    measured = Judgement(*state["strength"]["judgements"][0])
    assert measured.a
    return {
        name: sorted(numbers) if isinstance(numbers, list) else numbers for name, numbers in measured._asdict().items()
    }


@pytest.mark.parametrize("arm", ["selection", "token-weights"])
def test_shards_choose_and_weigh_as_whole_learners_do(tmp_path, tokenizer, arm):
    """In two processes both times: each chooses among its own rows, and weighs its own tokens."""
    whole, shards = (
        recipe_of("language-exact", parallel, tmp_path, tokenizer, parallel).model_copy(update={"arm": arm})
        for parallel in ("ddp", "fsdp")
    )
    for recipe in (whole, shards):
        together(2, run, recipe)
    assert sum("g_down_norm" in line for line in read_lines(shards.directory / "metrics.jsonl")) >= 2
    assert max(differences(whole, shards).values()) < TOLERANCE["fsdp"]


def local_shares(recipe):
    """Of every parameter of the learner, and of the teacher, the share of its rows that lie here."""
    learner = begin(recipe).learner
    parameters = dict(learner.named_parameters())
    if hasattr(learner, "teacher"):
        parameters |= {f"teacher.{name}": p for name, p in learner.teacher.named_parameters()}
    assert all(isinstance(p, DTensor) for p in parameters.values())
    return [p.to_local().numel() / p.numel() for p in parameters.values()]


@pytest.mark.parametrize("case", ["language", "vision-dino"])
def test_shards_are_halves(tmp_path, tokenizer, case):
    shares = together(2, local_shares, recipe_of(case, "fsdp", tmp_path, tokenizer, "two"))
    assert all(first + second == 1 for first, second in zip(*shares, strict=True))
    assert sum(abs(share - 0.5) < 0.02 for share in shares[0]) > 0.9 * len(shares[0])  # an odd row goes to the first


def is_even(text, example):
    """Right for about half of all attempts, whatever the problem."""
    return sum(map(ord, text)) % 2 == 0


def problems_of(recipe):
    """The problems with a gradient that this process has, by the keys of their attempts."""
    (batch,) = begin(recipe).feedback.next().values()
    return [part.keys for part in batch.apart()]


def test_two_processes_follow_a_verifier_as_one_does(tmp_path, tokenizer, monkeypatch, differences_seen):
    """They make the same attempts and divide the problems whose attempts differ."""
    monkeypatch.setattr("vpretrain.language.verified.solves", is_even)
    kwargs = {
        "arm": "v",
        "stream": {"batch_size": 4},
        "feedback": {"reward": "answer", "attempts": 8, "batch_size": 4},
        "value": {"every_steps": 1, "strength": 1.0, "batch_size": 4},
    }
    one, two = (tiny_recipe(tmp_path, tokenizer, name=name, **kwargs) for name in ("one", "two"))
    (whole,) = together(1, problems_of, one)
    first, second = together(2, problems_of, two)
    assert first
    assert second
    assert sorted(first + second) == sorted(whole)
    together(1, run, one)
    together(2, run, two)
    assert sum("g_down_norm" in line for line in read_lines(two.directory / "metrics.jsonl")) >= 4
    found = differences(one, two)
    differences_seen["language-verifier ddp"] = dict(found)
    assert max(found.values()) < OF_PHI["ddp"], found
