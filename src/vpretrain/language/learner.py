"""A causal language model as the learner. Shapes: B rows, T tokens, N targets, D width, V vocabulary."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpretrain.errors import UserError
from vpretrain.language.batch import TokenBatch
from vpretrain.language.loss import SoftTarget, soft_cross_entropy
from vpretrain.task import Parameters, Task

_ANY_ATTENTION = [
    SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH,
]  # fmt: skip


@dataclass(frozen=True)
class LanguageState:
    """What the learner computed for a batch.

    Attributes:
        hidden_BTD: states after the final norm, at every position.
        logits_NV: z_t at the positions whose next token is a target, with logit scale and soft-cap applied.
        embedding_VD: the output embedding.
    """

    hidden_BTD: Float[Tensor, "B T D"]
    logits_NV: Float[Tensor, "N V"]
    embedding_VD: Float[Tensor, "V D"]

    def detach(self) -> LanguageState:
        """Values alone: neither graph nor tangent."""
        return LanguageState(*(_primal(t) for t in (self.hidden_BTD, self.logits_NV, self.embedding_VD)))


class LanguageLearner:
    """theta. Holds the model and nothing that could change it: the optimizer lives elsewhere (the firewall).

    Args:
        model: an AutoModelForCausalLM, or a PEFT model around one.
        bf16: run the learner's own forward and backward under bf16 autocast. Meta steps are always fp32.
    """

    def __init__(self, model: Any, *, bf16: bool = False) -> None:
        self.module = _Core(model)
        self.bf16 = bf16
        self._check_head()

    @property
    def model(self) -> Any:
        """The transformers (or PEFT) model."""
        return self.module.model

    @property
    def device(self) -> torch.device:
        """Where batches must lie."""
        return next(self.module.parameters()).device

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The trainable parameters."""
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

    def forward(self, inputs: TokenBatch, parameters: Parameters | None = None) -> LanguageState:
        """The state for a batch; `parameters` (of S) replace the model's, and then no other parameter gets a gradient."""
        arguments = (inputs.ids_BT, inputs.positions_BT, inputs.predicts_BT)
        if parameters is None:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                return LanguageState(*self.module(*arguments))
        frozen = {name: p.detach() for name, p in self.module.named_parameters()}
        return LanguageState(*functional_call(self.module, frozen | parameters, arguments))

    def prepare(self, inputs: TokenBatch, parameters: Parameters) -> TokenBatch:
        """Nothing yet: every evaluation runs the whole model."""
        return inputs

    def after_step(self, tasks: Sequence[Task], progress: float) -> None:
        """Nothing follows a language model by rule."""

    def loss(self, state: LanguageState, task: Task) -> Tensor:
        """L_pre = CE(q_t, p_t), weighted mean over the targets (Eq 15; Eq 37-38 with weights per example)."""
        return _loss(state.logits_NV, task)

    def slope(self, inputs: TokenBatch, parameters: Parameters, direction: Parameters) -> Callable[[Task], Tensor]:
        """One tangent pass gives D_u z; since L_pre is linear in q, every further task costs no more than its loss."""

        def logits(parameters: Parameters) -> Tensor:
            return self.forward(inputs, parameters).logits_NV

        logits_NV, tangent_NV = (t.detach() for t in torch.func.jvp(logits, (parameters,), (direction,)))
        return lambda task: torch.func.jvp(lambda z_NV: _loss(z_NV, task), (logits_NV,), (tangent_NV,))[1]

    def evaluate(self, batch: TokenBatch, parameters: Parameters) -> Tensor:
        """L_down: mean answer-token NLL; the problem's tokens are no targets (Eq 38)."""
        with sdpa_kernel(_ANY_ATTENTION):  # it is differentiated once and backwards, in a meta step as well
            return self.loss(self.forward(batch, parameters), Task(batch, one_hot(batch)))

    @contextlib.contextmanager
    def meta_mode(self) -> Iterator[None]:
        """A meta step leaves no trace: no dropout, no random numbers. Attention and experts are in their plain form, because
        the fused kernels have neither forward-mode nor second derivatives (pytorch #128971, #116350)."""
        training, experts = self.module.training, self.module.causal.get_experts_implementation()
        self.module.eval()
        self.module.causal.set_experts_implementation("eager")
        try:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            self.module.causal.set_experts_implementation(experts)
            self.module.train(training)

    def keeps_documents_apart(self) -> bool:
        """Whether a document's states are the same behind another one in its row, where positions restart.

        State-space and other recurrent models take no notice of positions, and carry on what they read before.
        """
        ids_T = torch.arange(1, 9, device=self.device) % self.model.config.get_text_config().vocab_size
        positions_T = torch.arange(8, device=self.device)
        training = self.module.training
        self.module.eval()
        with torch.no_grad():
            alone, behind = (
                self.module(ids[None], positions[None], torch.ones_like(ids[None], dtype=torch.bool))[0][0, -8:]
                for ids, positions in (
                    (ids_T, positions_T),
                    (torch.cat([ids_T.flip(0), ids_T]), positions_T.repeat(2)),
                )
            )
        self.module.train(training)
        return torch.allclose(alone, behind, rtol=1e-3, atol=1e-4)

    def _check_head(self) -> None:
        """Refuse a model whose logits are more than head, scale and soft-cap, before any work is done on wrong numbers."""
        ids_BT = torch.arange(1, 9, device=self.device)[None] % self.model.config.get_text_config().vocab_size
        everywhere = torch.ones_like(ids_BT, dtype=torch.bool)
        positions_BT = torch.arange(8, device=self.device)[None]
        training = self.module.training
        self.module.eval()
        with torch.no_grad():
            ours = self.module(ids_BT, positions_BT, everywhere)[1]
            theirs = self.model(input_ids=ids_BT, use_cache=False).logits[0]
        self.module.train(training)
        if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4):
            raise UserError(
                f"{type(self.module.causal).__name__} changes its logits in a way that vpretrain does not know "
                f"(difference {float((ours - theirs).abs().max()):.2g}); use another architecture or report it"
            )


def _loss(logits_NV: Tensor, task: Task) -> Tensor:
    weights_N = task.inputs.weights_N
    return (weights_N * soft_cross_entropy(logits_NV, task.target)).sum() / weights_N.sum()


def one_hot(batch: TokenBatch) -> SoftTarget:
    """The usual target: all mass on the true token, K = 1."""
    candidates_NK = batch.targets_N[:, None]
    return SoftTarget(candidates_NK, torch.ones_like(candidates_NK, dtype=torch.float32))


class _Core(nn.Module):
    """The model as one module that returns states and logits of the target positions only."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    @property
    def causal(self) -> Any:
        """The causal language model inside a possible PEFT wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(
        self, ids_BT: Int[Tensor, "B T"], positions_BT: Int[Tensor, "B T"], predicts_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Without a mask and with positions that restart, transformers keeps attention within each document.
        outputs = self.causal.base_model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False)
        hidden_BTD = outputs.last_hidden_state
        head = self.causal.get_output_embeddings()
        logits_NV = _scale(head(hidden_BTD[predicts_BT]), self.causal.config.get_text_config())
        return hidden_BTD, logits_NV, head.weight


def _scale(logits: Tensor, config: Any) -> Tensor:
    """What some families do to logits after the head: Cohere multiplies, Granite divides, Gemma caps softly."""
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits


def _primal(tensor: Tensor) -> Tensor:
    return forward_ad.unpack_dual(tensor).primal.detach()
