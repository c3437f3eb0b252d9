"""The task designer (TopKAugmentor): soft targets over the learner's own candidates.

Shapes: B rows, T tokens, N targets, K candidates, D the learner's width, H the designer's, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel

from vpretrain.language.config import DesignerConfig
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageState
from vpretrain.language.model.loss import at_least_fp32, gather_dot


class TopKDesigner(nn.Module):
    """phi: computes scores of the candidates and the gate alpha_t (Eq 15) from the learner's state.

    A small causal transformer reads, at every position, the learner's last state and the true next token. It has no vocabulary
    of its own: tokens and candidates enter through the learner's output embedding, and a candidate's score is the inner product
    of a query with its embedding. It starts with scores of 0 and alpha = alpha_start everywhere. Always fp32.
    """

    embedding_rms: Tensor

    def __init__(self, config: DesignerConfig, embedding_VD: Float[Tensor, "V D"], max_length: int) -> None:
        super().__init__()
        width, hidden = embedding_VD.shape[1], config.hidden_size
        self.alpha_max = config.alpha_max
        self.state_in = nn.Linear(width, hidden)
        self.token_in = nn.Linear(width, hidden, bias=False)
        self.backbone = LlamaModel(
            LlamaConfig(
                vocab_size=1,
                bos_token_id=None,
                eos_token_id=None,
                hidden_size=hidden,
                intermediate_size=4 * hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                max_position_embeddings=max_length,
                attn_implementation="sdpa",
            )
        )
        del self.backbone.embed_tokens  # inputs arrive as vectors
        self.query = nn.Linear(hidden, width)
        self.gate = nn.Linear(hidden, 1)
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.query.bias)
        nn.init.zeros_(self.gate.weight)
        fraction = config.alpha_start / config.alpha_max if config.alpha_max > 0 else 0.5
        nn.init.constant_(self.gate.bias, math.log(fraction / (1 - fraction)))
        self.register_buffer("embedding_rms", at_least_fp32(embedding_VD.detach()).square().mean().sqrt())

    def forward(
        self,
        batch: TokenBatch,
        state: LanguageState,
    ) -> tuple[Float[Tensor, "N K"], Float[Tensor, " N"]]:
        """Return scores and alpha.

        Args:
            batch: the stream's tokens.
            state: the learner's detached state for them.
        """
        next_BT = batch.ids_BT.roll(-1, dims=1)
        inputs_BTH = self.state_in(_normalise(state.hidden_BTD)) + self.token_in(
            _normalise(F.embedding(next_BT, state.embedding_VD))
        )
        outputs_NH = self.backbone(inputs_embeds=inputs_BTH, position_ids=batch.positions_BT, use_cache=False)[0][
            batch.predicts_BT
        ]
        # 1 / D and not 1 / sqrt(D): one step of Adam then moves scores and gate alike, at any width of the learner.
        query_ND = self.query(outputs_NH) / (self.embedding_rms * state.embedding_VD.shape[1])
        scores_NK = gather_dot(query_ND, state.embedding_VD, state.logits.candidates_NK)
        alpha_N = self.alpha_max * torch.sigmoid(self.gate(outputs_NH)[:, 0])
        return scores_NK, alpha_N


def _normalise(vectors: Tensor) -> Tensor:
    vectors = at_least_fp32(vectors)
    return F.layer_norm(vectors, vectors.shape[-1:])
