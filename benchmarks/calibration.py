"""How far designer and meta update lie above their FLOP floors, by what `make bench-speed` and `make bench-gpu` measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.settings import CALIBRATING
from benchmarks.shapes import VIT_S, counted
from benchmarks.speed import settings
from vpretrain.files import read_json
from vpretrain.scaling.estimate import DEVICES

GPU_FILE = Path(__file__).parent / "gpu.json"  # of `make bench-gpu`


@dataclass(frozen=True)
class Measured:
    """The speed of one GPU.

    Attributes:
        gpu: its name.
        utilisation: the fraction of its bf16 peak that the learner's steps reach.
        over_floor: seconds of `designer` and `meta` over those of their FLOP floors, in language.
    """

    gpu: str
    utilisation: float
    over_floor: dict[str, float]


def calibration(speed: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Time of designer and meta update over that of their FLOP floors at the learner's own FLOPs per second.

    Args:
        speed: benchmarks/speed/results.json: SmolLM2-135M, and a ViT-S whose FLOPs are counted here.
    """
    arm, flops = speed["language"]["smollm2-135m"]["v-paper"], speed["flops"]
    a_token = settings.ROWS * settings.LENGTH  # the counted step is one micro-batch
    a_flop = _passes(arm) / (flops["step"] / a_token)
    designer = flops["designer_floor"] / a_token
    language = _over_floor(arm, settings.PERIOD, a_flop * designer, a_flop * flops["meta_floor"])
    vision: Any = settings.vision_recipe("v-paper")
    each = counted(vision.model_dump(mode="json"), VIT_S)
    cost = each.replicated
    update = each.feedback_rows * (cost.feedback_flops + cost.feedback_flops_fp32) + each.meta_rows * cost.value_flops
    seen = speed["vision"]["v-paper"]
    a_flop = _passes(seen) / each.step_flops
    in_vision = _over_floor(seen, settings.VISION_PERIOD, a_flop * each.designer_flops, a_flop * update)
    return {"language": language, "vision": in_vision}


def measured(file: Path = GPU_FILE) -> Measured | None:
    """Return a GPU's speed by the results of `make bench-gpu`.

    None if there is no such file, if the benchmark was stopped before it had measured this, or if the GPU's peaks are not
    known.
    """
    if not file.exists():
        return None
    found = read_json(file)
    name = found["device"]["name"]
    device = next((each for key, each in DEVICES.items() if key in name.lower()), None)
    arms = found.get("speed", {}).get(CALIBRATING, {})
    base, paper = (_largest(arms.get(arm, {})) for arm in ("one-hot", "v-paper"))
    if device is None or base is None or paper is None:
        return None
    # Over a whole step, optimizer and all: between the phases of a step one would have to wait for the device.
    flops_a_second = base["micro_batches"] * base["flops_a_micro_batch"]["step"] / base["seconds_a_step"]
    utilisation = flops_a_second / (1e12 * device.tflops)
    a_flop, a_flop_fp32 = (1e6 / (utilisation * 1e12 * peak) for peak in (device.tflops, device.fp32_tflops))
    floor = paper["flops_a_micro_batch"]
    designer = a_flop_fp32 * floor["designer"] * paper["micro_batches"] / paper["read_a_step"]
    update = a_flop * floor["feedback"] + a_flop_fp32 * floor["value"]
    return Measured(name, utilisation, _over_floor(paper, settings.PERIOD, designer, update))


def _over_floor(arm: dict[str, Any], period: int, designer: float, update: float) -> dict[str, float]:
    """Time over that of FLOP floors, which are microseconds: `designer` per token or image, `update` per meta update."""
    phases = arm["microseconds"]
    meta = sum(each for name, each in phases.items() if name.startswith("meta"))
    return {"designer": phases["construction"] / designer, "meta": meta * arm["read_a_step"] * period / update}


def _passes(arm: dict[str, Any]) -> float:
    """Microseconds of the learner's passes per token or image."""
    phases = arm["microseconds"]
    return float(phases["learner forward"] + phases["learner backward"])


def _largest(sizes: dict[str, Any]) -> dict[str, Any] | None:
    """Return the figures of the largest step that fitted into memory."""
    fitting = {int(size): figures for size, figures in sizes.items() if "error" not in figures}
    return fitting[max(fitting)] if fitting else None
