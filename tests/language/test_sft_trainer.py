"""VPretrainSFTTrainer: our loop's numbers in TRL's SFTTrainer, its data, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from language.test_trainer import (
    PAPER_VALUE,
    STEPS,
    WHOLE,
    Stream,
    arguments,
    assert_completed,
    assert_equals_our_loop,
    by_our_loop,
    made,
)
from models import VOCABULARY, tiny_model
from trl import SFTConfig, SFTTrainer

from vpretrain import UserError
from vpretrain.language.adapters.attach import token_batch
from vpretrain.language.adapters.sft_trainer import VPretrainSFTTrainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's, about transformers: no user can act on it
TOKENISED = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}


def rows(count):
    """Documents of unequal lengths, of which the first four tokens are not predicted."""
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randint(1, VOCABULARY, (12 + 3 * (n % 4),), generator=draw).tolist() for n in range(count)]
    return Dataset.from_list([{"input_ids": ids, "labels": [-100] * 4 + ids[4:]} for ids in drawn])


def sft_arguments(directory, **changes):
    return arguments(directory, SFTConfig, **{"gradient_checkpointing": False, "bf16": False} | changes)


def micro_batches(trainer):
    """The trainer's micro-batches of two documents."""
    data = trainer.train_dataset
    for number in range(0, len(data), 2):
        yield token_batch(trainer.data_collator([data[number], data[number + 1]]))


@pytest.mark.parametrize(("arm", "value"), [("v-paper", PAPER_VALUE), ("v-exact", WHOLE)])
@pytest.mark.parametrize(("accumulation", "padding_free"), [(1, False), (2, True)])
def test_the_numbers_are_our_loops_bit_for_bit(tmp_path, tokenizer, accumulation, padding_free, arm, value):
    args = sft_arguments(tmp_path, gradient_accumulation_steps=accumulation, padding_free=padding_free, **TOKENISED)
    data = rows(2 * accumulation * STEPS)
    ours, theirs = tiny_model(), tiny_model()
    trainer = made(
        theirs, args, cls=VPretrainSFTTrainer, arm=arm, data=data, value=value.model_dump(exclude_unset=True),
        processing_class=tokenizer,
    )  # fmt: skip
    stream = Stream(micro_batches(trainer), accumulation)
    records, designer = by_our_loop(ours, accumulation, False, arm, value, stream=stream, tokens=len(tokenizer))
    trainer.train()
    logs = assert_equals_our_loop(trainer, records, ours, theirs, designer)
    assert sum("g_down_norm" in line for line in logs) >= 2
    assert max(line["alpha"] for line in logs) > 0.001


@pytest.mark.filterwarnings("ignore")  # of libraries, as they prepare the data
def test_a_closed_gate_is_trls_own_training_on_packed_prompts_and_completions(tmp_path, tokenizer):
    pairs = [{"prompt": f"{a} + 1 = ", "completion": str(a + 1)} for a in range(10, 50)]
    args = sft_arguments(tmp_path, packing=True, max_length=32, max_steps=3)
    given = {"train_dataset": Dataset.from_list(pairs), "processing_class": tokenizer}
    theirs = SFTTrainer(tiny_model(), args, **given)
    theirs.train()
    ours = made(
        tiny_model(), args, cls=VPretrainSFTTrainer, data=given["train_dataset"], processing_class=tokenizer,
        designer={"alpha_max": 0.0},
    )  # fmt: skip
    ours.train()
    for name in ("loss", "grad_norm"):
        logged = [[line[name] for line in trainer.state.log_history if name in line] for trainer in (theirs, ours)]
        assert logged[0] == pytest.approx(logged[1], rel=1e-3)
        assert len(logged[0]) == 3
    evaluated = [trainer.evaluate(given["train_dataset"])["eval_loss"] for trainer in (theirs, ours)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-2)


def test_editors_complete_trls_own_parameters_too():
    assert_completed(VPretrainSFTTrainer, SFTTrainer)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"loss_type": "dft"}, "loss_type=dft"),
        ("qwen3-moe", {}, "set router_aux_loss_coef=0.0"),
    ],
)
def test_what_would_be_left_out_silently_is_refused(tmp_path, tokenizer, family, changes, words):
    args = sft_arguments(tmp_path, **TOKENISED, **changes)
    with pytest.raises(UserError, match=words):
        made(tiny_model(family), args, cls=VPretrainSFTTrainer, data=rows(4), processing_class=tokenizer)
