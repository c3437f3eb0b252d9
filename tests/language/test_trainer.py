"""VPretrainTrainer: our loop's numbers in transformers' Trainer, its checkpoints, and what it refuses."""

from __future__ import annotations

import copy
import inspect
import operator
from dataclasses import replace

import pytest
import torch
from language.test_attach import DESIGNER, VALUE, feedback
from models import random_batch, tiny_model
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

from vpretrain import UserError
from vpretrain.config import OptimizerConfig
from vpretrain.language.adapters.attach import VPretraining
from vpretrain.language.adapters.trainer import VPretrainTrainer, _answering
from vpretrain.language.arms import ARMS, PAPER
from vpretrain.language.assemble import constructed
from vpretrain.language.config import ControlConfig, DesignerConfig, ValueConfig
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.task.construction import OneHot
from vpretrain.method.algorithm import continue_pretraining
from vpretrain.method.step import Schedule
from vpretrain.order import Shuffled
from vpretrain.run.optimizer import AdamW

STEPS, LR = 5, 1e-2


def micro_batches(count):
    """Micro-batches of two rows, with targets in unequal numbers."""
    for number in range(count):
        batch = random_batch(rows=2, seed=number)
        index = torch.arange(batch.ids_BT.shape[1])
        yield replace(batch, weights_BT=batch.weights_BT * (index < 24 - 5 * (number % 3)))


def rows(count):
    """The same as rows of a data set."""
    return [
        {"input_ids": ids, "position_ids": positions, "labels": torch.where(weights > 0, ids, -100)}
        for batch in micro_batches(count)
        for ids, positions, weights in zip(batch.ids_BT, batch.positions_BT, batch.weights_BT, strict=True)
    ]


def arguments(directory, cls=TrainingArguments, **changes):
    settings = {
        "per_device_train_batch_size": 2,
        "max_steps": STEPS,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    return cls(str(directory), **settings | changes)


def made(model, args, *, cls=VPretrainTrainer, arm="v-paper", data=None, designer=None, value=None, **more):
    return cls(
        model,
        args,
        train_dataset=rows(2 * STEPS) if data is None else data,
        feedback_dataset=feedback(),
        arm=arm,
        designer=DesignerConfig(**DESIGNER | (designer or {})),
        value=ValueConfig(**VALUE | (value or {})),
        feedback_batch_size=2,
        **more,
    )


class Stream:
    """Micro-batches, so many a step."""

    def __init__(self, batches, accumulation):
        self.batches, self.accumulation = batches, accumulation

    def next(self):
        return [next(self.batches) for _ in range(self.accumulation)]


class Feedback:
    """The feedback rows as token batches, two a time."""

    weights = {"general": 1.0}  # noqa: RUF012

    def __init__(self):
        self.rows, self.order, self.drawn = feedback(), Shuffled(6, "0/general"), 0

    def next(self):
        chosen = [self.rows[self.order[self.drawn + i]] for i in range(2)]
        self.drawn += 2
        ids = torch.tensor([row["input_ids"] for row in chosen])
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        return {"general": TokenBatch(ids, positions, (positions >= 5).float(), ("general",) * 2, ((), ()))}


def by_our_loop(model, accumulation, bf16, arm, value, *, stream=None, tokens=None):
    designer_config = DesignerConfig(**DESIGNER)
    learner = LanguageLearner(model, top_k=designer_config.top_k, tokens=tokens, bf16=bf16)
    construction, meta, designer = constructed(
        ARMS[arm], learner, Feedback(), designer_config, value, ControlConfig(), length=value.length, seed=0
    )
    records = []
    continue_pretraining(
        learner=learner,
        stream=stream or Stream(micro_batches(accumulation * STEPS), accumulation),
        construction=construction,
        base=OneHot(),
        optimizer=AdamW(learner.named_parameters(), OptimizerConfig(lr=LR, warmup_fraction=0), total_steps=STEPS),
        meta=meta,
        schedule=Schedule(value.every_steps),
        optimizer_aware=value.metric == "adamw",
        steps=range(STEPS),
        after_step=records.append,
    )
    return records, designer


def assert_same_parameters(ours, theirs, designer, v):
    """Of the learners, and of our loop's designer, if it has one, and that of a `VPretraining`."""
    for one, other in ((ours, theirs), *([] if designer is None else [(designer, v.designer)])):
        for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q), name


def assert_equals_our_loop(trainer, records, ours, theirs, designer):
    """Numbers, learner and designer, bit for bit; returns the trainer's logs."""
    logs = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["loss"] for line in logs] == [record.loss for record in records]
    assert [line["grad_norm"] for line in logs] == [record.optimizer["grad_norm"] for record in records]
    assert [line["alpha"] for line in logs] == [record.side["alpha"] for record in records]
    for name in ("strength", "value", "g_down_norm"):
        assert [line.get(name) for line in logs] == [record.meta.get(name) for record in records]
    assert_same_parameters(ours, theirs, designer, trainer.vpretraining)
    return logs


PAPER_VALUE = ValueConfig(**VALUE | PAPER)
WHOLE = ValueConfig(**VALUE, strength=1.0)
# With its meta updates in five steps: all three, those after the first step, the two that judge.
CASES = [
    ("v-paper", PAPER_VALUE, 3),
    ("v-exact", WHOLE, 2),
    ("v-exact", ValueConfig(**VALUE), 2),
    ("v-learned", WHOLE, 2),
]


@pytest.mark.usefixtures("judged_early")
@pytest.mark.parametrize(("arm", "value", "updates"), CASES)
@pytest.mark.parametrize(("accumulation", "bf16"), [(1, False), (2, False), (2, True)])
def test_the_numbers_are_our_loops_bit_for_bit(tmp_path, accumulation, bf16, arm, value, updates):
    ours, theirs = tiny_model(), tiny_model()
    records, designer = by_our_loop(ours, accumulation, bf16, arm, value)
    args = arguments(tmp_path, gradient_accumulation_steps=accumulation, bf16=bf16)
    trainer = made(theirs, args, arm=arm, value=value.model_dump(exclude_unset=True))
    assert trainer.vpretraining.learner.bf16 == bf16
    trainer.train()
    logs = assert_equals_our_loop(trainer, records, ours, theirs, designer)
    assert sum("g_down_norm" in line for line in logs) == updates
    assert any("strength" in line for line in logs) == (value.strength == "auto" and arm != "v-paper")
    if value.strength == 1 or arm == "v-paper":
        assert max(line["alpha"] for line in logs) > 0.001


@pytest.mark.usefixtures("judged_early")
@pytest.mark.parametrize(("arm", "value", "updates"), CASES)
def test_a_loop_of_ones_own_has_our_loops_numbers_bit_for_bit(arm, value, updates):
    ours, theirs = tiny_model(), tiny_model()
    records, designer = by_our_loop(ours, 2, False, arm, value)
    settings = {"designer": DesignerConfig(**DESIGNER), "value": value, "feedback_batch_size": 2}
    v = VPretraining(theirs, feedback(), arm=arm, **settings)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=LR, weight_decay=0.0, fused=True)
    stream, updated = Stream(micro_batches(2 * STEPS), 2), 0
    for step, record in enumerate(records):
        batches = [
            {
                "input_ids": batch.ids_BT,
                "position_ids": batch.positions_BT,
                "labels": torch.where(batch.weights_BT > 0, batch.ids_BT, -100),
            }
            for batch in stream.next()
        ]
        losses = []
        for loss in v.losses(step, batches, optimizer=optimizer, progress=step / STEPS):
            loss.backward()
            losses.append(loss.detach())
        assert float(sum(losses)) == record.loss
        assert float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)) == record.optimizer["grad_norm"]
        optimizer.step()
        optimizer.zero_grad()
        assert float(v.record["alpha"]) == record.side["alpha"]
        for name in ("strength", "value", "g_down_norm"):
            assert v.record.get(name) == record.meta.get(name)
        updated += "g_down_norm" in v.record
    assert updated == updates
    assert_same_parameters(ours, theirs, designer, v)


def test_a_closed_gate_is_the_trainers_own_training(tmp_path):
    plain, gated = tiny_model("gpt2"), tiny_model("gpt2")  # with dropout
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    data = [{name: row[name] for name in ("input_ids", "labels")} for row in rows(2 * STEPS)]
    theirs = Trainer(plain, args, train_dataset=data)
    theirs.train()
    ours = made(gated, args, data=data, designer={"alpha_max": 0.0})
    ours.train()
    # Not the parameters: the first steps of Adam turn what rounding leaves of a gradient that is 0 into a full step.
    for name in ("loss", "grad_norm"):
        logged = [[line[name] for line in trainer.state.log_history if name in line] for trainer in (theirs, ours)]
        assert logged[0] == pytest.approx(logged[1], rel=1e-4)
        assert len(logged[0]) == STEPS
    evaluated = [trainer.evaluate(data[:4])["eval_loss"] for trainer in (theirs, ours)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-4)


def test_evaluation_is_one_hot_whatever_the_gate(tmp_path):
    model = tiny_model()
    data = rows(2)
    one_hot = Trainer(copy.deepcopy(model), arguments(tmp_path)).evaluate(data)["eval_loss"]
    trainer = made(model, arguments(tmp_path), designer={"alpha_start": 0.4})
    assert trainer.evaluate(data)["eval_loss"] == one_hot


def with_adapters(model):
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.05, task_type="CAUSAL_LM"))


@pytest.mark.parametrize("make", [lambda seed: tiny_model("gpt2", seed=seed), lambda seed: with_adapters(tiny_model())])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, make):
    """With dropout, a shuffled order and a feedback batch that serves two updates."""
    changes = {"train_sampling_strategy": "random", "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    changes |= {"gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    value = {"every_steps": 1, "feedback_every": 2}
    whole = made(make(0), arguments(tmp_path / "whole", **changes), value=value)
    whole.train()
    parts = made(make(1), arguments(tmp_path / "parts", **changes), value=value)
    parts.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"))
    for part in ("model", "vpretraining.designer"):
        ends = [dict(operator.attrgetter(part)(trainer).named_parameters()) for trainer in (whole, parts)]
        for name, p in ends[0].items():
            assert torch.equal(p, ends[1][name]), name
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (whole, parts)]
    assert losses[0] == losses[1]
    assert parts.vpretraining.meta.updates == 6


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path):
    args = arguments(tmp_path, save_strategy="steps", save_steps=STEPS)
    Trainer(tiny_model(), args, train_dataset=rows(STEPS)).train()
    with pytest.raises(UserError, match="holds no designer"):
        made(tiny_model(), args).train(resume_from_checkpoint=True)


def test_activation_checkpointing_changes_nothing(tmp_path):
    logged = []
    for checkpointing in (False, True):
        trainer = made(tiny_model(), arguments(tmp_path, max_steps=3, activation_checkpointing=checkpointing))
        trainer.train()
        assert trainer.model.is_activation_checkpointing == checkpointing
        with trainer.vpretraining.learner.looking_ahead(random_batch()):  # a pass made ahead would keep all activations
            assert (trainer.vpretraining.learner.shared_pass._coming is None) == checkpointing
        names = ("loss", "grad_norm", "value")
        logged.append([[line.get(name) for name in names] for line in trainer.state.log_history if "loss" in line])
    assert logged[0] == logged[1]


def test_what_wraps_the_model_for_several_processes_sees_the_pass(tmp_path):
    """DDP puts gradients together only behind a forward pass of its own."""
    inputs = {name: value[None] for name, value in rows(1)[0].items()}
    gradients, losses, buckets = [], [], []

    def passed_on(state, bucket):
        buckets.append(bucket.index())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for wrap in (False, True):
            model = tiny_model()
            trainer = made(model, arguments(tmp_path))
            called = DistributedDataParallel(model) if wrap else model
            if wrap:
                called.register_comm_hook(None, passed_on)
            trainer.get_batch_samples(iter([inputs]), 1, "cpu")
            losses.append(trainer.compute_loss(called, inputs))
            losses[-1].backward()
            gradients.append([p.grad for p in model.parameters()])
            assert "forward" not in vars(model)
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(*losses)
    assert all(torch.equal(g, h) for g, h in zip(*gradients, strict=True))
    assert buckets


def test_another_forward_gives_way_for_the_pass_alone():
    model = tiny_model()
    with _answering(model, lambda: 1), _answering(model, lambda: 2):
        assert model() == 2
    assert "forward" not in vars(model)
    vars(model)["forward"] = patched = lambda: 3
    with _answering(model, lambda: 1):
        assert model() == 1
    assert vars(model)["forward"] is patched


def assert_completed(trainer, base):
    """Editors complete the parameters of the trainer that ours extends, too."""
    own, theirs = (inspect.signature(each).parameters for each in (trainer, base))
    assert list(own)[: len(theirs)] == list(theirs)
    assert {name: own[name].default for name in theirs} == {name: each.default for name, each in theirs.items()}
    kinds = {each.kind for each in own.values()}
    assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def test_editors_complete_the_trainers_own_parameters_too():
    assert_completed(VPretrainTrainer, Trainer)


def test_candidates_are_tokens_of_the_processing_class(tmp_path, tokenizer):
    model = tiny_model()
    trainer = made(model, arguments(tmp_path), processing_class=tokenizer)
    seen = trainer.vpretraining.learner.observe(random_batch(rows=4)).logits
    assert seen.candidates_NK[:, 1:].max() < len(tokenizer) < model.config.vocab_size


class Sharded(VPretrainTrainer):
    """As under FSDP."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = True


@pytest.mark.parametrize(
    ("changes", "more", "words"),
    [
        ({"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor=0.1: .* set it to 0"),
        ({"use_liger_kernel": True}, {}, "use_liger_kernel=True: .* no forward mode"),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, {}, "use_reentrant=False"),
        ({}, {"compute_loss_func": print}, "compute_loss_func"),
        ({}, {"cls": Sharded}, "sharded.*DDP or ZeRO-1/2"),
    ],
)
def test_what_cannot_work_is_refused_when_the_trainer_is_made(tmp_path, changes, more, words):
    with pytest.raises(UserError, match=words):
        made(tiny_model(), arguments(tmp_path, **changes), **more)
