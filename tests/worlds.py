"""A whole run in miniature: a saved tiny learner with its tokenizer, data files, and a recipe over them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from models import tiny_model, tiny_vision_model

from vpretrain.config import Recipe
from vpretrain.recipe import parse_recipe

STEPS = 6  # of a run


def sums(count: int, seed: int) -> list[dict[str, str]]:
    """Additions of two numbers, as question and answer; different seeds share none."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(count):
        a, b = draw.randint(0, 99), draw.randint(0, 99)
        pairs.append({"question": f"{seed}: {a} + {b} ?", "answer": f"{a} + {b} = {a + b} #### {a + b}"})
    return list({pair["question"]: pair for pair in pairs}.values())


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def save_learner(directory: Path, tokenizer: Any, family: str = "llama") -> str:
    """A directory as save_pretrained writes it."""
    model = tiny_model(family, vocabulary=max(61, len(tokenizer)))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def recipe_data(root: Path, tokenizer: Any, family: str = "llama") -> dict[str, Any]:
    """A recipe that runs in a second or two; change what the test is about."""
    pair = {"prompt": "{question} ", "response": "{answer}", "domain": "sums"}
    return {
        "name": "tiny",
        "output": str(root / "runs"),
        "learner": {"name": save_learner(root / "learner", tokenizer, family)},
        "optimizer": {"lr": 1e-3},
        "stream": {
            "length": 48,
            "batch_size": 2,
            "min_chunk": 4,
            "sources": [
                {"path": write_jsonl(root / "stream.jsonl", sums(40, 1)), **pair, "weight": 0.7},
                {
                    "path": write_jsonl(root / "text.jsonl", [{"text": "the sum of two numbers " * 8}] * 5),
                    "domain": "text",
                    "weight": 0.3,
                },
            ],
        },
        "feedback": {
            "length": 48,
            "batch_size": 2,
            "sources": [{"path": write_jsonl(root / "feedback.jsonl", sums(12, 2)), **pair}],
        },
        "designer": {"hidden_size": 16, "layers": 1, "heads": 2, "top_k": 8, "lr": 1e-2},
        "value": {"every_steps": 2, "batch_size": 2, "length": 48},
        "budget": {"steps": STEPS},
        "evaluation": {
            "sources": [{"path": write_jsonl(root / "evaluation.jsonl", sums(10, 3)), **pair}],
            "retention": [{"path": write_jsonl(root / "other.jsonl", [{"text": "a b c d e f g h " * 20}])}],
            "problems": 6,
            "pass_at_1_problems": 2,
            "max_new_tokens": 4,
            "retention_tokens": 96,
            "length": 48,
        },
    }


def tiny_recipe(root: Path, tokenizer: Any, family: str = "llama", **changes: Any) -> Recipe:
    """`recipe_data` as a recipe, with top-level sections merged in."""
    return parse_recipe(merged(recipe_data(root, tokenizer, family), changes))


def vision_recipe(root: Path, family: str = "dinov2", **changes: Any) -> Recipe:
    """A vision recipe over tiny generated scenes that runs in a few seconds."""
    saved = root / f"vision-{family}"
    if not saved.exists():
        tiny_vision_model(family).save_pretrained(saved)
    data: dict[str, Any] = {
        "modality": "vision",
        "name": "tiny",
        "arm": "v-paper",
        "output": str(root / "runs"),
        "learner": {
            "name": str(saved),
            "dino": {"outputs": 32, "hidden": 32, "bottleneck": 16, "warm_up_steps": 10},
        },
        "optimizer": {"lr": 1e-3},
        "stream": {
            "sources": [{"scenes": 24, "seed": 1, "size": 40}],
            "batch_size": 4, "global_size": 32, "local_size": 16, "local_views": 2,
        },
        "feedback": {
            "heads": [{"scenes": 8, "seed": 2, "size": 32}],
            "meta": [{"scenes": 8, "seed": 3, "size": 32}],
            "size": 32, "depth": 1.0, "batch_size": 4, "head_batch_size": 4, "first_head_steps": 5,
        },
        "designer": {"width": 4, "levels": 2, "lr": 1e-2},
        "value": {"every_steps": 2, "batch_size": 4, "subset": "last-2"},
        "budget": {"steps": STEPS},
        "evaluation": {
            "train": [{"scenes": 12, "seed": 4, "size": 32}],
            "test": [{"scenes": 6, "seed": 5, "size": 32, "cameras": 2}],
            "size": 32, "probe_steps": 10,
        },
    }  # fmt: skip
    return parse_recipe(merged(data, changes))


def small_recipe(modality: str, root: Path, tokenizer: Any, **changes: Any) -> Recipe:
    """`STEPS` steps, a meta update every other one, two micro-batches per step.

    The exact task has its full tilt: an automatic strength is first judged after more steps than the run has.
    """
    changes = {"stream": {"accumulation": 2}, **changes, "value": {"strength": 1.0, **changes.get("value", {})}}
    return tiny_recipe(root, tokenizer, **changes) if modality == "language" else vision_recipe(root, **changes)


def merged(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A recipe with the settings of sections, or with whole sections, changed."""
    return data | {
        section: data[section] | values if isinstance(values, dict) and section in data else values
        for section, values in changes.items()
    }
