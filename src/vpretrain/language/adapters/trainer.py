"""V-pretraining in transformers' Trainer: its loop, optimizers, callbacks and checkpoints, with our losses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    DataCollator,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from vpretrain.errors import UserError
from vpretrain.language.adapters.attach import VPretraining
from vpretrain.language.config import DesignerConfig, ValueConfig
from vpretrain.language.model.load import tokens_of
from vpretrain.types import Json, Keywords

_DIRECTORY = "vpretrain"  # in a checkpoint of the Trainer
_LOGGED = ("strength", "value", "g_down_norm", "alpha")
# Arguments that would be silently ignored, or that break the tangent pass.
_REFUSED = {
    "fp16": "values in half precision are noise: set bf16=True, or neither",
    "torch_compile": "the compiled model would never be called: leave it out",
    "use_liger_kernel": "its kernels have no forward mode: leave it out",
    "label_smoothing_factor": "vpretrain makes the targets: set it to 0",
    "parallelism_config": "values need whole parameters and whole rows: leave it out",
}


class VPretrainMixin(Trainer):
    """Train a Trainer on constructed tasks, once its `__init__` has called `_attach`."""

    loss_is_scaled_for_ga = True  # each micro-batch's loss is already its part of the whole step's

    def _attach(self, feedback_dataset: Iterable[Mapping[str, object]], **settings: Any) -> None:
        """Attach V-pretraining, with `VPretraining`'s own settings, to a Trainer that is complete otherwise."""
        self._refuse()
        if not self.place_model_on_device:  # under DeepSpeed it would be moved later, away from the designer
            self._move_model_to_device(self.model, self.args.device)
        tokenizer = self.processing_class
        self.vpretraining = VPretraining(
            self.model,
            feedback_dataset,
            bf16=self.args.bf16,
            seed=self.args.seed,
            tokens=tokens_of(tokenizer) if isinstance(tokenizer, PreTrainedTokenizerBase) else None,
            replicated=True,
            **settings,
        )
        self._losses: Iterator[Tensor] = iter(())
        self._unlogged: Json = {}

    def get_batch_samples(
        self, epoch_iterator: Iterator[object], num_batches: int, device: object
    ) -> tuple[list[object], Tensor | int | None]:
        """Fetch the micro-batches of the coming step. Their losses, and the meta update, are computed on demand."""
        samples, targets = super().get_batch_samples(epoch_iterator, num_batches, device)
        processes, whole = self.accelerator.num_processes, self.args.average_tokens_across_devices
        self._losses = self.vpretraining.losses(
            self.state.global_step,
            [self._prepare_inputs(sample) for sample in samples],
            optimizer=getattr(self.optimizer, "optimizer", self.optimizer),  # Accelerate's wraps it
            # `targets` counts those of all processes, whose gradients are averaged and not summed.
            total=float(targets) / processes if processes > 1 and whole and targets is not None else None,
            progress=self.state.global_step / max(1, self.state.max_steps),
        )
        return samples, targets

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: object = None,
    ) -> Tensor | tuple[Tensor, object]:
        """In training the micro-batch's part of the step's soft-target loss, else the model's own loss."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model is self.model:
            loss = next(self._losses)
        else:  # the wrapper for several processes needs a forward pass
            with _answering(self.model, lambda **_: next(self._losses)):
                loss = model(**inputs)
        self._unlogged |= self.vpretraining.record
        return loss

    def log(self, logs: dict[str, float], *arguments: object, **keywords: object) -> None:
        """Add the figures of V-pretraining to the Trainer's log."""
        if "loss" in logs:
            logs |= {name: float(self._unlogged[name]) for name in _LOGGED if name in self._unlogged}
            self._unlogged.clear()
        super().log(logs, *arguments, **keywords)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.vpretraining.save(Path(output_dir) / _DIRECTORY)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.vpretraining.load(Path(checkpoint) / _DIRECTORY)

    def _refuse(self) -> None:
        for name, remedy in _REFUSED.items():
            if getattr(self.args, name):
                raise UserError(f"{name}={getattr(self.args, name)}: {remedy}")
        if (getattr(self.args, "activation_checkpointing_kwargs", None) or {}).get("use_reentrant"):
            raise UserError(
                "reentrant activation checkpointing has no forward mode: set use_reentrant=False, the default"
            )
        if self.compute_loss_func is not None:
            raise UserError("compute_loss_func would take the place of V-pretraining's loss: leave it out")
        if self.model_init is not None:
            raise UserError("model_init makes another model than the designer was made for: give the model itself")
        zero_3 = self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        if zero_3 or self.is_fsdp_enabled or self.is_model_parallel or self.is_distributed_loading_by_transformers:
            raise UserError(
                "the model is sharded over devices, and values need whole parameters: use DDP or ZeRO-1/2 in place of FSDP, "
                "ZeRO-3, tensor parallelism or a device map"
            )
        if self.args.n_gpu > 1:
            raise UserError("DataParallel copies the model to each GPU: set CUDA_VISIBLE_DEVICES=0")


class VPretrainTrainer(VPretrainMixin):
    """`transformers.Trainer` on constructed tasks: pass `feedback_dataset`, and everything else as usual.

    Before the first micro-batch of a step with `global_step % value.every_steps == 0` (after the burn-in) it makes one meta
    update. `evaluate` gives the ordinary one-hot loss. The log has the mean alpha of the last step and, if there was one
    since the last log, the value and |g_down| of the last meta update. Checkpoints hold all that `resume_from_checkpoint`
    needs.

    Args:
        feedback_dataset: rows with `input_ids` and `labels`, see `VPretraining`.
        arm, designer, value, feedback_batch_size: as in `VPretraining`.
        model, args and all before `feedback_dataset`: the Trainer's own. The batches need what `token_batch` reads, and
            nothing else; `model_init` and `compute_loss_func` are refused.

    Raises:
        UserError: something cannot work; the message gives the cause and the remedy.

    Examples:
        >>> trainer = VPretrainTrainer(
        ...     model=model,
        ...     args=TrainingArguments(output_dir="trained", max_steps=1000),
        ...     train_dataset=rows,
        ...     data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        ...     feedback_dataset=feedback_rows(pairs, tokenizer),
        ...     value=ValueConfig(every_steps=4),
        ... )
        >>> trainer.train()
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: object = None,
        eval_dataset: object = None,
        processing_class: object = None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[Optimizer], Keywords] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
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
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self._attach(feedback_dataset, arm=arm, designer=designer, value=value, feedback_batch_size=feedback_batch_size)


@contextlib.contextmanager
def _answering(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replace the module's `forward` in this context; restore one that others may have set before."""
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own
