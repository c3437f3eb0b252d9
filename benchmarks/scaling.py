"""`make bench-scaling`: estimate the cost of V-pretraining on 8 to 1,024 GPUs; seconds on a CPU.

Writes scaling.json beside this file, and prints the tables of docs/scaling.md. No learner is run: only shapes are used, and
what gpu.json says of a GPU's speed if `make bench-gpu` has written that file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from benchmarks.calibration import Measured, measured
from benchmarks.command import command
from benchmarks.shapes import LEARNERS, VIT_L, counted
from benchmarks.table import markdown_table
from vpretrain.recipe import load_recipe
from vpretrain.scaling.estimate import (
    DEVICES,
    FP32,
    LATENCY_US,
    OVER_FLOOR,
    UTILISATION,
    Device,
    Estimate,
    Plan,
    Workload,
    on_gpus,
)
from vpretrain.scaling.tables import NEGLIGIBLE, least_period

GPUS = (8, 64, 256, 1024)
ROWS, LENGTH = 1024, 1024  # of a step: one row per GPU on the most GPUs
VISION_RECIPE, VISION_GPUS = "recipes/dinov3-vitl-ade20k.yaml", (1, 2, 5, 10)  # of 50 images per step
DESIGNERS: dict[str, dict[str, Any]] = {  # one thing changed at a time
    "default: 256 x 6, K = 64": {},
    "64 x 2": {"hidden_size": 64, "layers": 2},
    "512 x 6": {"hidden_size": 512},
    "K = 8": {"top_k": 8},
    "K = 256": {"top_k": 256},
}
DEFAULT_K = 64
TF32 = 494  # TFLOPS of an H100, dense, from the same data sheet


def main() -> None:
    """Compute, write and print the estimates."""
    found = report(measured())
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(tables(found)))


def report(gpu: Measured | None) -> dict[str, Any]:
    """Compute all figures of docs/scaling.md, with a GPU's speed in place of assumptions if one was measured."""
    works = {name: work(shape) for name, (shape, _) in LEARNERS.items()}
    pictures = counted(load_recipe(VISION_RECIPE).model_dump(mode="json"), VIT_L)
    return {
        "command": "make bench-scaling",
        "assumed": {
            "device": "h100",
            "utilisation": UTILISATION if gpu is None else gpu.utilisation,
            "latency_us": LATENCY_US,
            "rows": ROWS,
            "length": LENGTH,
        },
        **({} if gpu is None else {"measured_on": gpu.gpu}),
        "over_floor": OVER_FLOOR if gpu is None else OVER_FLOOR | {"language": gpu.over_floor},
        "learners": {name: _sizes(each, gpu) for name, each in works.items()},
        "plans": [
            _row(name, gpus, dealt(works[name], rows, gpus), gpu)
            for name, (_, rows) in LEARNERS.items()
            for gpus in GPUS
        ],
        "vision": [_vision_row(gpus, pictures, gpu) for gpus in VISION_GPUS],
        "designers": [
            {"designer": title}
            | {name: _designer_share(work(shape, own), gpu) for name, (shape, _) in LEARNERS.items()}
            for title, own in DESIGNERS.items()
        ]
        + [
            {"designer": "default, with TF32"}
            | {name: _designer_share(each, gpu, fp32_tflops=TF32) for name, each in works.items()}
        ],
    }


def work(shape: PreTrainedConfig, designer: dict[str, Any] | None = None) -> Workload:
    """Count the work of the paper's settings on a learner of a shape."""
    return counted({
        "name": "scaling",
        "stream": {
            "length": LENGTH,
            "sources": [{"path": "stream.jsonl", "text": "{text}"}],
        },
        "learner": {"precision": "bf16"},
        "feedback": {
            "batch_size": 8,
            "sources": [{"path": "feedback.jsonl", "prompt": "{question}", "response": "{answer}"}],
        },
        "value": {"every_steps": 8},
        "designer": designer or {},
        "budget": {"steps": 1},
        "evaluation": {"sources": [{"path": "evaluation.jsonl", "prompt": "{question}", "response": "{answer}"}]},
    }, shape)  # fmt: skip


def dealt(each: Workload, rows: int, gpus: int) -> Workload:
    """Split ROWS per step into micro-batches of at most `rows` per GPU, with at least one row per GPU in a meta update."""
    batch_size = min(ROWS, rows * gpus)
    of_meta = {name: max(getattr(each, name), gpus) for name in ("meta_rows", "feedback_rows")}
    return replace(each, batch_size=batch_size, accumulation=ROWS // batch_size, **of_meta)


def tables(found: dict[str, Any]) -> list[str]:
    """Format memory, time and designers as Markdown."""
    memory = [
        (
            row["learner"], f"{row['gpus']:,}", row["rows"],
            *(f"**{gib:,.0f}**" if fits else f"{gib:,.0f}" for gib, fits in row["gib"].values()),
        )
        for row in found["plans"]
    ]  # fmt: skip
    layouts = list(found["plans"][0]["gib"])
    time = [
        (
            row["learner"], f"{row['gpus']:,}", row["layout"], f"{row['learner_ms']:,.0f}", f"{row['sent_gib']:,.1f}",
            f"{row['communication_ms']:,.0f}", f"{row['meta_ms']:,.1f}", f"{row['designer_share']:.1%}",
            f"{row['meta_share']:.1%}", row["least_period"],
        )
        for row in found["plans"]
    ]  # fmt: skip
    learners = list(LEARNERS)
    designers = [(row["designer"], *(f"{row[name]:.2%}" for name in learners)) for row in found["designers"]]
    sizes = [
        (
            name,
            f"{of['parameters'] / 1e9:.2f}",
            f"{of['gflops_a_token']:.1f}",
            f"{of['subset'] / 1e6:,.0f}",
            f"{of['designer'] / 1e6:.1f}",
            of["k_for_2_percent"],
            of["gpus_for_latency"],
        )
        for name, of in found["learners"].items()
    ]
    vision = [
        (
            row["gpus"], f"{row['gib']:,.0f}", f"{row['learner_ms']:,.0f}",
            *(f"{row[f'{what}_share{which}']:.1%}" for which in ("", "_tf32") for what in ("designer", "meta")),
        )
        for row in found["vision"]
    ]  # fmt: skip
    return [
        basis(found),
        markdown_table(
            ("learner", "P, 1e9", "GFLOPs a token", "P_S, 1e6", "phi, 1e6", "K for 2 %", "GPUs for latency"), sizes
        ),
        markdown_table(("GiB a GPU", "GPUs", "rows each", *layouts), memory),
        markdown_table(
            (
                "learner", "GPUs", "layout", "learner ms", "sent GiB", "sent ms", "meta update ms", "designer", "meta",
                "r for 2 %",
            ),
            time,
        ),
        markdown_table(("designer's share of a step", *learners), designers),
        markdown_table(
            ("ViT-L: GPUs", "GiB, ddp", "learner ms", "designer", "meta", "designer, TF32", "meta, TF32"), vision
        ),
    ]  # fmt: skip


def basis(found: dict[str, Any]) -> str:
    """Format what is measured and what is assumed, as two rows of a table."""
    language, vision = (
        f"{over['designer']:.2f} and {over['meta']:.2f}"
        for over in (found["over_floor"][key] for key in ("language", "vision"))
    )
    reach = f"{found['assumed']['utilisation']:.0%}".replace("%", " %")
    above, cores = "how far designer and meta update lie above their FLOP floors", "on two CPU cores"
    timed = "(seconds over those of the floor's FLOPs at the learner's own speed, by `benchmarks/calibration.py`)"
    last = f"links at their nominal speed, {LATENCY_US:g} us per message; every token is a target"
    if gpu := found.get("measured_on"):
        measured = (
            f"on one {gpu}: steps reach {reach} of the peak in bf16; {above}, there in language {timed}: {language} times "
            f"(`v-paper`), and {cores} in vision: {vision}. Ratios are used, times are not"
        )
        assumed = (
            f"that vision's ratios hold on a GPU; the data sheet's peaks; that vision and fp32 reach {reach} of them, too; "
            f"{last}"
        )
    else:
        measured = (
            f"{above}, {cores} {timed}: {language} times in language (`v-paper`), {vision} in vision. Ratios are used, "
            "times are not"
        )
        assumed = (
            f"that these ratios hold on a GPU; the data sheet's peaks; that passes reach {reach} of them, in bf16 and in fp32; "
            f"{last}"
        )
    return f"| measured | {measured} |\n| assumed | {assumed} |\n"


def _sizes(each: Workload, gpu: Measured | None) -> dict[str, Any]:
    found = _estimated(dealt(each, 1, GPUS[-1]), GPUS[-1], gpu)
    gathered = each.gathered_bytes / DEFAULT_K / (1e9 * found.device.memory_gbs)  # seconds per row, for each of the K
    collected = FP32 * each.parameters / (1e9 * found.bandwidth_gbs)
    return {
        "parameters": each.parameters,
        "designer": each.designer,
        "subset": each.subset,
        "gflops_a_token": each.step_flops / LENGTH / 1e9,
        # K at which the candidates' embeddings alone take 2 % of the learner's passes
        "k_for_2_percent": int(NEGLIGIBLE * found.plans[0].seconds["learner"] / gathered),
        # W at which the latency of all-gathering all weights, block by block, equals the time to send their bytes
        "gpus_for_latency": 1 + round(collected / ((each.blocks + 1) * 1e-6 * found.latency_us)),
    }


def _row(name: str, gpus: int, each: Workload, gpu: Measured | None) -> dict[str, Any]:
    plans = _estimated(each, gpus, gpu).plans
    plan = _chosen(plans)
    return {
        "learner": name,
        "gpus": gpus,
        "rows": f"{each.accumulation} x {each.batch_size // gpus}",
        "gib": {plan.layout: (plan.gib, plan.fits) for plan in plans},
        "layout": plan.layout if plan.fits else f"({plan.layout})",
        "learner_ms": 1e3 * plan.seconds["learner"],
        "sent_gib": plan.sent["a step"] / 2**30,
        "communication_ms": 1e3 * plan.seconds["learner's communication"],
        "meta_ms": 1e3 * (plan.seconds["meta compute"] + plan.seconds["meta communication"]),
        "designer_share": plan.designer_share,
        "meta_share": plan.meta_share,
        "least_period": least_period(plan, each.every_steps),
    }


def _vision_row(gpus: int, each: Workload, gpu: Measured | None) -> dict[str, Any]:
    tf32 = replace(DEVICES["h100"], fp32_tflops=TF32)
    plans = {"": _estimated(each, gpus, gpu).plans[0], "_tf32": _estimated(each, gpus, gpu, tf32).plans[0]}
    shares = {
        f"{what}_share{which}": getattr(plan, f"{what}_share")
        for which, plan in plans.items()
        for what in ("designer", "meta")
    }
    return {"gpus": gpus, "gib": plans[""].gib, "learner_ms": 1e3 * plans[""].seconds["learner"], **shares}


def _chosen(plans: Sequence[Plan]) -> Plan:
    """Return the first plan that fits, else the last."""
    return next((plan for plan in plans if plan.fits), plans[-1])


def _designer_share(each: Workload, gpu: Measured | None, **changed: float) -> float:
    """The designer's fraction of designer and learner passes, on any number of GPUs if the latter hide communication."""
    (plan, *_) = _estimated(dealt(each, 1, 8), 8, gpu, replace(DEVICES["h100"], **changed)).plans
    return plan.seconds["designer"] / (plan.seconds["designer"] + plan.seconds["learner"])


def _estimated(each: Workload, gpus: int, gpu: Measured | None, device: Device = DEVICES["h100"]) -> Estimate:
    if gpu is None:
        return on_gpus(each, gpus, device=device)
    over = gpu.over_floor if each.modality == "language" else None
    return on_gpus(each, gpus, device=device, utilisation=gpu.utilisation, over_floor=over)


if __name__ == "__main__":
    command(main)
