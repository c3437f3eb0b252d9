"""`vpretrain estimate`: memory, communication and time of a recipe on many GPUs, calculated as in docs/scaling.md.

Counted: parameters, FLOPs, bytes, from shapes alone. Measured: how far designer and meta update are above their FLOP floors
(`OVER_FLOOR`). Assumed, as long as `GPU` is None: everything about the GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vpretrain.config import Recipe
from vpretrain.errors import UserError
from vpretrain.modality import modality_of
from vpretrain.types import Json

FP32, BF16 = 4, 2  # bytes
GPU: str | None = None  # on which `make bench-gpu` measured UTILISATION and language's OVER_FLOOR; None: none so far
UTILISATION = 0.4  # fraction of a GPU's peak that passes reach: an assumption as long as GPU is None
LATENCY_US = 5.0  # of one message between two GPUs: an assumption

# Seconds on two CPU cores, divided by those of the floor's FLOPs at the learner's own speed, all in fp32:
# benchmarks/calibration.py computes them from benchmarks/speed/results.json, and language's from benchmarks/gpu.json if that is
# there. That those of two CPU cores hold on a GPU is an assumption.
OVER_FLOOR = {"language": {"designer": 1.27, "meta": 1.29}, "vision": {"designer": 0.99, "meta": 1.33}}


@dataclass(frozen=True)
class Device:
    """A GPU and its links, from the vendors' data sheets."""

    tflops: float  # peak in bf16, dense
    fp32_tflops: float  # peak in fp32; torch leaves TF32 off
    memory_gib: float
    memory_gbs: float  # GB/s of that memory
    node_gbs: float  # GB/s that a GPU sends within its node
    network_gbs: float  # GB/s from each GPU of a node to other nodes


DEVICES = {
    "h100": Device(989, 67, 80, 3350, 450, 50),
    "h200": Device(989, 67, 141, 4800, 450, 50),
    "a100": Device(312, 19.5, 80, 2039, 300, 25),
}


@dataclass(frozen=True)
class MetaCost:
    """The cost of one meta update, by the rows that it reads."""

    feedback_flops: float  # per feedback row, in the learner's precision
    feedback_flops_fp32: float  # per feedback row of all GPUs, in fp32: every GPU makes these passes
    value_flops: float  # per row of the meta batch, in fp32
    feedback_bytes: float  # activations per feedback row
    value_bytes: float  # activations per row of the meta batch, including the designer's
    weights_gathered: float = 0.0  # if parameters are sharded, how often all of them are gathered
    gradient_flops: float = 0.0  # g_pre without a value, per row of the meta batch, in the learner's precision


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A recipe as counts. A row is a sequence in language, an image in vision."""

    modality: str
    memory_knobs: str  # settings that reduce memory
    bf16: bool  # whether the learner's own passes run under autocast
    batch_size: int  # rows of a micro-batch, split over all GPUs
    accumulation: int  # micro-batches of a step
    every_steps: int  # r
    meta_rows: int  # of the meta batch of each direction, split over all GPUs; 0 without a meta update
    feedback_rows: int  # the same for feedback, per domain
    feedback_every: int  # meta updates per feedback batch
    domains: int = 1  # of the feedback
    directions: int = 1  # of the value, one per matched domain
    parameters: int  # of the learner
    trained: int  # parameters that have gradients
    teacher: int = 0  # parameters that follow as a moving average
    cast: int  # parameters that autocast copies to bf16
    head_cast: int  # of these, the output layer's
    block: int  # parameters of one block
    blocks: int  # their number
    root: int  # parameters outside of the blocks
    subset: int  # |S|
    copies: int  # tensors of that size that a meta update holds at once
    designer: int  # parameters of phi; 0 without a designer
    step_flops: float  # per row, forward and backward
    designer_flops: float  # per row, the designer's forward pass, fp32
    gathered_bytes: float = 0.0  # of a row's candidates, read and written at random addresses
    activation_bytes: float  # per row, kept from forward to backward
    entry_bytes: float  # of these, the inputs of the blocks
    logits_bytes: float  # per row, as the loss holds them, up to `chunk_bytes`
    chunk_bytes: float
    head_gradient_bytes: float = 0.0  # kept by the loss beside the gradients
    below_bytes: float = 0.0  # per row of the micro- or meta batch, states below S that are kept for the meta update
    construction_bytes: float = 0.0  # per row, the designer's working memory in every step
    replicated: MetaCost  # the meta update if every GPU holds theta (jvp)
    sharded: MetaCost  # the same if it holds a part (finite differences)


@dataclass(frozen=True)
class Layout:
    """The distribution of the learner over the GPUs."""

    name: str  # in tables
    sharded: bool  # whether parameters, gradients and optimizer states are sharded over all GPUs, block by block
    # Whether backward recomputes each block's activations from its input, and gradients are summed, and so sharded, after
    # every micro-batch.
    lean: bool


# The last is not in vpretrain; it shows the cost that it would have.
LAYOUTS = (Layout("ddp", False, False), Layout("fsdp2", True, False), Layout("fsdp2-lean", True, True))


@dataclass(frozen=True)
class Plan:
    """A layout's cost."""

    layout: str  # its name
    memory: dict[str, float]  # bytes per GPU, by content
    sent: dict[str, float]  # bytes that a GPU sends: `a step`, and `a meta update` in addition
    # `learner` (compute), `learner's communication` beside it, `designer`, and of a meta update `meta compute` and
    # `meta communication`; `step` is a step with its fraction of a meta update.
    seconds: dict[str, float]
    fits: bool  # whether the memory suffices

    @property
    def gib(self) -> float:
        """The total memory in GiB."""
        return sum(self.memory.values()) / 2**30

    @property
    def designer_share(self) -> float:
        """The designer's fraction of a step's seconds."""
        return self.seconds["designer"] / self.seconds["step"]

    @property
    def meta_share(self) -> float:
        """The meta updates' fraction of a step's seconds."""
        return self.seconds["meta a step"] / self.seconds["step"]


@dataclass(frozen=True)
class Estimate:
    """A workload on a number of GPUs, with one plan per layout."""

    world_size: int
    gpus_per_node: int
    device: Device
    bandwidth_gbs: float
    utilisation: float
    latency_us: float
    over_floor: Mapping[str, float]  # of `designer` and `meta`
    workload: Workload
    plans: list[Plan]

    def as_json(self) -> Json:
        """Return all of it."""
        return asdict(self)


def estimate(recipe: Recipe, world_size: int, **kwargs: Any) -> Estimate:
    """Estimate a recipe on `world_size` GPUs; `kwargs` as in `on_gpus`. The learner's weights are not loaded.

    Raises UserError: the recipe cannot run on these GPUs, or is of an unknown kind.
    """
    return on_gpus(modality_of(recipe).workload(recipe), world_size, **kwargs)


def on_gpus(
    work: Workload,
    world_size: int,
    *,
    gpus_per_node: int = 8,
    device: Device = DEVICES["h100"],
    bandwidth_gbs: float | None = None,
    utilisation: float = UTILISATION,
    latency_us: float = LATENCY_US,
    over_floor: Mapping[str, float] | None = None,
) -> Estimate:
    """Estimate what a workload takes on a number of GPUs.

    Args:
        work: the recipe as counts.
        world_size: W.
        gpus_per_node: GPUs per node; each has its own link to the network.
        device: the GPU.
        bandwidth_gbs: GB/s that collectives reach, as nccl-tests' "bus bandwidth"; None: that of the links.
        utilisation: fraction of the peak that passes reach, in bf16 and in fp32.
        latency_us: of a message between two GPUs, in microseconds.
        over_floor: seconds of `designer` and `meta` over those of their FLOP floors; None: `OVER_FLOOR`.

    Raises:
        UserError: no GPU, or rows that cannot be split over them.
    """
    if world_size < 1:
        raise UserError(f"{world_size} GPUs can run nothing: give a number from 1")
    if work.batch_size % world_size:
        fitting = -(-work.batch_size // world_size) * world_size
        raise UserError(
            f"stream.batch_size={work.batch_size} is no multiple of {world_size} GPUs, and the run would refuse it: "
            f"use {fitting}"
        )
    for field, rows in {"value.batch_size": work.meta_rows, "feedback.batch_size": work.feedback_rows}.items():
        if 0 < rows < world_size:
            raise UserError(
                f"{field}={rows} leaves some of {world_size} GPUs without a row, and the run would refuse it: raise it"
            )
    if bandwidth_gbs is None:
        across = gpus_per_node * device.network_gbs
        bandwidth_gbs = device.node_gbs if world_size <= gpus_per_node else min(device.node_gbs, across)
    links = _Links(world_size, 1e9 * bandwidth_gbs, 1e-6 * latency_us)
    over = OVER_FLOOR[work.modality] if over_floor is None else over_floor
    plans = []
    for layout in LAYOUTS:
        memory = _memory(work, layout, world_size)
        seconds, sent = _time(work, layout, links, device, utilisation, over)
        plans.append(Plan(layout.name, memory, sent, seconds, sum(memory.values()) <= device.memory_gib * 2**30))
    return Estimate(world_size, gpus_per_node, device, bandwidth_gbs, utilisation, latency_us, over, work, plans)


def block_bytes(width: int, query: int, inner: int, *, norm: int, gated: bool, bf16: bool) -> int:
    """Return the bytes per token that a transformer's block keeps from forward to backward.

    Args:
        width: of the states, which stay fp32.
        query: of the queries, to which keys and values are widened.
        inner: of the feed-forward part.
        norm: fp32 tensors of the states' width that a norm keeps.
        gated: whether the feed-forward part has a gate.
        bf16: whether products run under autocast: then each has its own copy of its input.
    """
    element = BF16 if bf16 else FP32
    inputs = (3 + (2 if gated else 1)) if bf16 else 2
    # Queries, keys, values and attention's output; the feed-forward part before and after its activation and gate.
    return (2 * norm * FP32 + inputs * element) * width + element * (4 * query + (4 if gated else 2) * inner)


@dataclass(frozen=True)
class _Links:
    """Collectives among W GPUs by rings; for short messages, all-reduce by trees."""

    world: int
    bandwidth: float
    latency: float

    def sum(self, size: float) -> float:
        """Return the bytes that a GPU sends in an all-reduce."""
        return 2 * self.share(size)

    def share(self, size: float) -> float:
        """Return the bytes that a GPU sends in an all-gather or a reduce-scatter."""
        return (self.world - 1) / self.world * size

    def seconds(self, sent: float, sums: float = 0, shares: float = 0) -> float:
        """Return the seconds for these bytes in these numbers of collectives of the two kinds."""
        hops = sums * 2 * math.ceil(math.log2(self.world)) + shares * (self.world - 1)
        return sent / self.bandwidth + hops * self.latency


def _memory(work: Workload, layout: Layout, world: int) -> dict[str, float]:
    parts = world if layout.sharded else 1
    rows, meta_rows, feedback_rows = _rows(work, world)
    meta = work.sharded if layout.sharded else work.replicated
    # Lean: the inputs of the blocks, and the activations of one block.
    kept = work.entry_bytes / work.activation_bytes + 1 / work.blocks if layout.lean else 1.0
    step = kept * rows * work.activation_bytes
    update = kept * max(feedback_rows * meta.feedback_bytes, meta_rows * meta.value_bytes)
    # DDP copies gradients into its buckets. FSDP2 holds them unsharded until those of the last micro-batch exist.
    whole = work.trained * (world > 1 if not layout.sharded else work.accumulation > 1 and not layout.lean)
    by_block = (work.root + work.block) * work.trained / work.parameters if layout.sharded else 0
    return {
        "parameters (fp32)": FP32 * work.parameters / parts,
        "gradients (fp32)": FP32 * work.trained / parts,
        "gradients not yet summed (fp32)": FP32 * max(whole, by_block),
        "AdamW (fp32)": 2 * FP32 * work.trained / parts,
        "EMA teacher (fp32)": FP32 * work.teacher / parts,
        # Kept for backward, even where the weights that they are copies of are freed.
        "autocast's copies (bf16)": BF16 * (work.head_cast + work.block if layout.lean else work.cast) * work.bf16,
        # Weights outside of the blocks stay from forward to backward; of blocks there are two: one in use, one arriving.
        "collected weights (fp32)": FP32 * (work.root + 2 * work.block) * layout.sharded,
        "activations": step,
        "loss": min(work.chunk_bytes, rows * work.logits_bytes) + work.head_gradient_bytes,
        "g_down, g_pre, u over S (fp32)": FP32 * work.copies * work.subset / parts,
        # The learner's own pass is held while a meta update that uses its states runs; with shards there is no such pass.
        "states below S": 0.0 if layout.sharded else work.below_bytes * (rows + meta_rows) * bool(work.meta_rows),
        "meta update's activations": max(0.0, update - step) if layout.sharded else update,
        "designer and its AdamW (fp32)": 4 * FP32 * work.designer,
        "designer's working memory": rows * work.construction_bytes,
    }


def _rows(work: Workload, world: int) -> tuple[int, int, int]:
    """Return the rows of the GPU that has most: of a micro-batch, of a meta update, of feedback."""
    meta = work.directions * -(-work.meta_rows // world)
    return work.batch_size // world, meta, work.domains * -(-work.feedback_rows // world)


def _time(
    work: Workload, layout: Layout, links: _Links, device: Device, utilisation: float, over: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds, and the bytes sent."""
    rows, meta_rows, feedback_rows = _rows(work, links.world)
    rows *= work.accumulation
    fp32 = 1e12 * utilisation * device.fp32_tflops
    own = 1e12 * utilisation * device.tflops if work.bf16 else fp32
    meta = work.sharded if layout.sharded else work.replicated
    units, sums = work.blocks + 1, 2 * work.directions
    if layout.sharded:
        weights = links.share(FP32 * work.parameters)
        summed = work.accumulation if layout.lean else 1
        collected = work.accumulation * (3 if work.teacher else 2)
        sent = collected * weights + summed * links.share(FP32 * work.trained)
        waiting = links.seconds(sent, shares=units * (collected + summed))
        sent_meta = meta.weights_gathered * weights + links.share(FP32 * work.subset * sums)
        waiting_meta = links.seconds(sent_meta, shares=units * meta.weights_gathered + sums)
    else:
        sent = links.sum(FP32 * work.trained)
        waiting = links.seconds(sent, sums=1)
        sent_meta = links.sum(FP32 * work.subset * sums)
        waiting_meta = links.seconds(sent_meta, sums=sums)
    of_designer = links.sum(FP32 * work.designer)
    on_all_rows = work.domains * work.feedback_rows * meta.feedback_flops_fp32
    feedback = (feedback_rows * (meta.feedback_flops / own) + on_all_rows / fp32) / work.feedback_every
    on_stream = meta_rows * meta.value_flops / fp32 + meta_rows * meta.gradient_flops / own
    seconds = {
        "learner": rows * work.step_flops / own * (4 / 3 if layout.lean else 1),
        "learner's communication": waiting,
        "designer": rows
        * (over["designer"] * work.designer_flops / fp32 + work.gathered_bytes / (1e9 * device.memory_gbs)),
        "meta compute": over["meta"] * (feedback + on_stream),
        "meta communication": waiting_meta + links.seconds(of_designer, sums=1) if work.meta_rows else 0.0,
    }
    seconds["meta a step"] = (seconds["meta compute"] + seconds["meta communication"]) / work.every_steps
    # The learner's collectives overlap with its passes: the longer of the two counts.
    seconds["step"] = (
        max(seconds["learner"], seconds["learner's communication"]) + seconds["designer"] + seconds["meta a step"]
    )
    return seconds, {"a step": sent, "a meta update": sent_meta + of_designer if work.meta_rows else 0.0}
