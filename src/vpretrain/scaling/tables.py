"""The result of `vpretrain estimate`, as a table and in words."""

from __future__ import annotations

import math

from rich.table import Table

from vpretrain.scaling.estimate import GPU, UTILISATION, Estimate, Plan

NEGLIGIBLE = 0.02  # fraction of a step
_ADVICE = {
    "ddp": "nothing needs to be sharded: ddp sends least",
    "fsdp2": "shard the learner's parameters, gradients and AdamW states (fsdp2)",
    "fsdp2-lean": "shard the learner (fsdp2), make activations again in backward and sum gradients after every micro-batch: "
    "vpretrain does not do that yet",
}


def estimate_table(found: Estimate) -> Table:
    """Return a table of memory, bytes sent and time per GPU, with one column per layout."""
    work, plans = found.workload, found.plans
    rows = f"{work.accumulation} x {work.batch_size // found.world_size}"
    view = Table(title=f"{found.world_size} GPUs, on paper: {rows} rows a step on each", title_justify="left")
    view.add_column("each GPU")
    for plan in plans:
        view.add_column(plan.layout, justify="right", no_wrap=True)
    for name in plans[0].memory:
        if any(plan.memory[name] for plan in plans):
            view.add_row(name, *(f"{plan.memory[name] / 2**30:,.2f} GiB" for plan in plans))
    view.add_section()
    view.add_row("memory", *(f"{plan.gib:,.1f} GiB" for plan in plans))
    view.add_row(f"fits in {found.device.memory_gib:g} GiB", *("yes" if plan.fits else "no" for plan in plans))
    view.add_section()
    for name in plans[0].sent:
        view.add_row(f"sent {name}", *(f"{plan.sent[name] / 2**30:,.2f} GiB" for plan in plans))
    view.add_section()
    for name in plans[0].seconds:
        view.add_row(name, *(f"{1e3 * plan.seconds[name]:,.2f} ms" for plan in plans))
    view.add_row("designer's share", *(f"{plan.designer_share:.1%}" for plan in plans))
    view.add_row("meta updates' share", *(f"{plan.meta_share:.1%}" for plan in plans))
    return view


def estimate_remarks(found: Estimate) -> list[str]:
    """Return remarks: what fits, what to shard, whether designer and meta update are negligible, and the assumptions."""
    work, device = found.workload, found.device
    lines = [_fit(plan, device.memory_gib) for plan in found.plans]
    plan = next((plan for plan in found.plans if plan.fits), found.plans[-1])
    lines.append(_ADVICE[plan.layout] if plan.fits else f"no layout fits: {work.memory_knobs}; or use more GPUs")
    if work.accumulation > 1 and plan.layout != "ddp":
        lines.append(
            f"fsdp2 holds whole gradients from micro-batch to micro-batch, {4 * work.trained / 2**30:,.1f} GiB: with "
            "stream.accumulation=1 it would hold none"
        )
    if plan.seconds["learner's communication"] > plan.seconds["learner"]:
        sent, passes = (f"{1e3 * plan.seconds[name]:,.1f} ms" for name in ("learner's communication", "learner"))
        lines.append(
            f"{plan.layout}: the learner's communication takes longer than its passes ({sent} against {passes}): more "
            "rows a GPU, in larger micro-batches, would hide it"
        )
    if work.meta_rows:
        lines += _of_the_designer(found, plan)
    return [*lines, *_basis(found)]


def least_period(plan: Plan, every_steps: int) -> int:
    """Return the smallest r at which meta updates are negligible."""
    update = every_steps * plan.seconds["meta a step"]
    rest = plan.seconds["step"] - plan.seconds["meta a step"]
    return max(1, math.ceil(update * (1 - NEGLIGIBLE) / (NEGLIGIBLE * rest)))


def _basis(found: Estimate) -> list[str]:
    """Return the assumptions and measurements that the times are based on."""
    device, over = found.device, found.over_floor
    passes = f"passes that reach {found.utilisation:.0%}"
    if GPU is not None and found.utilisation == UTILISATION:
        passes += f" (measured on one {GPU})"
    on_gpu = GPU is not None and found.workload.modality == "language"
    rest = "; nothing was measured on a GPU" if GPU is None else ""
    return [
        f"assumed: {device.tflops:g} TFLOPS bf16, {device.fp32_tflops:g} fp32, and {passes}; "
        f"{found.bandwidth_gbs:g} GB/s and {found.latency_us:g} us a message; every token is a target",
        f"measured, on {f'one {GPU}' if on_gpu else 'two CPU cores'}: the designer takes {over['designer']:g} times its FLOP "
        f"floor, the meta update {over['meta']:g} times (docs/speed.md){rest}",
    ]


def _fit(plan: Plan, memory_gib: float) -> str:
    if plan.fits:
        return f"{plan.layout} fits: {plan.gib:,.1f} GiB of {memory_gib:g}"
    most = sorted(plan.memory, key=lambda name: -plan.memory[name])[:2]
    listed = ", ".join(f"{name} {plan.memory[name] / 2**30:,.1f}" for name in most)
    return f"{plan.layout} does not fit: {plan.gib:,.1f} GiB of {memory_gib:g} ({listed})"


def _of_the_designer(found: Estimate, plan: Plan) -> list[str]:
    work = found.workload
    small = "negligible" if plan.designer_share + plan.meta_share <= NEGLIGIBLE else "not negligible"
    lines = [
        f"replicate the designer ({16 * work.designer / 2**30:.2f} GiB with its AdamW): {plan.designer_share:.1%} of a step in "
        f"{plan.layout}, and the meta updates {plan.meta_share:.1%}: {small}"
    ]
    if plan.meta_share > NEGLIGIBLE:
        least = least_period(plan, work.every_steps)
        lines.append(f"meta updates are below {NEGLIGIBLE:.0%} of a step from value.every_steps={least}")
    return lines
