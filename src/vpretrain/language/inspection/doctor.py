"""A language learner for `vpretrain doctor`, with random tokens and a random designer."""

from __future__ import annotations

import math

import torch
from torch import nn

from vpretrain.inspection.doctor import EngineCase, random_case
from vpretrain.language.config import DesignerConfig, LearnerConfig
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.model.load import load_model
from vpretrain.language.task.construction import LearnedTargets
from vpretrain.language.task.designer import TopKDesigner

PARTS = {"gate": "gate", "r": "query"}
_ROWS, _LENGTH = 2, 64
_DESIGNER = DesignerConfig(hidden_size=64, layers=2, heads=2, top_k=32)


def engine_case(name: str) -> EngineCase:
    """Load the learner with a stream batch and a feedback gradient over its last two blocks. Raises UserError."""
    model = load_model(LearnerConfig(name=name))
    config = model.config.get_text_config()
    learner = LanguageLearner(model, top_k=min(_DESIGNER.top_k, config.vocab_size))
    subset = "last-2" if config.num_hidden_layers >= 2 else "last-1"
    construction = LearnedTargets(random_designer(learner, _DESIGNER))
    stream, feedback = (_random_tokens(config.vocab_size, seed).to(learner.device) for seed in (0, 1))
    return random_case(learner, construction, stream, feedback, subset, PARTS, f"{_ROWS * _LENGTH} tokens")


def random_designer(learner: LanguageLearner, config: DesignerConfig) -> TopKDesigner:
    """A designer moved away from its initial weights, whose gate varies around half of alpha_max."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        embedding_VD = learner.model.get_output_embeddings().weight
        designer = TopKDesigner(config, embedding_VD, max_length=128)
        nn.init.normal_(designer.query.weight, std=0.3 * math.sqrt(embedding_VD.shape[1]))
        nn.init.normal_(designer.gate.weight, std=0.05)
        nn.init.zeros_(designer.gate.bias)
    return designer.to(learner.device)


def _random_tokens(vocabulary: int, seed: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    positions_BT = torch.arange(_LENGTH).expand(_ROWS, -1)
    return TokenBatch(
        torch.randint(vocabulary, (_ROWS, _LENGTH), generator=generator),
        positions_BT,
        (positions_BT > 0).float(),
        ("general",) * _ROWS,
        ((),) * _ROWS,
    )
