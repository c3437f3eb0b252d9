"""An arm that makes one learner step at a time, for a clock beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vpretrain.run.optimizer import AdamW
from vpretrain.run.parts import Parts
from vpretrain.run.train import train

HF = "hf"  # plain transformers: model(labels=...).loss, backward, clip, AdamW


class TimedArm:
    """An arm, ready to make steps; if `plain`, those of plain transformers on the parts' learner and stream."""

    def __init__(self, recipe: Any, parts: Parts, *, plain: bool = False) -> None:
        self.recipe, self.parts = recipe, parts
        self.optimizer = AdamW(parts.learner.named_parameters(), recipe.optimizer, total_steps=1000)
        self.step = self._plain if plain else self._ours
        self.read = 0  # tokens or images of the last step

    def updates(self, number: int) -> bool:
        """Whether a meta update belongs to the step with this number."""
        return self.parts.meta is not None and number % self.recipe.value.every_steps == 0

    def measured(self, phases: Mapping[str, float], watched: Sequence[int], peak_bytes: int) -> dict[str, Any]:
        """Return what `figures` needs: `phases` are seconds over the steps with the `watched` numbers."""
        read, updates = self.read, sum(map(self.updates, watched))
        return {"read": read, "phases": phases, "steps": len(watched), "updates": updates, "peak_bytes": peak_bytes}

    def _ours(self, number: int) -> None:
        train(self.recipe, self.parts, self.optimizer, steps=[number], after_step=self._count)

    def _count(self, record: Any) -> None:
        self.read = record.units

    def _plain(self, number: int) -> None:
        learner: Any = self.parts.learner
        optimizer, batches = self.optimizer.torch, self.parts.stream.next()
        for batch in batches:
            labels_BT = batch.ids_BT.masked_fill(batch.weights_BT == 0, -100)
            with torch.autocast(learner.device.type, dtype=torch.bfloat16, enabled=learner.bf16):
                # Without a cache: with one, transformers would let documents of a row attend to each other.
                outputs = learner.model(
                    input_ids=batch.ids_BT, position_ids=batch.positions_BT, labels=labels_BT, use_cache=False
                )
            (outputs.loss / len(batches)).backward()
            del outputs
        torch.nn.utils.clip_grad_norm_(learner.model.parameters(), self.recipe.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        self.read = sum(batch.units for batch in batches)
