"""`vpretrain doctor`: do the value engines agree on this learner, and what does each cost?"""

from __future__ import annotations

import math
import platform
import time
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from vpretrain.language.batch import TokenBatch
from vpretrain.language.config import DesignerConfig, LearnerConfig
from vpretrain.language.construction import LearnedTargets
from vpretrain.language.designer import TopKDesigner
from vpretrain.language.learner import LanguageLearner
from vpretrain.language.load import load_model
from vpretrain.run.progress import steady
from vpretrain.subset import alignment_subset
from vpretrain.task import Parameters
from vpretrain.value import ENGINES, Align, Valued, gradient

STEPS = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
TOLERANCES = {"jvp": 1e-4, "finite_difference": 1e-2}
_ROWS, _LENGTH = 2, 64
_DESIGNER = DesignerConfig(hidden_size=64, layers=2, heads=2, top_k=32)
_SUBSET = "last-2"


def diagnose(name: str) -> dict[str, Any]:
    """Compare the engines' designer gradients with double backward on a learner, on random tokens with a random designer.

    Args:
        name: a hub name, a directory written by save_pretrained (random weights do), or a packaged learner.

    Returns:
        JSON-ready: `engines` -> engine -> `relative_error` (of the whole gradient), `relative_error_gate`,
        `relative_error_r`, `seconds`; the swept steps of the finite difference; the attention kernels; versions.

    Raises:
        UserError: no such learner.
    """
    torch.manual_seed(0)
    learner = LanguageLearner(load_model(LearnerConfig(name=name)))
    vocabulary = learner.model.config.get_text_config().vocab_size
    blocks = learner.model.config.get_text_config().num_hidden_layers
    subset = _SUBSET if blocks >= 2 else "last-1"
    config = _DESIGNER.model_copy(update={"top_k": min(_DESIGNER.top_k, vocabulary)})
    construction = LearnedTargets(random_designer(learner, config), tether=1.0)
    names = alignment_subset(learner.module, subset)
    at = {n: p.detach() for n, p in learner.named_parameters() if n in names}
    stream, feedback = (_random_tokens(vocabulary, seed).to(learner.device) for seed in (0, 1))
    engines: dict[str, dict[str, Any]] = {}
    with learner.meta_mode(), steady("doctor", 3 + len(STEPS)) as done:
        g_down = gradient(lambda parameters: learner.evaluate(feedback, parameters), at)
        oracle, seconds = _measure("double_backward", learner, construction, stream, at, g_down)
        engines["double_backward"] = {"relative_error": 0.0, "seconds": seconds}
        done(1)
        ours, seconds = _measure("jvp", learner, construction, stream, at, g_down)
        engines["jvp"] = {**relative_errors(ours, oracle), "seconds": seconds}
        done(2)
        sweep = {}
        for number, step in enumerate(STEPS):
            ours, seconds = _measure("finite_difference", learner, construction, stream, at, g_down, relative_step=step)
            sweep[step] = {**relative_errors(ours, oracle), "seconds": seconds}
            done(3 + number)
    best = min(sweep, key=lambda step: _order(sweep[step]["relative_error"]))
    engines["finite_difference"] = {**sweep[best], "relative_step": best}
    return {
        "learner": name,
        "architecture": type(learner.model).__name__,
        "subset": subset,
        "align": "cosine",
        "tokens": _ROWS * _LENGTH,
        "designer_gradient_norm": float(oracle["all"].norm()),
        "engines": engines,
        "finite_difference_sweep": {f"{step:g}": entry["relative_error"] for step, entry in sweep.items()},
        "attention": {"training": learner.model.config._attn_implementation, "meta": "sdpa MATH"},
        "bf16": bf16_note(learner.device) or "supported",
        "threads": torch.get_num_threads(),
        "versions": {n: version(n) for n in ("vpretrain", "torch", "transformers", "peft")}
        | {"python": platform.python_version()},
    }


def failures(diagnosis: dict[str, Any]) -> list[str]:
    """What must not pass in silence: a zero or non-finite gradient, an engine that disagrees with the oracle."""
    lines = []
    norm = diagnosis["designer_gradient_norm"]
    if not math.isfinite(norm) or norm == 0:
        lines.append(f"double_backward gives a designer gradient of norm {norm}: the value does not reach the designer")
    for engine, tolerance in TOLERANCES.items():
        error = diagnosis["engines"][engine]["relative_error"]
        if not error <= tolerance:  # also true for nan
            other = "finite_difference" if engine == "jvp" else "jvp"
            lines.append(
                f"{engine} is off by {error:.1e} (at most {tolerance:g}): set value.engine={other} for this learner"
            )
    return lines


def report(diagnosis: dict[str, Any]) -> str:
    """The diagnosis for a terminal."""
    lines = [
        f"{diagnosis['learner']} ({diagnosis['architecture']}), S = {diagnosis['subset']}, {diagnosis['tokens']} tokens, fp32",
        f"{'engine':<20}{'relative error':>16}{'of the gate':>14}{'of r':>12}{'seconds':>10}",
    ]
    for engine, entry in diagnosis["engines"].items():
        gate, r = entry.get("relative_error_gate", 0.0), entry.get("relative_error_r", 0.0)
        lines.append(f"{engine:<20}{entry['relative_error']:>16.1e}{gate:>14.1e}{r:>12.1e}{entry['seconds']:>10.2f}")
    sweep = "  ".join(f"{step}: {error:.1e}" for step, error in diagnosis["finite_difference_sweep"].items())
    lines += [
        f"finite_difference by value.relative_step: {sweep}",
        f"attention: {diagnosis['attention']['training']} in training, {diagnosis['attention']['meta']} in meta updates",
        f"bf16: {diagnosis['bf16']}",
        "versions: "
        + ", ".join(f"{n} {v}" for n, v in diagnosis["versions"].items())
        + f"; {diagnosis['threads']} threads",
    ]
    return "\n".join(lines)


def random_designer(learner: LanguageLearner, config: DesignerConfig, *, seed: int = 1) -> TopKDesigner:
    """A designer away from its start, whose gate varies around half of alpha_max."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        embedding_VD = learner.model.get_output_embeddings().weight
        designer = TopKDesigner(config, embedding_VD, max_length=128)
        nn.init.normal_(designer.query.weight, std=0.3 * math.sqrt(embedding_VD.shape[1]))
        nn.init.normal_(designer.gate.weight, std=0.05)
        nn.init.zeros_(designer.gate.bias)
    return designer.to(learner.device)


def designer_gradient(valued: Valued, designer: TopKDesigner) -> dict[str, Tensor]:
    """Gradient of V by the designer's parameters: all of them, those of the gate alone, those of r alone."""
    phi = dict(designer.named_parameters())
    gradients = torch.autograd.grad(valued.surrogate, list(phi.values()), allow_unused=True, materialize_grads=True)
    by_name = dict(zip(phi, (g.flatten() for g in gradients), strict=True))
    parts = {"gate": "gate", "r": "query", "all": ""}
    return {part: torch.cat([g for n, g in by_name.items() if n.startswith(prefix)]) for part, prefix in parts.items()}


def relative_errors(ours: dict[str, Tensor], oracle: dict[str, Tensor]) -> dict[str, float]:
    """|ours - oracle| / |oracle|; nan where the oracle is zero."""
    errors = {part: float((ours[part] - oracle[part]).norm() / oracle[part].norm()) for part in oracle}
    return {
        "relative_error": errors["all"],
        "relative_error_gate": errors["gate"],
        "relative_error_r": errors["r"],
    }


def bf16_note(device: torch.device) -> str | None:
    """Why bf16 is a bad idea on this machine, or None."""
    if device.type != "cpu":
        return None
    flags = (torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported())
    if any(flags) or platform.machine() in ("arm64", "aarch64"):
        return None
    return "this CPU has no bf16 instructions; training in bf16 would be many times slower than fp32"


def _measure(
    engine: str,
    learner: LanguageLearner,
    construction: LearnedTargets,
    batch: TokenBatch,
    at: Parameters,
    g_down: Parameters,
    **options: float,
) -> tuple[dict[str, Tensor], float]:
    start = time.perf_counter()
    valued = ENGINES[engine](learner, construction, batch, at, g_down, Align("cosine"), **options)
    gradients = designer_gradient(valued, construction.designer)
    return gradients, time.perf_counter() - start


def _random_tokens(vocabulary: int, seed: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    positions_BT = torch.arange(_LENGTH).expand(_ROWS, -1)
    return TokenBatch(
        torch.randint(vocabulary, (_ROWS, _LENGTH), generator=generator),
        positions_BT,
        (positions_BT > 0).float(),
        ("general",) * _ROWS,
        ((),) * _ROWS,
    )


def _order(error: float) -> float:
    return math.inf if math.isnan(error) else error
