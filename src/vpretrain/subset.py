"""The alignment subset S: the parameters over which gradients are compared (Eq 20)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from vpretrain.errors import UserError


def alignment_subset(module: nn.Module, spec: str) -> tuple[str, ...]:
    """Names of the trainable parameters in S.

    Args:
        module: the learner.
        spec: `last-N` (trainable parameters of the last N blocks: under LoRA, their adapters), `all`, or `name:REGEX`.

    Raises:
        UserError: the spec is malformed, or selects nothing.
    """
    trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if spec == "all":
        return tuple(trainable)
    kind, _, pattern = spec.partition(":")
    if kind == "name" and pattern:
        return _nonempty((name for name in trainable if re.search(pattern, name)), spec, trainable)
    last = re.fullmatch(r"last-(\d+)", spec)
    if last is None or int(last[1]) == 0:
        raise UserError(f"value.subset '{spec}' must be last-N (e.g. last-2), all, or name:REGEX")
    prefix, blocks = blocks_of(module)
    if int(last[1]) > len(blocks):
        raise UserError(f"value.subset {spec}: the learner has {len(blocks)} blocks; use last-{len(blocks)} or all")
    prefixes = tuple(f"{prefix}.{index}." for index in range(len(blocks) - int(last[1]), len(blocks)))
    return _nonempty((name for name in trainable if name.startswith(prefixes)), spec, trainable)


def blocks_of(module: nn.Module) -> tuple[str, nn.ModuleList]:
    """The outermost longest list of modules: a transformer's blocks under any of the names in use (layers, h, blocks).

    Where a module has a `backbone`, those are meant, however long a predictor on top of it is.
    """
    lists = [(name, child) for name, child in module.named_modules() if isinstance(child, nn.ModuleList)]
    lists = [(name, child) for name, child in lists if name.startswith("backbone.")] or lists
    if not lists:
        raise UserError("value.subset last-N: this learner has no list of blocks; use all or name:REGEX")
    return max(lists, key=lambda item: (len(item[1]), -item[0].count(".")))


def _nonempty(names: Iterable[str], spec: str, trainable: list[str]) -> tuple[str, ...]:
    chosen = tuple(names)
    if not chosen:
        raise UserError(f"value.subset {spec} selects no trainable parameter; they are named like {trainable[-1]}")
    return chosen
