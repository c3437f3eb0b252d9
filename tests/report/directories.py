"""Directories of runs and comparisons as `vpretrain run` and `compare` leave them, written by hand: nothing is trained."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from vpretrain.recipe import parse_recipe, save_recipe

CASES = 8
HOSTILE = "<script>alert(1)</script> \"'onload=x </style> $\\frac{ --> {{ 7*7 }} &lt;"
VERSIONS = {"vpretrain": "0.1.0", "torch": "2.10.0", "transformers": "5.3.0", "python": "3.12.1"}
ORIGIN = {"date": "2026-11-29T15:20:00+00:00", "commit": "b68c0a5", "hardware": "a processor, 2 cores, 8 GiB"}
DIFFERENCE = {"mean": -0.0917, "low": -0.1517, "high": -0.0497}
OPPOSITE = {"mean": 0.0917, "low": 0.0497, "high": 0.1517}


def recipe_data(root: Path, **changes: Any) -> dict[str, Any]:
    pair = {"prompt": "{question} ", "response": "{answer}", "domain": "sums"}
    return {
        "name": "study",
        "output": str(root),
        "learner": {"name": "/home/somebody/learner"},
        "optimizer": {"lr": 3e-5},
        "stream": {"sources": [{"path": "/home/somebody/stream.jsonl", **pair}]},
        "feedback": {"sources": [{"path": "feedback.jsonl", **pair}]},
        "budget": {"minutes": 2},
        "evaluation": {"sources": [{"path": "evaluation.jsonl", **pair}], "points": 2},
        **changes,
    }


def result(arm: str, seed: int, nll: float, *, steps: int, seconds: float = 120.0, **more: Any) -> dict[str, Any]:
    tokens = 512 * steps
    return {
        "name": arm, "arm": arm, "seed": seed, "steps": steps, "processes": 1, "tokens": tokens, "seconds": seconds,
        "tokens_per_s": tokens / seconds if steps else None, "peak_memory_bytes": 3 * 2**30, "total_steps": steps,
        "meta_updates": steps // 8 if arm == "v" else 0, "mean_alpha": 0.137 if arm == "v" else 0.0,
        "answer_nll": nll, "answer_nll_low": nll - 0.1, "answer_nll_high": nll + 0.1, "pass_at_1": 0.0625,
        "retention_nll": 2.8301, "problems": [{"key": str(n), "domain": "sums", "nll": nll} for n in range(CASES)], **more,
    }  # fmt: skip


def write_run(directory: Path, arm: str, seed: int, nll: float, *, steps: int = 40, **changes: Any) -> dict[str, Any]:
    """A finished run; returns its result."""
    directory.mkdir(parents=True)
    own: dict[str, Any] = {"arm": arm, "seed": seed, "name": directory.name, "output": str(directory.parent)}
    if not steps:  # the untouched learner
        own["budget"] = {"steps": 0}
    save_recipe(parse_recipe(recipe_data(directory.parent, **own | changes)), directory / "recipe.yaml")
    found = result(arm, seed, nll, steps=steps)
    draw = random.Random(f"{arm} {seed}")
    with (directory / "metrics.jsonl").open("w") as file:
        for step in range(steps):
            line = {"step": step, "seconds": 3.0 * (step + 1), "tokens": 512 * (step + 1), "lr": 3e-5}
            line |= {"loss": 2 + math.exp(-step / steps) + draw.gauss(0, 0.1), "grad_norm": draw.random()}
            line |= {"alpha": 0.1 + draw.random() / 10 if arm == "v" else 0.0}
            line |= {"value": draw.gauss(0.3, 0.2), "g_down_norm": 2.0} if arm == "v" and step % 8 == 0 else {}
            file.write(json.dumps(line) + "\n")
    with (directory / "scores.jsonl").open("w") as file:
        for share in (1, 2):
            line = result(arm, seed, nll + 0.1 * (3 - share), steps=steps * share // 3, seconds=40.0 * share)
            file.write(json.dumps({"step": line["steps"] - 1, **line}) + "\n")
    source = {
        "role": "stream",
        "origin": "/home/somebody/stream.jsonl",
        "rows": 40,
        "files": 1,
        "bytes": 9,
        "sha256": "0" * 64,
    }
    write_json(directory / "provenance.json", {"versions": VERSIONS, "base": {}, "data": [source], **ORIGIN})
    write_json(directory / "result.json", found)
    return found


def write_comparison(
    directory: Path, *, steps: int = 40, seeds: tuple[int, ...] = (0, 1), **changes: Any
) -> dict[str, Any]:
    """One-hot and V over seeds; returns results.json. `changes` are of the shared recipe."""
    directory.mkdir(parents=True)
    shared = recipe_data(directory.parent, name=directory.name, **changes)
    save_recipe(parse_recipe(shared), directory / "recipe.yaml")
    start = write_run(directory / "step-0", "one-hot", 0, 1.5448, steps=0)
    write_json(directory / "step-0/result.json", start := start | {"seconds": 0.0})
    arms: dict[str, Any] = {"step-0": without_cases(start)}
    for arm, nll in (("one-hot", 1.2444), ("v", 1.1527)):
        names = [arm if len(seeds) == 1 else f"{arm}.{seed}" for seed in seeds]
        runs = [write_run(directory / n, arm, s, nll, steps=steps) for n, s in zip(names, seeds, strict=True)]
        arms[arm] = without_cases(runs[0]) | ({"runs": [without_cases(run) for run in runs]} if len(seeds) > 1 else {})
    far = {"mean": -0.3, "low": -0.4, "high": -0.2}
    results = {
        "arms": arms,
        "differences": {
            "nll": {
                "step-0": {"one-hot": far, "v": far},
                "one-hot": {"step-0": far, "v": OPPOSITE},
                "v": {"step-0": far, "one-hot": DIFFERENCE},
            }
        },
        "of": {"nll": "nats per token"},
        "versions": VERSIONS,
        "rounds": 1,
        "seeds": list(seeds),
    }
    write_json(directory / "results.json", results)
    return results


def write_probe(directory: Path, arm: str = "v") -> None:
    predictions = ("predicted", "predicted_subset", "seen", "predicted_gain")
    steps = [
        {"step": n, "realised": n / 9, "realised_gain": n / 99, **dict.fromkeys(predictions, n / 10)} for n in range(6)
    ]
    found = {name: {"pearson_r": 1.0, "slope": 1.1} for name in ("full", "subset", "seen", "gain")}
    write_json(directory / "probe.json", {"arm": arm, **found, "steps": steps})


def write_profile(directory: Path) -> None:
    phases = {
        "stream": 1.0,
        "learner forward": 5.0,
        "learner backward": 9.0,
        "learner optimizer": 1.0,
        "meta: tangent": 4.0,
    }
    added = {"microseconds": 4.0, "ratio": 0.25}
    write_json(directory / "profile.json", {"arm": "v", "unit": "tokens", "phases": phases, "added": added})


def hostile_study(directory):
    """A comparison that holds hostile text wherever text can come from."""
    results = write_comparison(directory)
    write_probe(directory, arm=HOSTILE)
    write_profile(directory)
    for name in ("probe.json", "profile.json"):
        file = directory / name
        file.write_text(file.read_text().replace('"meta: tangent"', json.dumps(HOSTILE)))
    results["arms"]["v"]["warning"] = HOSTILE
    results["arms"][HOSTILE] = results["arms"]["v"]
    results["versions"] = {HOSTILE: HOSTILE}
    for found in results["differences"]["nll"].values():
        found[HOSTILE] = DIFFERENCE
    results["differences"]["nll"][HOSTILE] = dict.fromkeys(("step-0", "one-hot", "v"), DIFFERENCE)
    results["of"]["nll"] = HOSTILE
    write_json(directory / "results.json", results)
    log = directory / "v.0/metrics.jsonl"
    log.write_text(log.read_text().replace('"grad_norm"', json.dumps(HOSTILE)))
    recipe = directory / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("domain: sums", "domain: " + json.dumps(HOSTILE)))
    made_with = directory / "one-hot.0/provenance.json"
    found = json.loads(made_with.read_text())
    found["data"][0] |= {"origin": HOSTILE, "role": HOSTILE, HOSTILE: HOSTILE}
    write_json(made_with, found)
    (directory / "step-0/provenance.json").unlink()


def without_cases(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in ("name", "problems")}


def write_json(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data))
