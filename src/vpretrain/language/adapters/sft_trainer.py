"""V-pretraining in TRL's SFTTrainer: its preparation of data, packing and PEFT, with our losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import DataCollator, EvalPrediction, TrainerCallback, TrainingArguments

from vpretrain.errors import UserError
from vpretrain.language.adapters.trainer import VPretrainMixin
from vpretrain.language.config import DesignerConfig, ValueConfig
from vpretrain.types import Json, Keywords

try:
    from trl import SFTTrainer
except ImportError:
    raise UserError('VPretrainSFTTrainer needs a package: pip install "vpretrain[direct]"') from None


class VPretrainSFTTrainer(VPretrainMixin, SFTTrainer):
    """TRL's `SFTTrainer` on constructed tasks: pass `feedback_dataset`, and everything else as usual.

    Meta updates, log and checkpoints are those of `VPretrainTrainer`. TRL prepares the training data: text, prompts with
    completions, chats, packed or not. Entropy and token accuracy, which TRL takes from its own loss, are logged in evaluation
    alone.

    Args:
        feedback_dataset: rows with `input_ids` and `labels`, see `VPretraining`.
        arm, designer, value, feedback_batch_size: as in `VPretraining`.
        model, args and all before `feedback_dataset`: the SFTTrainer's own; `compute_loss_func` is refused, and so are
            other losses than `nll`.

    Raises:
        UserError: something cannot work; the message gives the cause and the remedy.

    Examples:
        >>> trainer = VPretrainSFTTrainer(
        ...     model=model,
        ...     args=SFTConfig(output_dir="trained", max_steps=1000),
        ...     train_dataset=chats,
        ...     processing_class=tokenizer,
        ...     feedback_dataset=feedback_rows(pairs, tokenizer),
        ...     value=ValueConfig(every_steps=4),
        ... )
        >>> trainer.train()
    """

    def __init__(
        self,
        model: str | nn.Module,
        args: TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: object = None,
        eval_dataset: object = None,
        processing_class: object = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[[EvalPrediction], Json] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[Optimizer], Keywords] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        quantization_config: object = None,
        peft_config: object = None,
        formatting_func: Callable[[Json], str] | None = None,
        *,
        feedback_dataset: Iterable[Mapping[str, object]],
        arm: Literal["v", "v-exact", "v-learned", "v-paper"] = "v",
        designer: DesignerConfig | None = None,
        value: ValueConfig | None = None,
        feedback_batch_size: int = 4,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            quantization_config=quantization_config,
            peft_config=peft_config,
            formatting_func=formatting_func,
        )
        self._attach(feedback_dataset, arm=arm, designer=designer, value=value, feedback_batch_size=feedback_batch_size)

    def _refuse(self) -> None:
        super()._refuse()
        if self.args.loss_type != "nll":
            raise UserError(f"loss_type={self.args.loss_type}: vpretrain makes the loss: leave it out")
        if self.args.activation_offloading:
            raise UserError("activation_offloading=True moves what values are computed from: leave it out")
        if self.aux_loss_enabled:
            raise UserError("the experts' balancing loss would be left out silently: set router_aux_loss_coef=0.0")
