"""V-pretraining in other people's loops: their batches, their losses, and what cannot work."""

from __future__ import annotations

import pytest
import torch
from models import VOCABULARY, tiny_model

from vpretrain import UserError, distributed
from vpretrain.language.adapters.attach import VPretraining, feedback_rows, token_batch
from vpretrain.language.config import DesignerConfig, ValueConfig
from vpretrain.language.model.learner import LanguageLearner

DESIGNER = {"hidden_size": 16, "layers": 1, "heads": 2, "top_k": 8, "lr": 1e-2}
VALUE = {"every_steps": 2, "batch_size": 2, "length": 32}


def feedback(count=6, length=12, seed=5):
    """Rows of which the first five tokens are the problem."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, VOCABULARY, (count, length), generator=draw)
    return [{"input_ids": ids.tolist(), "labels": [-100] * 5 + ids[5:].tolist()} for ids in rows]


def attached(model, *, arm="v-paper", rows=None, designer=None, **value):
    return VPretraining(
        model,
        feedback() if rows is None else rows,
        arm=arm,
        designer=DesignerConfig(**DESIGNER | (designer or {})),
        value=ValueConfig(**VALUE | value),
        feedback_batch_size=2,
    )


def padded(lengths, *, side="right", width=12, seed=0):
    """A batch as a collator pads it, all real tokens predicted."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.zeros((len(lengths), width), dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    if side == "left":
        mask = mask.flip(1)
    ids = torch.randint(1, VOCABULARY, mask.shape, generator=draw) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask > 0, ids, -100)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_has_the_models_own_loss(family, side):
    model = tiny_model(family).eval()
    inputs = padded([12, 7, 9], side=side)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)  # gpt2 counts padding, unless it is told
    if side == "left":  # and the first real token has a padded one before it, which predicts nothing
        first = (inputs["attention_mask"].cumsum(1) == 1) & (inputs["attention_mask"] > 0)
        inputs["labels"] = inputs["labels"].masked_fill(first, -100)
    theirs = model(**inputs, position_ids=positions).loss
    ours = LanguageLearner(model).nll(token_batch(inputs)).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_packed_rows_have_the_models_own_loss():
    model = tiny_model().eval()
    ids = torch.randint(1, VOCABULARY, (1, 14), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(5), torch.arange(9)])[None]
    labels = ids.masked_fill(positions == 0, -100)
    alone = [model(input_ids=part, labels=part).loss * (part.shape[1] - 1) for part in ids.split([5, 9], dim=1)]
    ours = LanguageLearner(model).nll(token_batch({"input_ids": ids, "position_ids": positions, "labels": labels}))
    torch.testing.assert_close(ours.sum(), sum(alone), rtol=1e-5, atol=1e-5)
    unlabelled = token_batch({"input_ids": ids, "position_ids": positions})
    assert torch.equal(unlabelled.targets_N, token_batch({"input_ids": ids, "labels": labels}).targets_N)


def test_a_closed_gate_leaves_the_ordinary_loss_of_all_micro_batches_together():
    model = tiny_model()
    parts = [padded([12, 7], seed=1), padded([3, 4], seed=2)]
    v = attached(model, designer={"alpha_max": 0.0})
    ours = sum(v.losses(0, parts))
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    torch.testing.assert_close(ours, model(**whole).loss)
    assert v.record["alpha"] == 0


def test_each_loss_is_a_share_of_the_targets_that_the_loop_names():
    parts = [padded([12, 7], seed=1), padded([3, 4], seed=2)]
    targets = 11 + 6 + 2 + 3
    whole, half = (sum(attached(tiny_model()).losses(1, parts, total=total)) for total in (None, 2 * targets))
    torch.testing.assert_close(whole, 2 * half)


def test_ids_that_may_be_no_tokens_are_remarked_on_once_unless_the_number_of_tokens_is_known(capsys):
    v = attached(tiny_model(vocabulary=128))
    list(v.losses(0, [padded([12, 9])]))
    told = capsys.readouterr().err
    assert told.count("the model has 128 ids, a multiple of 64") == 1
    assert "give tokens=len(tokenizer)" in told
    attached(tiny_model())
    VPretraining(tiny_model(vocabulary=128), feedback(), designer=DesignerConfig(**DESIGNER), tokens=100)
    assert "multiple of 64" not in capsys.readouterr().err


def test_a_meta_update_comes_with_every_second_step_and_leaves_no_gradient():
    model = tiny_model()
    v = attached(model)
    before = [p.clone() for p in v.designer.parameters()]
    losses = v.losses(0, [padded([12, 9])])
    next(losses)
    assert {"value", "g_down_norm", "alpha"} <= v.record.keys()
    assert all(p.grad is None for p in model.parameters())
    changed = [p.clone() for p in v.designer.parameters()]
    assert any(not torch.equal(p, old) for p, old in zip(changed, before, strict=True))
    list(v.losses(1, [padded([12, 9])]))
    assert "value" not in v.record
    assert all(torch.equal(p, old) for p, old in zip(v.designer.parameters(), changed, strict=True))


def test_the_burn_in_is_one_hot_and_delays_the_updates():
    v = attached(tiny_model(), designer={"burn_in_steps": 3})
    seen = {}
    for step in range(7):
        list(v.losses(step, [padded([12, 9])]))
        seen[step] = ("value" in v.record, float(v.record["alpha"]) > 0)
    assert [step for step, (updated, _) in seen.items() if updated] == [3, 5]
    assert [step for step, (_, soft) in seen.items() if soft] == [3, 4, 5, 6]


def test_the_autocast_of_the_loop_changes_nothing():
    found = []
    for cast in (False, True):
        v = attached(tiny_model(), arm="v", strength=1.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            (loss,) = v.losses(0, [padded([12, 9])])
        found.append((float(loss.detach()), v.record))
    assert "g_down_norm" in found[0][1]
    assert found[0] == found[1]


def test_dropout_stays_on_after_a_meta_update():
    model = tiny_model("gpt2").eval()
    v = attached(model)
    model.train()
    next(v.losses(0, [padded([12, 9])]))
    assert all(module.training for module in model.modules())


def test_a_part_that_the_loop_keeps_in_evaluation_stays_there():
    model = tiny_model("gpt2")
    v = attached(model)
    model.transformer.drop.eval()
    next(v.losses(0, [padded([12, 9])]))
    assert "g_down_norm" in v.record
    assert [name for name, part in model.named_modules() if not part.training] == ["transformer.drop"]


def test_a_micro_batch_without_targets_counts_nothing():
    model = tiny_model()
    empty = padded([12, 7], seed=1)
    empty["labels"] = torch.full_like(empty["labels"], -100)
    first, second = attached(model).losses(1, [empty, padded([3, 4])])
    first.backward()
    assert first.item() == 0
    torch.testing.assert_close(second, next(attached(model).losses(1, [padded([3, 4])])))


@pytest.mark.parametrize(
    ("arm", "value"),
    [
        ("v-paper", {"feedback_every": 2}),
        ("v-learned", {"strength": 1.0, "feedback_every": 2}),
        ("v", {}),
        ("v", {"strength": 1.0}),
    ],
)
def test_what_was_saved_goes_on_bit_for_bit(tmp_path, arm, value):
    def run(steps, v, model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for step in steps:
            for loss in v.losses(step, [padded([12, 9], seed=step)], optimizer=optimizer):
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    model, again = tiny_model(), tiny_model(seed=1)
    v = attached(model, arm=arm, **value)
    run(range(5), v, model)  # three updates: with feedback_every=2 the fourth needs the third's gradient
    v.save(tmp_path / "v")
    again.load_state_dict(model.state_dict())
    other = attached(again, arm=arm, **value)
    other.load(tmp_path / "v")
    run(range(5, 8), v, model)
    run(range(5, 8), other, again)
    for part, same in ((model, again), *([(v.designer, other.designer)] if v.designer else [])):
        for (name, p), q in zip(part.named_parameters(), same.parameters(), strict=True):
            assert torch.equal(p, q), name
    newer = attached(tiny_model(seed=2), arm=arm, **value)  # of another training, after fewer meta updates
    newer.save(tmp_path / "v")
    other.load(tmp_path / "v")
    assert other.meta.updates == 0
    assert len(list((tmp_path / "v").iterdir())) == 1
    with pytest.raises(UserError, match="holds no designer"):
        other.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="other parts"):
        attached(model, arm="v-learned", designer={"layers": 2}).load(tmp_path / "v")


def test_pairs_become_rows_with_labels_on_the_response(tokenizer):
    (row,) = feedback_rows([("1+1=", "2")], tokenizer)
    assert tokenizer.decode(row["input_ids"]).replace(" ", "") == "1+1=2<eos>"
    assert row["labels"] == [-100] * 4 + row["input_ids"][4:]


def test_what_follows_from_positions_is_not_read():
    """As collators without padding give it; without positions it could not be checked, and is refused."""
    ids = torch.tensor([[5, 6, 7, 8]])
    read = {"input_ids": ids, "labels": ids, "position_ids": torch.tensor([[0, 1, 0, 1]])}
    more = {"cu_seq_lens_q": torch.tensor([0, 2, 4]), "max_length_q": 2, "seq_idx": torch.tensor([[0, 0, 1, 1]])}
    alone, found = token_batch(read), token_batch(read | more)
    for name in ("ids_BT", "positions_BT", "weights_BT"):
        assert torch.equal(getattr(found, name), getattr(alone, name)), name
    with pytest.raises(UserError, match="cu_seq_lens_q"):
        token_batch({"input_ids": ids, "labels": ids, **more})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_type_ids": torch.zeros(1, 4)}, "token_type_ids"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, r"shape \[1, 1, 4, 4\]"),
        ({"labels": torch.tensor([[-100, 7, -100, 4]])}, "another task"),
    ],
)
def test_batches_that_would_be_misread_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        token_batch({"input_ids": torch.tensor([[1, 2, 3, 4]]), **change})


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "empty"),
        ([{"text": "1 + 1"}], "row 0 has text"),
        ([*feedback(1), {"input_ids": [1, 2], "labels": [1, -100]}], "row 1 has no label"),
    ],
)
def test_feedback_without_labels_is_refused(rows, words):
    with pytest.raises(UserError, match=words):
        attached(tiny_model(), rows=rows)


def test_feedback_beyond_the_context_is_refused():
    attached(tiny_model("gpt2"), rows=feedback(2, length=128))
    with pytest.raises(UserError, match=r"row 2 has 129 tokens, and the model reads at most 128.*length=128\)"):
        attached(tiny_model("gpt2"), rows=[*feedback(2), *feedback(1, length=129)])


def balanced(model):
    model.config.output_router_logits = True
    return model


def sharded(model):
    next(model.parameters()).ds_id = 0
    return model


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        (tiny_model, {"designer": {"top_k": 100}}, "top_k=100 is above the vocabulary of 61"),
        (lambda: tiny_model().bfloat16(), {}, "is bfloat16.*dtype=torch.float32"),
        (lambda: sharded(tiny_model()), {}, "sharded.*ZeRO-1/2"),
        (lambda: balanced(tiny_model("qwen3-moe")), {}, "balancing loss.*output_router_logits=False"),
        (lambda: tiny_model("mamba"), {}, "stream.packing=false"),
    ],
)
def test_what_cannot_work_is_refused_at_once(model, changes, words):
    with pytest.raises(ValueError, match=words):
        attached(model(), **changes)


def test_a_loop_of_ones_own_is_refused_in_several_processes(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(UserError, match="use VPretrainTrainer under torchrun"):
        attached(tiny_model())


def test_candidates_are_the_tokens_if_their_number_is_given():
    model, tokens = tiny_model(), VOCABULARY - 20
    batch = token_batch(padded([12, 7, 9]))
    seen = [
        VPretraining(model, feedback(), designer=DesignerConfig(**DESIGNER), tokens=given).learner.observe(batch).logits
        for given in (None, tokens)
    ]
    # The first candidate is the true token, which may be any.
    assert seen[0].candidates_NK[:, 1:].max() >= tokens > seen[1].candidates_NK[:, 1:].max()
    torch.testing.assert_close(seen[0].lse_N, seen[1].lse_N)
