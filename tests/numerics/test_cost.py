"""What V-pretraining may cost, in operations and bytes: counted, so that no machine's mood decides."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.speed.floor import counted, flops
from benchmarks.speed.peak import PeakBytes
from vpretrain.language.config import DesignerConfig
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.task.construction import LearnedTargets, OneHot
from vpretrain.language.task.designer import TopKDesigner
from vpretrain.method.meta import MetaUpdate
from vpretrain.method.subset import alignment_subset
from vpretrain.method.value import jvp

VOCABULARY = 4096
ROWS, LENGTH, K = 8, 64, 16


def tokens(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    positions_BT = torch.arange(LENGTH).expand(rows, -1)
    ids_BT = torch.randint(VOCABULARY, (rows, LENGTH), generator=generator)
    return TokenBatch(ids_BT, positions_BT, (positions_BT > 0).float(), ("math",) * rows, ((),) * rows)


class Pairs:
    """Feedback, the same every time."""

    weights = {"math": 1.0}  # noqa: RUF012

    def next(self):
        return {"math": tokens(4, 1)}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.fixture
def parts():
    """A learner whose shares of head and blocks are those of a real one, a designer and a meta update."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=192, num_hidden_layers=12, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    learner = LanguageLearner(AutoModelForCausalLM.from_config(config), top_k=K)
    designer = TopKDesigner(
        DesignerConfig(hidden_size=16, layers=2, heads=2, top_k=K), learner.model.get_output_embeddings().weight, LENGTH
    )
    construction = LearnedTargets(designer)
    feedback = Pairs()
    meta = MetaUpdate(
        learner=learner, construction=construction, feedback=feedback, subset=alignment_subset(learner.module, "last-2"),
        engine=jvp, kind="cosine", part={"rows": 2, "length": LENGTH}, matched=True, lr=1e-3, clip_norm=1.0,
    )  # fmt: skip
    return SimpleNamespace(
        learner=learner, construction=construction, feedback=feedback, meta=meta, base=OneHot(), designer=designer
    )


def test_a_meta_update_is_near_its_floor_and_the_designer_is_one_pass(parts):
    found = flops(parts, tokens(ROWS, 0))
    assert 0.8 * found["meta_floor"] <= found["meta"] <= 1.5 * found["meta_floor"]
    assert 0.8 * found["designer_floor"] <= found["designer"] <= 1.3 * found["designer_floor"]


def test_the_base_recipe_costs_what_a_plain_training_step_does(parts):
    batch = tokens(ROWS, 0)
    labels_BT = batch.ids_BT.masked_fill(batch.weights_BT == 0, -100)

    def ours():
        state = parts.learner.forward(batch)
        parts.learner.loss(state, parts.base.targets(batch, state.detach())).backward()

    def plain():
        parts.learner.model(
            input_ids=batch.ids_BT, position_ids=batch.positions_BT, labels=labels_BT, use_cache=False
        ).loss.backward()

    head = 2 * ROWS * (LENGTH - 1) * VOCABULARY * 64  # one more pass over it would be seen
    assert counted(plain) - head < counted(ours) <= counted(plain)


def test_a_whole_step_of_v_holds_no_more_than_a_plain_one(parts):
    batch = tokens(ROWS, 0)
    parts.learner.prepare(batch, parts.meta.theta_at())
    with PeakBytes() as plain:
        logits_BTV = parts.learner.model(
            input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False
        ).logits
        F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), batch.ids_BT[:, 1:].flatten()).backward()
        del logits_BTV
    parts.learner.model.zero_grad()
    with PeakBytes() as ours:
        parts.meta([batch])
        state = parts.learner.forward(batch)
        with torch.no_grad():
            task = parts.construction.targets(batch, state.detach())
        parts.learner.loss(state, task).backward()
    assert plain.peak > 4 * ROWS * LENGTH * VOCABULARY
    assert 0 < ours.peak <= plain.peak
