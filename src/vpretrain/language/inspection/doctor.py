"""A language learner for `vpretrain doctor`, with random tokens and a random designer."""

from __future__ import annotations

import math

import torch
from torch import nn

from vpretrain.inspection.doctor import EngineCase, about
from vpretrain.language.config import DesignerConfig, LearnerConfig
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.model.load import load_model
from vpretrain.language.task.construction import LearnedTargets
from vpretrain.language.task.designer import TopKDesigner
from vpretrain.method.subset import alignment_subset
from vpretrain.method.value import Align, MetaProblem, gradient

PARTS = {"gate": "gate", "r": "query"}
_ROWS, _LENGTH = 2, 64
_DESIGNER = DesignerConfig(hidden_size=64, layers=2, heads=2, top_k=32)


def engine_case(name: str) -> EngineCase:
    """Load the learner with a stream batch and a feedback gradient over its last two blocks. Raises UserError."""
    model = load_model(LearnerConfig(name=name))
    config = model.config.get_text_config()
    learner = LanguageLearner(model, top_k=min(_DESIGNER.top_k, config.vocab_size))
    subset = "last-2" if config.num_hidden_layers >= 2 else "last-1"
    designer = random_designer(learner, _DESIGNER)
    names = alignment_subset(learner.module, subset)
    theta_S = {n: p.detach() for n, p in learner.named_parameters() if n in names}
    stream, feedback = (_random_tokens(config.vocab_size, seed).to(learner.device) for seed in (0, 1))
    with learner.meta_mode():
        g_down = gradient(lambda parameters: learner.evaluate(feedback, parameters), theta_S)
    construction = LearnedTargets(designer)
    told = about(learner, subset, "cosine", f"{_ROWS * _LENGTH} tokens")
    problem = MetaProblem(learner, construction, stream, theta_S, g_down, Align("cosine"))
    return EngineCase(problem, designer, PARTS, told)


def random_designer(learner: LanguageLearner, config: DesignerConfig, *, seed: int = 1) -> TopKDesigner:
    """A designer moved away from its initial weights, whose gate varies around half of alpha_max."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
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
