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

from vpretrain.language.batch import TokenBatch
from vpretrain.language.config import DesignerConfig
from vpretrain.language.learner import LanguageState
from vpretrain.language.loss import at_least_fp32, gather_dot


class TopKDesigner(nn.Module):
    """phi: gives r_t over the candidates and the gate alpha_t (Eq 15) from what the learner has computed already.

    A small causal transformer reads, at every position, the learner's last state, the true next token, its
    log-probability and rank and the entropy of the learner's prediction. It has no vocabulary of its own: tokens and candidates
    enter through the learner's output embedding, and a candidate's score is the inner product of a query with its
    embedding. It starts with r = p restricted to the candidates and alpha = alpha_start everywhere. Always fp32.
    """

    embedding_rms: Tensor

    def __init__(self, config: DesignerConfig, embedding_VD: Float[Tensor, "V D"], max_length: int) -> None:
        super().__init__()
        width, hidden = embedding_VD.shape[1], config.hidden_size
        self.alpha_max = config.alpha_max
        self.state_in = nn.Linear(width, hidden)
        self.token_in = nn.Linear(width, hidden, bias=False)
        self.features_in = nn.Linear(3, hidden, bias=False)
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
        share = config.alpha_start / config.alpha_max if config.alpha_max > 0 else 0.5
        nn.init.constant_(self.gate.bias, math.log(share / (1 - share)))
        self.register_buffer("embedding_rms", at_least_fp32(embedding_VD.detach()).square().mean().sqrt())

    def forward(
        self,
        batch: TokenBatch,
        state: LanguageState,
    ) -> tuple[Float[Tensor, "N K"], Float[Tensor, " N"]]:
        """log r and alpha.

        Args:
            batch: the stream's tokens.
            state: the learner's detached state for them.
        """
        predicts_BT, log_p_NK = batch.predicts_BT, state.logits.log_p_NK
        next_BT = batch.ids_BT.roll(-1, dims=1)
        features_BTF = log_p_NK.new_zeros((*next_BT.shape, 3))
        features_BTF[predicts_BT] = _features(log_p_NK)
        inputs_BTH = (
            self.state_in(_normalise(state.hidden_BTD))
            + self.token_in(_normalise(F.embedding(next_BT, state.embedding_VD)))
            + self.features_in(features_BTF)
        )
        outputs_NH = self.backbone(inputs_embeds=inputs_BTH, position_ids=batch.positions_BT, use_cache=False)[0][
            predicts_BT
        ]
        # 1 / D and not 1 / sqrt(D): one step of Adam then moves scores and gate alike, at any width of the learner.
        query_ND = self.query(outputs_NH) / (self.embedding_rms * state.embedding_VD.shape[1])
        scores_NK = gather_dot(query_ND, state.embedding_VD, state.logits.candidates_NK)
        log_r_NK = torch.log_softmax(log_p_NK + scores_NK, dim=-1)
        alpha_N = self.alpha_max * torch.sigmoid(self.gate(outputs_NH)[:, 0])
        return log_r_NK, alpha_N


def _features(log_p_NK: Float[Tensor, "N K"]) -> Float[Tensor, "N 3"]:
    """log p of the true token, log of its rank (among the candidates), entropy over candidates and any rest as one token.

    All from the candidates alone: an exact entropy would cost another pass over the vocabulary.
    """
    rank_N = (log_p_NK[:, 1:] > log_p_NK[:, :1]).sum(-1)
    rest_N = (1 - log_p_NK.exp().sum(-1)).clamp_min(0)
    entropy_N = -(log_p_NK.exp() * log_p_NK).sum(-1) - torch.special.xlogy(rest_N, rest_N)
    return torch.stack([log_p_NK[:, 0] / 4, torch.log1p(rank_N) / 2, entropy_N / 2], dim=-1)


def _normalise(vectors: Tensor) -> Tensor:
    vectors = at_least_fp32(vectors)
    return F.layer_norm(vectors, vectors.shape[-1:])
