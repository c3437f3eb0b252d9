"""`vpretrain estimate`: counts against real tiny learners and against torch, formulas against numbers worked out by hand."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from conftest import character_tokenizer
from models import tiny_model, tiny_vision_model
from torch.distributed.fsdp import fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from worlds import recipe_data, tiny_recipe, vision_recipe

from benchmarks.speed.floor import counted
from vpretrain.cli.parser import main
from vpretrain.errors import UserError
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.task.construction import OneHot
from vpretrain.modality import MODALITIES, modality_of
from vpretrain.recipe import parse_recipe
from vpretrain.scaling.cost import Read, Transformer
from vpretrain.scaling.estimate import DEVICES, OVER_FLOOR, Device, MetaCost, Workload, estimate, on_gpus
from vpretrain.scaling.tables import estimate_remarks, least_period
from vpretrain.vision.model.batch import ViewBatch
from vpretrain.vision.task.construction import Fixed

RECIPES = Path(__file__).parents[2] / "recipes"
GIB = 2**30


def workload(recipe):
    return modality_of(recipe).workload(recipe)


# A learner of 1,000 parameters in 4 blocks of 200, whose numbers can be worked out by hand.
WORK = Workload(
    modality="language", memory_knobs="lower stream.batch_size", bf16=True, batch_size=32, accumulation=2, every_steps=8,
    meta_rows=16, feedback_rows=16, feedback_every=1, domains=1, directions=1, parameters=1000, trained=1000, teacher=0,
    cast=900, head_cast=100,
    block=200, blocks=4, root=200, subset=400, copies=4, designer=50, step_flops=6000.0, designer_flops=100.0,
    gathered_bytes=0.0, activation_bytes=8000.0, entry_bytes=800.0, logits_bytes=300.0, chunk_bytes=1000.0,
    head_gradient_bytes=400.0, below_bytes=30.0, construction_bytes=20.0,
    replicated=MetaCost(2000.0, 0.0, 1000.0, 500.0, 700.0), sharded=MetaCost(3000.0, 0.0, 5000.0, 5000.0, 9000.0, 4.5),
)  # fmt: skip


@pytest.fixture
def memory():
    """Of the three layouts on 8 GPUs: ddp, fsdp2, fsdp2-lean."""
    return [plan.memory for plan in on_gpus(WORK, 8).plans]


def test_memory_of_states_equals_a_hand_calculation(memory):
    ddp, fsdp2, _ = memory
    states = ("parameters (fp32)", "gradients (fp32)", "AdamW (fp32)")
    assert [ddp[name] for name in states] == [4000, 4000, 8000]
    assert [fsdp2[name] for name in states] == [500, 500, 1000]


def test_memory_of_gradients_not_yet_summed_equals_a_hand_calculation(memory):
    ddp, fsdp2, lean = memory
    late = "gradients not yet summed (fp32)"  # in DDP's buckets; of two micro-batches; of a block and what is outside of all
    assert (ddp[late], fsdp2[late], lean[late]) == (4000, 4000, 4 * (200 + 200))
    assert on_gpus(WORK, 1).plans[0].memory[late] == 0


def test_memory_of_copies_of_weights_equals_a_hand_calculation(memory):
    ddp, fsdp2, lean = memory
    assert ddp["autocast's copies (bf16)"] == fsdp2["autocast's copies (bf16)"] == 1800
    assert lean["autocast's copies (bf16)"] == 2 * (100 + 200)
    assert (ddp["collected weights (fp32)"], fsdp2["collected weights (fp32)"]) == (0, 4 * (200 + 2 * 200))


def test_memory_of_activations_and_loss_equals_a_hand_calculation(memory):
    ddp, fsdp2, lean = memory
    assert ddp["activations"] == fsdp2["activations"] == 4 * 8000  # 32 rows a micro-batch, 4 on each
    assert lean["activations"] == 4 * (800 + 8000 / 4)
    assert ddp["loss"] == 1000 + 400  # its chunk is full


def test_memory_of_a_meta_update_equals_a_hand_calculation(memory):
    ddp, fsdp2, _ = memory
    assert (ddp["g_down, g_pre, u over S (fp32)"], fsdp2["g_down, g_pre, u over S (fp32)"]) == (6400, 800)
    assert (ddp["states below S"], fsdp2["states below S"]) == (30 * (4 + 2), 0)
    assert ddp["meta update's activations"] == 2 * 700  # two rows of the meta batch, two pairs
    assert fsdp2["meta update's activations"] == 0  # it comes before the step's, and is smaller


def test_memory_of_the_designer_equals_a_hand_calculation(memory):
    ddp, fsdp2, _ = memory
    assert ddp["designer and its AdamW (fp32)"] == fsdp2["designer and its AdamW (fp32)"] == 16 * 50
    assert ddp["designer's working memory"] == 4 * 20


def test_bytes_sent_equal_a_hand_calculation():
    ddp, fsdp2, lean = (plan.sent for plan in on_gpus(WORK, 8).plans)
    assert ddp["a step"] == pytest.approx(2 * 7 / 8 * 4000)
    assert ddp["a meta update"] == pytest.approx(
        2 * 7 / 8 * 4 * (2 * 400 + 50)
    )  # g_down, g_pre, the designer's gradient
    # Two micro-batches: weights twice in each; the gradient once, or with each.
    assert fsdp2["a step"] == pytest.approx((2 * 2 + 1) * 7 / 8 * 4000)
    assert lean["a step"] == pytest.approx(2 * 3 * 7 / 8 * 4000)
    assert fsdp2["a meta update"] == pytest.approx(7 / 8 * (4.5 * 4000 + 2 * 4 * 400) + 2 * 7 / 8 * 4 * 50)
    alone = on_gpus(WORK, 1).plans[0]
    assert alone.sent == {"a step": 0, "a meta update": 0}
    assert alone.seconds["learner's communication"] == 0


SLOW = Device(tflops=1e-9, fp32_tflops=1e-10, memory_gib=1, memory_gbs=1, node_gbs=1e-6, network_gbs=1e-7)


@pytest.fixture
def seconds():
    """Of the three layouts on 8 slow GPUs: ddp, fsdp2, fsdp2-lean."""
    return [plan.seconds for plan in on_gpus(WORK, 8, device=SLOW, utilisation=0.5, latency_us=1e6).plans]


def test_seconds_of_compute_equal_a_hand_calculation(seconds):
    ddp, _, lean = seconds
    over = OVER_FLOOR["language"]
    assert ddp["learner"] == pytest.approx(8 * 6000 / 500)
    assert lean["learner"] == pytest.approx(ddp["learner"] * 4 / 3)
    assert ddp["designer"] == pytest.approx(over["designer"] * 8 * 100 / 50)  # fp32
    assert ddp["meta compute"] == pytest.approx(over["meta"] * 2 * (2000 / 500 + 1000 / 50))


def test_measured_ratios_take_the_place_of_the_packages_own(seconds):
    kwargs = {"device": SLOW, "utilisation": 0.5, "latency_us": 1e6, "over_floor": {"designer": 3.0, "meta": 5.0}}
    found = on_gpus(WORK, 8, **kwargs)
    assert found.as_json()["over_floor"] == kwargs["over_floor"]
    assert found.plans[0].seconds["designer"] == pytest.approx(3 * 8 * 100 / 50)
    assert found.plans[0].seconds["meta compute"] == pytest.approx(5 * 2 * (2000 / 500 + 1000 / 50))
    assert found.plans[0].seconds["learner"] == seconds[0]["learner"]
    assert "the designer takes 3 times its FLOP floor, the meta update 5 times" in estimate_remarks(found)[-1]


def test_remarks_say_on_which_gpu_the_passes_were_measured(monkeypatch):
    monkeypatch.setattr("vpretrain.scaling.tables.GPU", "H100")
    remarks = " ".join(estimate_remarks(on_gpus(WORK, 8)))
    assert "passes that reach 40% (measured on one H100)" in remarks
    assert "measured, on one H100: the designer" in remarks
    assert "nothing was measured on a GPU" not in remarks
    assert "(measured on one H100)" not in " ".join(estimate_remarks(on_gpus(WORK, 8, utilisation=0.3)))


def test_seconds_of_communication_equal_a_hand_calculation(seconds):
    ddp, fsdp2, lean = seconds
    # 1,000 bytes a second in a node, a second a message: up and down a tree of 8, or seven round a ring, for each of 5 units.
    assert ddp["learner's communication"] == pytest.approx(7 + 2 * 3)
    assert fsdp2["learner's communication"] == pytest.approx((2 * 2 + 1) * (3.5 + 5 * 7))
    assert lean["learner's communication"] == pytest.approx(2 * 3 * (3.5 + 5 * 7))
    assert ddp["meta communication"] == pytest.approx(2 * 7 / 8 * 4 * 850 / 1000 + 3 * 6)


def test_a_step_takes_the_longer_of_compute_and_communication_and_its_share_of_a_meta_update(seconds):
    ddp = seconds[0]
    longer = max(ddp["learner"], ddp["learner's communication"])
    meta = (ddp["meta compute"] + ddp["meta communication"]) / 8
    assert ddp["step"] == pytest.approx(longer + ddp["designer"] + meta)


@pytest.mark.parametrize("rows", ["meta_rows", "feedback_rows"])
def test_three_rows_on_two_gpus_cost_as_much_as_four(rows):
    two, three, four = (on_gpus(replace(WORK, **{rows: count}), 2).plans for count in (2, 3, 4))
    assert two != three
    assert three == four


def test_bandwidth_beyond_a_node_is_that_of_its_links_together():
    # Beyond a node its 8 links carry 100 bytes a second each.
    assert on_gpus(WORK, 16, device=SLOW).bandwidth_gbs == pytest.approx(8e-7)
    assert on_gpus(WORK, 16, device=SLOW, gpus_per_node=4).bandwidth_gbs == pytest.approx(4e-7)


def test_the_least_period_makes_meta_updates_negligible():
    slow = replace(WORK, replicated=replace(WORK.replicated, value_flops=1e6))
    least = least_period(on_gpus(slow, 8).plans[0], slow.every_steps)
    assert least > 8
    shares = [on_gpus(replace(slow, every_steps=r), 8).plans[0].meta_share for r in (least - 1, least)]
    assert shares[1] <= 0.02 < shares[0]


@pytest.mark.parametrize("family", ["llama", "llama-untied", "gpt2", "gemma2"])
def test_counts_of_a_language_learner_are_those_of_the_real_one(family, tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, family, arm="v-paper")
    work = workload(recipe)
    parts = MODALITIES["language"].assemble(recipe)
    theta = dict(parts.learner.named_parameters())
    assert work.parameters == work.trained == sum(p.numel() for p in theta.values())
    assert work.subset == sum(theta[name].numel() for name in parts.meta.subset)
    assert work.designer == sum(p.numel() for p in parts.designer.parameters())
    assert (work.batch_size, work.meta_rows, work.feedback_rows, work.directions) == (2, 2, 2, 1)
    assert work.root + work.block * work.blocks == work.parameters


def test_under_lora_adapters_alone_have_gradients_and_states(tmp_path, tokenizer):
    lora = {"lora": {"r": 2, "target_modules": ["q_proj", "down_proj"]}}
    data = recipe_data(tmp_path, tokenizer) | {"arm": "v-paper"}
    recipe = parse_recipe(data | {"learner": data["learner"] | lora})
    work, full = workload(recipe), workload(parse_recipe(data))
    parts = MODALITIES["language"].assemble(recipe)
    theta = dict(parts.learner.named_parameters())
    assert work.trained == sum(p.numel() for p in theta.values()) < full.trained
    assert work.parameters == full.parameters + work.trained
    assert work.subset == sum(theta[name].numel() for name in parts.meta.subset)
    ddp = on_gpus(work, 2).plans[0].memory
    assert ddp["AdamW (fp32)"] == 8 * work.trained


def test_the_exact_task_has_a_tangent_in_place_of_a_designer(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer)
    work = workload(recipe)
    theta = dict(MODALITIES["language"].load_learner(recipe)[0].named_parameters())
    mlp = sum(p.numel() for name, p in theta.items() if ".layers.2.mlp." in name)
    assert (work.designer, work.subset, work.meta_rows, work.feedback_rows) == (0, mlp, 2, 2)
    assert work.replicated.value_flops == 0 < work.replicated.feedback_flops
    assert 0 < work.designer_flops < 0.2 * work.step_flops


def test_arms_without_feedback_have_no_meta_update(tmp_path, tokenizer):
    work = workload(tiny_recipe(tmp_path, tokenizer, arm="one-hot"))
    assert (work.designer, work.meta_rows, work.subset, work.designer_flops) == (0, 0, 0, 0)
    plan = on_gpus(work, 2).plans[0]
    assert plan.meta_share == plan.designer_share == plan.sent["a meta update"] == plan.memory["states below S"] == 0
    assert not [line for line in estimate_remarks(on_gpus(work, 2)) if "replicate" in line]


TINY_HEAD = {"outputs": 32, "hidden": 32, "bottleneck": 16}
HIDDEN, ALL = {"patch_loss": 1.0}, {"patch_loss": 1.0, "hidden_patches": 0.0}  # patches with targets


@pytest.mark.parametrize(
    ("family", "objective", "patches"),
    [
        ("dinov2", "dino", {}),
        ("dinov2", "dino", HIDDEN),
        ("dinov2", "dino", ALL),
        ("dinov3", "dino", {}),
        ("ijepa", "ijepa", {}),
    ],
)
def test_counts_of_a_vision_learner_are_those_of_the_real_one(family, objective, patches, tmp_path):
    learner = {
        "objective": objective,
        "dino": TINY_HEAD | patches,
        "ijepa": {"predictor_width": 16, "predictor_layers": 2, "predictor_heads": 2},
    }
    local = {"local_views": 0, "global_views": 1} if objective == "ijepa" else {}
    recipe = vision_recipe(tmp_path, family, learner=learner, stream=local)
    work = workload(recipe)
    parts = MODALITIES["vision"].assemble(recipe)
    theta = dict(parts.learner.named_parameters())
    assert work.parameters == work.trained == work.teacher == sum(p.numel() for p in theta.values())
    assert work.subset == sum(theta[name].numel() for name in parts.meta.subset)
    assert work.designer == sum(p.numel() for p in parts.designer.parameters())
    with sdpa_kernel(SDPBackend.MATH):  # torch counts no other attention on a CPU
        batch = parts.stream.next()[0]
        with FlopCounterMode(display=False) as counter:
            state = parts.learner.forward(batch)
            parts.learner.loss(state, Fixed().targets(batch, state.detach())).backward()
        of = {str(operation): flops for operation, flops in counter.get_flop_counts()["Global"].items()}
        found = sum(
            flops for name, flops in of.items() if "convolution" not in name
        )  # the patches' embedding is left out
        assert work.step_flops * len(batch.keys) == pytest.approx(found, rel=0.06)
        assert work.designer_flops * len(batch.keys) == counted(lambda: parts.construction.mask(batch))


@pytest.mark.parametrize("subset", ["last-1", "last-2"])
def test_flops_of_a_tangent_through_blocks_are_those_that_torch_counts(subset, tmp_path):
    recipe = vision_recipe(tmp_path, arm="v", value={"subset": subset}, learner={"dino": TINY_HEAD})
    parts = MODALITIES["vision"].assemble(recipe)
    batch = parts.stream.next()[0]
    state = parts.learner.forward(batch).detach()
    u = parts.meta.theta_at()
    found = counted(lambda: parts.learner.tangents(batch, state, u))
    assert workload(recipe).designer_flops * len(batch.keys) == pytest.approx(found, rel=0.1)


def whole_rows(rows, length):
    """Every token but the first of a row is a target."""
    positions_BT = torch.arange(length).expand(rows, -1)
    ids_BT = torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(0))
    return TokenBatch(ids_BT, positions_BT, torch.ones(rows, length), ("sums",) * rows, ((),) * rows)


@pytest.mark.parametrize("lora", [None, {"r": 2, "dropout": 0.0, "target_modules": ["q_proj", "down_proj"]}])
@pytest.mark.parametrize("family", ["llama", "qwen2-untied"])
def test_flops_of_a_step_are_those_that_torch_counts(family, lora, tmp_path, tokenizer):
    data = recipe_data(tmp_path, tokenizer, family)
    recipe = parse_recipe(data | {"learner": data["learner"] | {"lora": lora}})
    work, batch = workload(recipe), whole_rows(2, 48)
    learner = MODALITIES["language"].load_learner(recipe)[0]

    def run():
        state = learner.forward(batch)
        learner.loss(state, OneHot().targets(batch, state.detach())).backward()

    with sdpa_kernel(SDPBackend.MATH):
        # Below the first adapter nothing goes backward: of three blocks that is something.
        assert 2 * work.step_flops == pytest.approx(counted(run), rel=0.1 if lora else 0.05)


def test_flops_by_hand():
    model = Transformer(blocks=100, head=10, attention=4, trained_blocks=100, trained_head=True)
    read = Read(tokens=8, targets=6, length=8)
    forward = 2 * 8 * 100 + 8 * 8 * 4 + 2 * 6 * 10
    assert model.forward(read) == forward
    assert model.step(read) == 3 * forward
    # Forward, the head once more, and the upper half of the blocks twice more.
    assert model.feedback_floor(0.5, read) == forward + 2 * 6 * 10 + 0.5 * 2 * (forward - 2 * 6 * 10)
    assert model.value_floor(0.5, read, phi=20) == (forward - 2 * 6 * 10) + 6 * 8 * 20
    upper = 0.5 * (forward - 2 * 6 * 10) + 2 * 6 * 10
    assert model.difference_floor(0.5, read, phi=20) == model.feedback_floor(0.5, read) + 2 * upper + 6 * 8 * 20
    frozen = replace(model, trained_blocks=0, trained_head=False)
    assert frozen.step(read) == 2 * forward + 8 * 8 * 4


def kept_bytes(run, learner):
    """Of all that autograd keeps for backward, apart from parameters and what is made of them alone."""
    own = {p.untyped_storage().data_ptr() for p in learner.module.parameters()}
    shapes = {p.shape for p in learner.module.parameters()} | {
        p.T.shape for p in learner.module.parameters() if p.ndim == 2
    }
    storages = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own and tensor.shape not in shapes:
            storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return sum(size for size, _ in storages.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_activations_are_those_that_autograd_keeps(family, precision, tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, family, learner={"precision": precision})
    learner = LanguageLearner(tiny_model(family), bf16=precision == "bf16")
    batch = whole_rows(3, 48)
    measured = kept_bytes(lambda: learner.forward(batch).hidden_BTD, learner)
    assert workload(recipe).activation_bytes * 3 == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_of_views_are_those_that_autograd_keeps(precision, tmp_path):
    recipe = vision_recipe(tmp_path, learner={"precision": precision})
    learner = MODALITIES["vision"].load_learner(recipe)[0]
    batch = ViewBatch(torch.rand(2, 3, 3, 32, 32), torch.rand(2, 3, 3, 16, 16), ("",) * 3, (0, 1, 2), 3)
    learner.module.eval()  # drop-path keeps a little besides
    measured = kept_bytes(lambda: learner.forward(batch), learner)
    assert workload(recipe).activation_bytes * 3 == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("patches", [HIDDEN, ALL])
def test_outputs_at_patches_take_the_memory_that_head_and_loss_hold(patches, precision, tmp_path):
    dino = {"outputs": 4096, "hidden": 1024, "bottleneck": 16, **patches}  # far more than the blocks hold
    recipe = vision_recipe(tmp_path, arm="fixed", learner={"precision": precision, "dino": dino})
    learner = MODALITIES["vision"].load_learner(recipe)[0]
    batch = ViewBatch(torch.rand(2, 3, 3, 32, 32), torch.rand(2, 3, 3, 16, 16), ("",) * 3, (0, 1, 2), 3, local_views=2)
    learner.module.eval()  # drop-path keeps a little besides
    states = []

    def run():
        states.append(learner.forward(batch))
        return learner.loss(states[0], Fixed().targets(batch, states[0].detach()))

    measured = kept_bytes(run, learner)
    measured += sum(z.numel() * z.element_size() for z in (states[0].student, states[0].local, states[0].teacher))
    work = workload(recipe)
    assert 3 * (work.activation_bytes + work.logits_bytes) == pytest.approx(measured, rel=0.1)


def test_moved_features_are_held_beside_the_heads_outputs(tmp_path):
    fixed, exact = (workload(vision_recipe(tmp_path, arm=arm)).logits_bytes for arm in ("fixed", "v"))
    # Per image the 2 x 17 tokens of the global views, of width 32, and the first view's tangents, target and gradient.
    assert exact - fixed == 4 * (34 + 3 * 17) * 32


@pytest.mark.parametrize(("subset", "shared"), [("last-mlp", 1), ("last-2", 1 / 3)])  # of a pass; of three blocks
def test_biases_are_refitted_in_the_pass_of_the_gradient_but_one_of_their_own_under_fsdp(tmp_path, subset, shared):
    recipes = (
        vision_recipe(tmp_path, arm="v", feedback={"refit_biases": refit}, value={"subset": subset})
        for refit in (False, True)
    )
    plain, refitted = map(workload, recipes)
    ours, theirs = refitted.replicated.feedback_flops_fp32, plain.replicated.feedback_flops_fp32
    assert ours == 2 * theirs  # one step of the heads takes the other
    assert refitted.replicated.feedback_flops == pytest.approx(plain.replicated.feedback_flops - shared * theirs)
    assert refitted.sharded.feedback_flops == plain.sharded.feedback_flops == plain.replicated.feedback_flops
    assert refitted.sharded.weights_gathered == plain.sharded.weights_gathered + 1


def test_the_gradient_that_a_cosine_needs_is_counted_in_the_learners_precision(tmp_path):
    dot, cosine = (
        workload(vision_recipe(tmp_path, arm="v", value={"align": align})).replicated for align in ("dot", "cosine")
    )
    assert dot.gradient_flops == dot.value_flops == cosine.value_flops == 0 < cosine.gradient_flops
    plain, counted_too = (replace(WORK.replicated, gradient_flops=flops) for flops in (0.0, 3000.0))
    plans = [
        on_gpus(replace(WORK, replicated=each), 8, device=SLOW, utilisation=0.5).plans[0]
        for each in (plain, counted_too)
    ]
    more = plans[1].seconds["meta compute"] - plans[0].seconds["meta compute"]
    assert more == pytest.approx(OVER_FLOOR["language"]["meta"] * 2 * 3000 / 500)


@pytest.mark.parametrize("gpus", [1, 8])
def test_every_gpu_fits_the_heads_on_the_whole_feedback_batch(gpus):
    found = []
    for flops in (0.0, 300.0):
        work = replace(WORK, replicated=replace(WORK.replicated, feedback_flops_fp32=flops), feedback_every=2)
        found.append(on_gpus(work, gpus, device=SLOW, utilisation=0.5).plans[0].seconds["meta compute"])
    assert found[1] - found[0] == pytest.approx(OVER_FLOOR["language"]["meta"] * 16 * 300 / 50 / 2)


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("recomputed", [False, True])
def test_autocasts_copies_outlive_the_weights_that_fsdp2_collects(recomputed, one_process, tmp_path, tokenizer):
    model = tiny_model()
    if recomputed:
        model.activation_checkpointing_enable()
    shapes = {p.shape for p in model.parameters() if p.ndim == 2}
    shapes |= {torch.Size(reversed(shape)) for shape in shapes}
    for block in model.model.layers:
        fully_shard(block)
    fully_shard(model)
    copies = {}

    def keep(tensor):
        if tensor.dtype == torch.bfloat16 and tensor.shape in shapes:
            copies[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(input_ids=torch.ones(2, 25, dtype=torch.long), use_cache=False)
    kept = sum(tensor.numel() for tensor in copies.values())
    work = workload(tiny_recipe(tmp_path, tokenizer, learner={"precision": "bf16"}))
    norms = 2 * 3 * 32
    assert kept == (work.head_cast if recomputed else work.cast - norms)


def in_place_of(name, root):
    """A recipe of recipes/ on a tiny learner that a directory describes; all else stands."""
    data = yaml.safe_load((RECIPES / name).read_text())
    if data.get("modality") == "vision":
        config = tiny_vision_model("ijepa" if name.startswith("ijepa") else "dinov3").config
        config.num_hidden_layers = 4
        data["stream"]["local_size"] = 40 if "quickstart" in name else 96
    else:
        config = tiny_model("qwen2", vocabulary=256).config
        config.max_position_embeddings = 4096
    config.save_pretrained(root / "learner")
    data["learner"]["name"] = str(root / "learner")
    return parse_recipe(data | {"arm": "v"})


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("*.yaml")))
def test_every_recipe_can_be_estimated(name, tmp_path):
    recipe = in_place_of(name, tmp_path)
    share = recipe.stream.batch_size % 2 == 0 and recipe.value.batch_size > 1
    found = estimate(recipe, 2 if share else 1)
    assert all(plan.fits for plan in found.plans)
    assert all(value >= 0 for plan in found.plans for value in (*plan.memory.values(), *plan.seconds.values()))
    assert found.plans[0].seconds["step"] > found.plans[0].seconds["designer"] > 0


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    root = tmp_path_factory.mktemp("estimate")
    data = recipe_data(root, character_tokenizer())
    data["stream"]["accumulation"] = 8
    data["stream"]["batch_size"] = data["feedback"]["batch_size"] = data["value"]["batch_size"] = 4
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(data))
    return str(file)


@pytest.fixture(scope="module")
def sizes(path):
    """GiB on each of 4 GPUs, by layout."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["estimate", path, "--world-size", "4", "--json"]) == 0
    return [sum(plan["memory"].values()) / GIB for plan in json.loads(printed.getvalue())["plans"]]


def test_where_ddp_fits_nothing_needs_to_be_sharded(path, capsys):
    assert main(["estimate", path, "--world-size", "4"]) == 0
    text = capsys.readouterr().out
    assert "4 GPUs, on paper: 8 x 1 rows a step on each" in text
    assert "ddp fits: " in text
    assert "nothing needs to be sharded" in text
    assert "nothing was measured on a GPU" in text


def test_every_layout_needs_less_memory_than_the_one_before(sizes):
    assert sizes[0] > sizes[1] > sizes[2]


def test_where_ddp_does_not_fit_the_first_layout_that_does_is_advised(path, sizes, capsys):
    between = [str((more + less) / 2) for more, less in itertools.pairwise(sizes)]
    for memory, advice in zip([*between, "1e-9"], ["(fsdp2)", "activations again", "no layout fits"], strict=True):
        assert main(["estimate", path, "--world-size", "4", "--memory-gib", memory]) == 0
        text = capsys.readouterr().out
        assert "ddp does not fit: " in text
        assert advice in text
        assert "with stream.accumulation=1 it would hold none" in text.replace("\n", " ")


def test_the_command_takes_settings_a_device_and_answers_in_json(path, capsys):
    words = ["--device", "a100", "--fp32-tflops", "156", "--bandwidth-gbs", "7", "--utilisation", "0.3", "--json"]
    assert main(["estimate", path, "value.batch_size=5", "--world-size", "4", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == vars(DEVICES["a100"]) | {"fp32_tflops": 156}
    assert (found["bandwidth_gbs"], found["utilisation"], found["workload"]["meta_rows"]) == (7, 0.3, 5)
    assert [plan["layout"] for plan in found["plans"]] == ["ddp", "fsdp2", "fsdp2-lean"]
    assert found["over_floor"].keys() == {"designer", "meta"}
    assert any("fits" in line for line in found["remarks"])


def refused(capsys, path, *words):
    assert main(["estimate", path, *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("gpus", "settings", "message"),
    [
        ("3", [], "stream.batch_size=4 is no multiple of 3 GPUs, and the run would refuse it: use 6"),
        ("8", ["stream.batch_size=8"], "value.batch_size=4 leaves some of 8 GPUs"),
        ("8", ["stream.batch_size=8", "value.batch_size=8"], "feedback.batch_size=4 leaves some of 8 GPUs"),
        ("2", ["arm=sft"], "arm=sft has passes of its own"),
        ("2", ["stream.length=4096"], "stream.length=4096 is longer"),
    ],
)
def test_what_cannot_be_estimated_gets_one_line_with_the_remedy(path, capsys, gpus, settings, message):
    assert message in refused(capsys, path, "--world-size", gpus, *settings)


@pytest.mark.parametrize(
    ("family", "message"), [("mamba", "is a mamba: estimate knows"), ("qwen3-moe", "one feed-forward part")]
)
def test_a_learner_of_another_architecture_gets_one_line(path, capsys, tmp_path, family, message):
    tiny_model(family).config.save_pretrained(tmp_path / family)
    assert message in refused(capsys, path, "--world-size", "2", f"learner.name={tmp_path}/{family}")


@pytest.mark.parametrize(
    "words",
    [["--world-size", "0"], [], ["--world-size", "2", "--tflops", "-1"], ["--world-size", "2", "--device", "z9"]],
)
def test_missing_or_wrong_options_of_the_command_are_refused(path, words):
    with pytest.raises(SystemExit) as exit:
        main(["estimate", path, *words])
    assert exit.value.code == 2


def test_an_estimate_for_no_gpus_is_refused():
    with pytest.raises(UserError, match="give a number from 1"):
        on_gpus(WORK, 0)
