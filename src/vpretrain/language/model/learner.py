"""A causal language model as the learner. Shapes: B rows, T tokens, N targets, K candidates, D width, V vocabulary."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from vpretrain.errors import UserError
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.loss import (
    Head,
    Logits,
    Tangent,
    at_least_fp32,
    dense_logits,
    fused_logits,
    primal,
    scored,
)
from vpretrain.language.model.shared_pass import PreparedBatch, SharedPass
from vpretrain.method.base_learner import BaseLearner
from vpretrain.method.last_mlp import MLPEntry, find_last_mlp
from vpretrain.method.parameters import theta_of
from vpretrain.method.products import whole
from vpretrain.method.protocols import Context, Parameters, Task
from vpretrain.method.subset import blocks_of
from vpretrain.types import Model


@dataclass(frozen=True)
class LanguageState:
    """The learner's state for a batch.

    Attributes:
        hidden_BTD: states after the final norm, at every position.
        logits: the kept part of z_t at the positions whose next token is a target.
        embedding_VD: the output embedding.
        entry: where a tangent through the last MLP starts; None unless turned on by `LanguageLearner.keep_entries`.
    """

    hidden_BTD: Float[Tensor, "B T D"]
    logits: Logits
    embedding_VD: Float[Tensor, "V D"]
    entry: MLPEntry | None = None

    def detach(self) -> LanguageState:
        """The values only, without graph or tangent."""
        return LanguageState(primal(self.hidden_BTD), self.logits.detach(), primal(self.embedding_VD), self.entry)


class LanguageLearner(BaseLearner):
    """theta: a causal language model.

    Args:
        model: an AutoModelForCausalLM, or a PEFT model around one.
        top_k: K, candidates per token.
        tokens: ids from here on are no tokens, and never candidates: rows that pad the embedding to a round size.
        bf16: the learner's own passes, those over feedback, and the tangent through the last MLP are under bf16 autocast.
            Values and tangents over another S are fp32; they start from the states below S of the learner's own pass.
        compiled: compile its own passes. Meta steps are not compiled: in some of their passes blocks only replay a cache.
        parallel: how several processes hold the learner, see `vpretrain.method.parameters`.
    """

    module: _Core

    def __init__(
        self,
        model: Model,
        *,
        top_k: int = 1,
        tokens: int | None = None,
        bf16: bool = False,
        compiled: bool = False,
        parallel: Literal["ddp", "fsdp"] | None = "ddp",
    ) -> None:
        self.module = _Core(model)
        self._compiled = torch.compile(self.module.causal.base_model) if compiled else None
        self.top_k, self._tokens = top_k, tokens
        self._unfused = False
        self._asked: Callable[[], bool] = lambda: True
        self.shared_pass = SharedPass(self)
        self._check_head()
        with self.meta_mode():
            self.last_mlp = find_last_mlp(self.module, self.module.following, self.module.sample_states)
        if self.last_mlp is not None:
            self.last_mlp.compiled = compiled
        super().__init__(self.module, theta_of(self.module, parallel), bf16=bf16)  # the trials above need it unsharded

    @property
    def model(self) -> Model:
        """The transformers (or PEFT) model."""
        return self.module.model

    def forward(self, inputs: TokenBatch, parameters: Parameters | None = None) -> LanguageState:
        """Return the state for a batch; if `parameters` (of S) replace the model's, no other parameter gets a gradient."""
        if parameters is not None:
            return self._forward(inputs, parameters, self.top_k)
        return self.shared_pass.take(inputs) or self.own_pass(inputs)

    def own_pass(self, inputs: TokenBatch) -> LanguageState:
        """Return the state for a batch as in the learner's own step, with K candidates per token while the task needs them."""
        return self._forward(inputs, None, self.top_k if self._asked() else 1)

    def run_body(self, inputs: PreparedBatch) -> None:
        """Run the same pass up to the head, for the batch's cache to record."""
        with self.autocast():
            self._run(inputs, None, dense=False)

    def nll(self, inputs: TokenBatch) -> Float[Tensor, " N"]:
        """NLL of every target, in nats, without gradient."""
        with torch.no_grad():
            logits = self._forward(inputs, None, 1).logits
        return logits.lse_N - logits.z_NK[:, 0]

    def scores(self, inputs: TokenBatch, scales: Sequence[float]) -> tuple[Float[Tensor, "N G"], Bool[Tensor, " N"]]:
        """Return the NLL of every target, in nats, with all logits times each scale, and whether it is the likeliest token."""
        with torch.no_grad(), self.autocast():
            hidden_BTD, logits_NV = self._run(inputs, None, dense=not self.module.linear_head)
            head, hidden_ND = self.module.head(None), hidden_BTD[inputs.predicts_BT]

            def logits_of(rows: slice) -> Tensor:
                if logits_NV is not None:
                    return head.bend(at_least_fp32(logits_NV[rows]))
                return head.bend(at_least_fp32(F.linear(hidden_ND[rows], head.weight_VD, head.bias_V)))

            return scored(logits_of, inputs.targets_N, len(head.weight_VD), scales)

    def keep_candidates_when(self, asked: Callable[[], bool]) -> None:
        """From now on keep K candidates per token in its own passes while `asked()` is true, else only the true token."""
        self._asked = asked

    def observe(self, inputs: TokenBatch) -> LanguageState:
        """Return the state for a batch without gradient, dropout or side effects."""
        with self.meta_mode(), torch.no_grad():
            state = self._forward(inputs, None, self.top_k).detach()
        self.theta.reshard()
        return state

    def prepare(self, inputs: TokenBatch, parameters: Parameters) -> TokenBatch:
        """Return the same batch with a cache for the output of the blocks below S, see `SharedPass`."""
        return self.shared_pass.prepared(inputs, parameters)

    def generate(self, **kwargs: object) -> Int[Tensor, "B T"]:
        """Call transformers' `generate` with these arguments."""
        return self.module.generate(**kwargs)

    def loss(self, state: LanguageState, task: Task) -> Tensor:
        """L_pre = CE(q_t, p_t), weighted mean over the targets (Eq 15; Eq 37-38 with weights per example)."""
        return state.logits.cross_entropy(task.target)

    def directional_derivative(
        self, inputs: TokenBatch, parameters: Parameters, direction: Parameters, *, whole: bool
    ) -> Callable[[Task], Tensor]:
        """D_u L_pre of a task: one tangent pass through the blocks of S gives D_u h, each task D_u z on its candidates only.

        D_u of the mean logsumexp is the same for all tasks: `whole` adds it, at the cost of one more pass over the head.
        """
        if not self.module.linear_head:
            return self._dense_derivative(inputs, parameters, direction)

        def hidden(parameters: Parameters) -> Tensor:
            return self._run(inputs, parameters, dense=False)[0][inputs.predicts_BT]

        with self.without_fused_kernels():
            hidden_ND, tangent_ND = (t.detach() for t in torch.func.jvp(hidden, (parameters,), (direction,)))
        head = self.module.head(self.theta.values_with(parameters))
        tangent = Tangent(tangent_ND, *(direction.get(name or "") for name in self.module.head_names))
        share_N = inputs.share_N
        constant = head.tangent_of_mean_lse(hidden_ND, tangent, inputs.targets_N, share_N) if whole else 0.0

        def derivative(task: Task) -> Tensor:
            tangent_NK = head.candidate_tangents_at(hidden_ND, tangent, task.target.candidates_NK)
            return constant - (share_N[:, None] * task.target.q_NK * tangent_NK).sum()

        return derivative

    def candidate_tangents(
        self, inputs: TokenBatch, state: LanguageState, direction: Parameters
    ) -> Float[Tensor, "N K"]:
        """D_u z_t(v) on the candidates of the learner's own pass.

        Where S is the last MLP the tangent starts from that pass's `entry`, else the whole model runs once more.
        """
        candidates_NK, z_NK = state.logits.candidates_NK, state.logits.z_NK
        with self.autocast():
            from_entry = self.tangent_from_entry(state.entry, direction)
        if from_entry is not None:
            tangent_ND = from_entry[1]
            if not self.module.linear_head:
                return self._dense_tangents(tangent_ND, candidates_NK, z_NK)
            tangent, head = Tangent(at_least_fp32(tangent_ND), None, None), self.module.head(None)
            # After `observe` the head's shards are no longer gathered.
            head = replace(head, weight_VD=whole(head.weight_VD))
            return head.candidate_tangents(None, tangent, candidates_NK, z_NK)
        dense = not self.module.linear_head

        def run(parameters: Parameters) -> Tensor:
            hidden_BTD, logits_NV = self._run(inputs, parameters, dense=dense)
            return hidden_BTD[inputs.predicts_BT] if logits_NV is None else self.module.head(None).bend(logits_NV)

        made, tangents = (t.detach() for t in self.tangent_pass(run, direction))
        if dense:
            return tangents.gather(-1, candidates_NK)
        tangent = Tangent(tangents, *(direction.get(name or "") for name in self.module.head_names))
        return self.module.head(None).candidate_tangents(made, tangent, candidates_NK, z_NK)

    def evaluate(self, batch: TokenBatch, parameters: Parameters) -> Tensor:
        """L_down: mean answer-token NLL; the problem's tokens are not targets (Eq 38)."""
        logits = self._forward(batch, parameters, 1).logits
        return logits.cross_entropy(logits.one_hot())

    def looking_ahead(self, batch: TokenBatch) -> Context:
        """Share passes between the meta update in this context and the step that begins with this batch, see `SharedPass`."""
        return self.shared_pass.looking_ahead(batch)

    @contextlib.contextmanager
    def without_fused_kernels(self) -> Iterator[None]:
        """Use the plain forms of attention, experts and loss: the fused ones have neither forward-mode nor second derivatives
        (pytorch #128971, #116350)."""
        unfused, experts = self._unfused, self.module.causal.get_experts_implementation()
        self._unfused = True
        self.module.causal.set_experts_implementation("eager")
        try:
            with super().without_fused_kernels():
                yield
        finally:
            self.module.causal.set_experts_implementation(experts)
            self._unfused = unfused

    def _forward(self, inputs: TokenBatch, parameters: Parameters | None, k: int) -> LanguageState:
        dense = self._unfused or not self.module.linear_head
        with self.autocast() if parameters is None else contextlib.nullcontext():
            # No tangent is asked for where fewer candidates than K are kept.
            with self.recording(inputs.predicts_BT) if k == self.top_k else contextlib.nullcontext():
                hidden_BTD, logits_NV = self._run(inputs, parameters, dense=dense)
            entry = self.take_entry()
            head = self.module.head(None if parameters is None else self.theta.values_with(parameters))
            arguments = (inputs.targets_N, inputs.share_N, k, self._tokens)
            if logits_NV is None:
                logits = fused_logits(hidden_BTD[inputs.predicts_BT], head, *arguments)
            else:
                logits = dense_logits(head.bend(at_least_fp32(logits_NV)), *arguments)
        embedding_VD = head.weight_VD if parameters is None else self.theta.detached_copy(head.weight_VD)
        return LanguageState(hidden_BTD, logits, embedding_VD, entry)

    def _run(self, inputs: TokenBatch, parameters: Parameters | None, *, dense: bool) -> tuple[Tensor, Tensor | None]:
        """The states after the final norm and, if `dense`, all logits of the targets before `Head.bend`."""
        arguments = (inputs.ids_BT, inputs.positions_BT, inputs.predicts_BT if dense else None)
        cache = inputs.cache if isinstance(inputs, PreparedBatch) else None
        if cache is None and parameters is None:
            return self.theta.forward(*arguments, self._compiled if self.module.training else None)
        with contextlib.nullcontext() if cache is None else cache.used():
            return (
                self.theta.forward(*arguments)
                if parameters is None
                else self.theta.forward_with(parameters, *arguments)
            )

    def _dense_derivative(
        self, inputs: TokenBatch, parameters: Parameters, direction: Parameters
    ) -> Callable[[Task], Tensor]:
        """`directional_derivative` where the head is more than a matrix (it has an adapter)."""

        def logits(parameters: Parameters) -> Tensor:
            logits_NV = self._run(inputs, parameters, dense=True)[1]
            assert logits_NV is not None
            return self.module.head(None).bend(logits_NV)

        with self.without_fused_kernels():
            logits_NV, tangent_NV = (t.detach() for t in torch.func.jvp(logits, (parameters,), (direction,)))
        # The tangent of logsumexp: the mean of D_u z under p.
        mean_N = ((logits_NV - logits_NV.logsumexp(-1, keepdim=True)).exp() * tangent_NV).sum(-1)

        def derivative(task: Task) -> Tensor:
            tangent_NK = tangent_NV.gather(-1, task.target.candidates_NK)
            return (inputs.share_N * (mean_N - (task.target.q_NK * tangent_NK).sum(-1))).sum()

        return derivative

    def _dense_tangents(self, tangent_ND: Tensor, candidates_NK: Tensor, z_NK: Tensor) -> Tensor:
        """The candidates' tangents from those of the states, where the head is more than a matrix, but still affine."""
        layer = self.module.causal.get_output_embeddings()
        with self.meta_mode(), torch.no_grad():
            # Minus its value at 0, an affine layer is its own linear part, which maps tangents.
            raw_NV = layer(tangent_ND) - layer(torch.zeros_like(tangent_ND[:1]))
        return at_least_fp32(raw_NV.gather(-1, candidates_NK)) * self.module.head(None).softcap_grad(z_NK)

    def keeps_documents_apart(self) -> bool:
        """Whether a document has the same states after another one in its row, where positions restart, as alone.

        State-space and other recurrent models ignore positions and carry their state over from the earlier document.
        """
        ids_BT, positions_BT = self.module.sample()
        with self.meta_mode(), torch.no_grad():
            alone, behind = (
                self.module(ids, positions, None)[0][0, -8:]
                for ids, positions in (
                    (ids_BT, positions_BT),
                    (torch.cat([ids_BT.flip(1), ids_BT], dim=1), positions_BT.repeat(1, 2)),
                )
            )
        # Rounding alone is below 1e-4; in a state-space model more than half of the state is from the earlier document.
        return bool(((alone - behind).norm(dim=-1) < 0.01 * alone.norm(dim=-1)).all())

    def _check_head(self) -> None:
        """Refuse a model whose logits are more than head, factor and cap, before anything is computed from wrong logits."""
        ids_BT, positions_BT = self.module.sample()
        with self.meta_mode(), torch.no_grad():
            logits_NV = self.module(ids_BT, positions_BT, torch.ones_like(ids_BT, dtype=torch.bool))[1]
            ours = self.module.head(None).bend(logits_NV)
            theirs = self.model(input_ids=ids_BT, use_cache=False).logits[0]
        if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4):
            raise UserError(
                f"{type(self.module.causal).__name__} changes its logits in a way that vpretrain does not know "
                f"(difference {float((ours - theirs).abs().max()):.2g}); use another architecture or report it"
            )


class _Core(nn.Module):
    """The model as one module that returns its states and, on request, the head's output at some positions."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        layer = self.causal.get_output_embeddings()
        self.linear_head = type(layer) is nn.Linear
        names = {id(p): name for name, p in self.named_parameters()}  # a tied weight has the embedding's name
        self.head_names = tuple(names.get(id(p)) for p in (layer.weight, getattr(layer, "bias", None)))

    def sample(self) -> tuple[Int[Tensor, "1 8"], Int[Tensor, "1 8"]]:
        """A row of sample tokens, and their positions."""
        device = next(self.parameters()).device
        vocabulary = self.model.config.get_text_config().vocab_size
        return torch.arange(1, 9, device=device)[None] % vocabulary, torch.arange(8, device=device)[None]

    def sample_states(self, theta: Parameters) -> Float[Tensor, "1 8 D"]:
        """The last hidden states of that row, by all parameters."""
        states: Tensor = functional_call(self, theta, (*self.sample(), None))[0]
        return states

    def following(self) -> list[nn.Module]:
        """The modules that the model applies to the last block's output, in order."""
        # Found by a trial pass: those beside the blocks that run after the last one.
        prefix, blocks = blocks_of(self)
        ran: list[nn.Module] = []
        reached = False

        def end(*_: object) -> None:
            nonlocal reached
            reached = True

        def note(part: nn.Module, *_: object) -> None:
            if reached:
                ran.append(part)

        handles = [blocks[-1].register_forward_hook(end)]
        handles += [
            part.register_forward_hook(note) for part in self.get_submodule(prefix.rpartition(".")[0]).children()
        ]
        try:
            with torch.no_grad():
                # Another row than the sample's, so that a copy of the block made after this pass holds nothing of that.
                self(*(part_18[:, :4] for part_18 in self.sample()), None)
        finally:
            for handle in handles:
                handle.remove()
        return ran

    @property
    def causal(self) -> Model:
        """The causal language model inside a possible PEFT wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def head(self, theta: Parameters | None) -> Head:
        """The output layer, with its parameters taken from theta if given."""
        layer, config = self.causal.get_output_embeddings(), self.causal.config.get_text_config()
        if theta is None:
            weight_VD, bias_V = layer.weight, getattr(layer, "bias", None)
        else:
            weight_VD, bias_V = (None if name is None else theta[name] for name in self.head_names)
        factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        return Head(weight_VD, bias_V, factor, getattr(config, "final_logit_softcapping", None))

    def generate(self, **kwargs: object) -> Tensor:
        return self.model.generate(**kwargs)

    def forward(
        self,
        ids_BT: Int[Tensor, "B T"],
        positions_BT: Int[Tensor, "B T"],
        predicts_BT: Bool[Tensor, "B T"] | None,
        compiled: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        # Without a mask and with positions that restart, transformers keeps attention within each document.
        body = self.causal.base_model if compiled is None else compiled
        outputs = body(input_ids=ids_BT, position_ids=positions_BT, use_cache=False)
        hidden_BTD = outputs.last_hidden_state
        if predicts_BT is None:
            return hidden_BTD, None
        return hidden_BTD, self.causal.get_output_embeddings()(hidden_BTD[predicts_BT])
