"""V-pretraining in your own training loop: from a model and a few rows of feedback to the loss of a step.

Shapes: B rows, T tokens per row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from vpretrain import distributed
from vpretrain.console import note
from vpretrain.errors import UserError
from vpretrain.language.arms import ARMS
from vpretrain.language.assemble import check_candidates, constructed, context_of
from vpretrain.language.config import ControlConfig, DesignerConfig, ValueConfig
from vpretrain.language.data.encode import encode
from vpretrain.language.data.example import Example
from vpretrain.language.model.batch import TokenBatch
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.task.construction import OneHot
from vpretrain.method.step import Schedule
from vpretrain.order import Shuffled
from vpretrain.run.attached import Attached
from vpretrain.types import Json, Model

NO_TARGET = -100  # transformers' label of a token that is not predicted
_PADDED_TO = 64  # embeddings are padded to a multiple of it, to suit a GPU
_DOMAIN = "general"  # rows of other loops have no domain
_READ = {"input_ids", "labels", "attention_mask", "position_ids"}
# What collators without padding add for kernels that take packed rows: it follows from the positions.
_OF_POSITIONS = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}


class VPretraining(Attached):
    """V-pretraining as a part of a training loop: `losses` takes the place of the model's own loss.

    The optimizer stays the loop's own: only AdamW's second moments are read, and nothing is kept or changed.

    Args:
        model: a causal language model of transformers (or a PEFT model around one), in float32, on its device.
        feedback: rows with `input_ids` and `labels` (-100: not predicted), as `feedback_rows` makes them. They steer, and are
            never trained on: keep them out of the batches.
        arm: v, or v-exact, v-learned, v-paper.
        designer, value: the sections of a recipe. `value.domains` has no effect: there is one domain.
        feedback_batch_size: rows of feedback in one meta update.
        bf16: the learner's own passes, and the feedback's, are under bf16 autocast.
        seed: of the initial designer and of the feedback's order.
        tokens: ids from here on only pad the embedding and are never candidates (`len(tokenizer)`); None: all ids are tokens,
            and a remark says so where the embedding looks padded.
        replicated: several processes hold the model, each with its own rows, and the wrapper that averages their gradients
            gets a forward pass for every loss, as `VPretrainTrainer` arranges for DDP. The feedback is divided among them.

    Attributes:
        record: figures of the last step: `alpha`, its mean gate, and those of `MetaUpdate` if it made a meta update.

    Raises:
        UserError: something cannot work; the message gives the cause and the remedy.

    Examples:
        >>> v = VPretraining(model, feedback_rows(pairs, tokenizer))
        >>> for step, batches in enumerate(stream):  # of micro-batches
        ...     for loss in v.losses(step, batches, optimizer=optimizer):
        ...         loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
    """

    def __init__(
        self,
        model: Model,
        feedback: Iterable[Mapping[str, object]],
        *,
        arm: Literal["v", "v-exact", "v-learned", "v-paper"] = "v",
        designer: DesignerConfig | None = None,
        value: ValueConfig | None = None,
        feedback_batch_size: int = 4,
        bf16: bool = False,
        seed: int = 0,
        tokens: int | None = None,
        replicated: bool = False,
    ) -> None:
        self.designer_config, self.value_config = designer or DesignerConfig(), value or ValueConfig()
        self.value_config = self.value_config.model_copy(update=dict(ARMS[arm].value))
        if distributed.size() > 1 and not replicated:
            raise UserError(
                "a loop of one's own trains in one process: use VPretrainTrainer under torchrun, or `vpretrain run`"
            )
        self._check_settings(model, tokens)
        if tokens is None:
            _remark_on_padding(model.config.get_text_config().vocab_size)
        top_k = self.designer_config.top_k
        self.learner = LanguageLearner(model, top_k=top_k, tokens=tokens, bf16=bf16, parallel=None)
        if not self.learner.keeps_documents_apart():
            raise UserError(
                f"{type(model).__name__} reads on over padding and into the next document of a row; "
                "train it by `vpretrain run` with stream.packing=false"
            )
        context = context_of(model.config)
        rows = _Rows(feedback, feedback_batch_size, f"{seed}/{_DOMAIN}", self.learner.device, context)
        construction, meta, self.designer = constructed(
            ARMS[arm],
            self.learner,
            rows,
            self.designer_config,
            self.value_config,
            ControlConfig(),
            length=self.value_config.length,  # the designer's positions are rotary: longer rows work as well
            seed=seed,
        )
        assert meta is not None
        super().__init__(
            self.learner,
            rows,
            construction,
            meta,
            base=OneHot(),
            schedule=Schedule(self.value_config.every_steps, self.designer_config.burn_in_steps),
            aware=self.value_config.metric == "adamw",
            modules={} if self.designer is None else {"designer": self.designer},
        )

    def losses(
        self,
        step: int,
        batches: Sequence[Mapping[str, Tensor]],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        total: float | None = None,
        progress: float = 0.0,
    ) -> Iterator[Tensor]:
        """Yield the losses of a step's micro-batches, whose sum is the step's loss: lines 2 to 4 of Algorithm 1.

        Go backward through each before taking the next. If a meta update is due, it comes before the first.

        Args:
            step: number of the learner step, from 0.
            batches: the micro-batches of one optimizer step, as data collators of transformers give them; see `token_batch`.
            optimizer: the loop's own. With value.metric=adamw (the default) value and strength are measured in its metric,
                if it is an Adam; without it, or with another, in the identity metric.
            total: number of targets that the losses are normalised by; None: that of these micro-batches.
            progress: the fraction of training that is done. In the second half the strength is no longer judged, which saves
                time.
        """
        learner = self.learner
        learner.module.training = learner.model.training  # the loop may have switched only the model inside the module
        # The hook that activation checkpointing puts on the embeddings has no forward-mode derivative, and only reentrant
        # checkpointing needs it.
        learner.module.causal.disable_input_require_grads()
        rows = [token_batch(batch).to(learner.device) for batch in batches]
        for part in self.micro_steps(step, rows, optimizer=optimizer, total=total, progress=progress):
            yield part.loss

    def _check_settings(self, model: Model, tokens: int | None) -> None:
        check_candidates(self.designer_config, tokens or model.config.get_text_config().vocab_size)
        if getattr(model.config.get_text_config(), "output_router_logits", False):
            raise UserError(
                "the experts' balancing loss would be left out silently: set output_router_logits=False in the model's config"
            )
        for name, parameter in model.named_parameters():
            if any(hasattr(parameter, mark) for mark in ("device_mesh", "ds_id")):  # a DTensor's, ZeRO-3's
                raise UserError(
                    "the learner's parameters are sharded, and values need whole ones: use DDP or ZeRO-1/2 in place of FSDP, "
                    "ZeRO-3 or tensor parallelism"
                )
            if parameter.dtype not in (torch.float32, torch.float64):
                kind = str(parameter.dtype).removeprefix("torch.")
                raise UserError(
                    f"{name} is {kind}, and values need float32: load the model with dtype=torch.float32, and set bf16=True"
                )


def feedback_rows(
    pairs: Iterable[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, *, length: int | None = None
) -> list[dict[str, list[int]]]:
    """Tokenise (prompt, response) pairs into rows, with labels on the response and its end token.

    Args:
        pairs: problems with their verified solutions.
        tokenizer: the learner's.
        length: longer rows are cut to this many tokens.

    Examples:
        >>> rows = feedback_rows([("2 + 2 =", " 4")], tokenizer)
        >>> list(rows[0])
        ['input_ids', 'labels']
    """
    rows = []
    for prompt, response in pairs:
        document = encode(Example(prompt, response, _DOMAIN, prompt, response, {}), tokenizer, length)
        labels = [NO_TARGET] * document.context + list(document.ids[document.context :])
        rows.append({"input_ids": list(document.ids), "labels": labels})
    return rows


def token_batch(inputs: Mapping[str, Tensor]) -> TokenBatch:
    """Convert a micro-batch of transformers.

    Args:
        inputs: `input_ids`, [B, T]. `labels`, [B, T]: the ids themselves, or -100 where they are not predicted; without any,
            all tokens but padding are predicted. `attention_mask`, [B, T]: 0 is padding. `position_ids`, [B, T] or [1, T]:
            attention stays between one 0 and the next, regardless of the mask. With them, what follows from them
            (`cu_seq_lens_q`, `seq_idx` ...) is not read.

    Raises:
        UserError: other inputs, a mask of another shape, or labels that are not a copy of the ids.

    Examples:
        >>> import torch
        >>> batch = token_batch({"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[-100, 6, 7]])})
        >>> batch.weight  # the number of its targets
        2.0
    """
    if other := set(inputs) - (_READ | _OF_POSITIONS if "position_ids" in inputs else _READ):
        raise UserError(f"the batch has {min(other)}, which V-pretraining does not know: leave it out of the data")
    ids_BT = inputs["input_ids"]
    mask_BT = inputs.get("attention_mask", torch.ones_like(ids_BT)) != 0
    if mask_BT.shape != ids_BT.shape:
        raise UserError(
            f"attention_mask has the shape {list(mask_BT.shape)}: it must be that of input_ids, {list(ids_BT.shape)}"
        )
    positions_BT = inputs.get("position_ids", _positions(mask_BT)).expand_as(ids_BT)
    if "labels" in inputs:
        predicted_BT = inputs["labels"] != NO_TARGET
        if bool((predicted_BT & (inputs["labels"] != ids_BT)).any()):
            raise UserError("labels must be the input_ids, or -100 where they are not predicted: this is another task")
    else:
        predicted_BT = mask_BT & (positions_BT > 0)
    rows = ids_BT.shape[0]
    return TokenBatch(ids_BT, positions_BT, predicted_BT.float(), (_DOMAIN,) * rows, ((),) * rows)


def _remark_on_padding(ids: int) -> None:
    if ids % _PADDED_TO == 0 and distributed.is_rank_0():
        note(
            f"the model has {ids:,} ids, a multiple of {_PADDED_TO}: if its tokenizer has fewer, those that are no tokens may "
            "become candidates; give tokens=len(tokenizer), or a Trainer processing_class=tokenizer"
        )


def _positions(mask_BT: Tensor) -> Int[Tensor, "B T"]:
    """Positions that restart at 0 wherever the mask changes: padding, on either side, is a document of its own."""
    index_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    changes_BT = mask_BT != mask_BT.roll(1, dims=1)
    return index_T - torch.where(changes_BT, index_T, 0).cummax(1).values


class _Rows:
    """D_fb from tokenised rows: `Feedback` of one domain, each epoch in its own order."""

    def __init__(
        self,
        rows: Iterable[Mapping[str, object]],
        batch_size: int,
        seed: str,
        device: torch.device,
        context: int | None,
    ) -> None:
        self.weights = {_DOMAIN: 1.0}
        self.batch_size, self.device = batch_size, device
        self.batches_drawn = 0
        distributed.portion("feedback_batch_size", batch_size)
        self._own = range(distributed.rank(), batch_size, distributed.size())
        self.rows = [_checked(number, row, context) for number, row in enumerate(rows)]
        if not self.rows:
            raise UserError("the feedback is empty: it needs rows with input_ids and labels")
        self._order = Shuffled(len(self.rows), seed)

    def next(self) -> dict[str, TokenBatch]:
        """Return this process's part of the next rows, padded on the right."""
        first = self.batches_drawn * self.batch_size
        chosen = [self.rows[self._order[first + i]] for i in self._own]
        self.batches_drawn += 1
        ids, labels = zip(*chosen, strict=True)
        batch = {
            "input_ids": pad_sequence(list(ids), batch_first=True),
            "labels": pad_sequence(list(labels), batch_first=True, padding_value=NO_TARGET),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }
        return {_DOMAIN: token_batch(batch).to(self.device)}

    def state_dict(self) -> Json:
        """The cursor."""
        return {"batches_drawn": self.batches_drawn}

    def load_state_dict(self, state: Json) -> None:
        """Continue from a cursor."""
        self.batches_drawn = state["batches_drawn"]


def _checked(number: int, row: Mapping[str, object], context: int | None) -> tuple[Tensor, Tensor]:
    """The row's ids and labels. Raises UserError if there is nothing to learn from, or more than the context holds."""
    if "input_ids" not in row or "labels" not in row:
        raise UserError(f"feedback row {number} has {', '.join(row) or 'nothing'}: it needs input_ids and labels")
    ids, labels = (torch.as_tensor(row[name]) for name in ("input_ids", "labels"))
    if ids.shape != labels.shape or not bool((labels[1:] != NO_TARGET).any()):
        raise UserError(
            f"feedback row {number} has no label on any of its {ids.numel()} tokens: its prompt may fill it"
        )
    if context is not None and len(ids) > context:
        raise UserError(
            f"feedback row {number} has {len(ids)} tokens, and the model reads at most {context}: cut it, as "
            f"feedback_rows(..., length={context}) does"
        )
    return ids, labels
