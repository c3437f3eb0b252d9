"""The alignment subset S: the parameters over which gradients are compared (Eq 20)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from vpretrain.bounds import check_subset
from vpretrain.errors import UserError

_MIXES = re.compile(r"attn$|attention$|mixer|conv|ssm|mamba|rnn|recurrent|temporal|time")


def alignment_subset(module: nn.Module, spec: str) -> tuple[str, ...]:
    """Return the names of the trainable parameters in S.

    Args:
        module: the learner.
        spec: `last-mlp` (the MLP of the last block, where a tangent costs nearly nothing), `last-N` (trainable parameters of
            the last N blocks: under LoRA, their adapters), `all`, or `name:REGEX`.

    Raises:
        UserError: the spec is malformed, or selects nothing.

    Examples:
        >>> from torch import nn
        >>> learner = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(2, 2) for number in range(3))})
        >>> alignment_subset(learner, "last-1")
        ('blocks.2.weight', 'blocks.2.bias')
    """
    check_subset(spec)
    trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if spec == "all":
        return tuple(trainable)
    if spec == "last-mlp":
        return mlp_names(module) or alignment_subset(module, "last-1")
    kind, _, pattern = spec.partition(":")
    if kind == "name":
        return _nonempty((name for name in trainable if re.search(pattern, name)), spec, trainable)
    count = int(spec.removeprefix("last-"))
    prefix, blocks = blocks_of(module)
    if count > len(blocks):
        raise UserError(f"value.subset {spec}: the learner has {len(blocks)} blocks; use last-{len(blocks)} or all")
    prefixes = tuple(f"{prefix}.{index}." for index in range(len(blocks) - count, len(blocks)))
    return _nonempty((name for name in trainable if name.startswith(prefixes)), spec, trainable)


def blocks_of(module: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the longest list of modules, the outermost of equals: a transformer's blocks by any name (layers, h, blocks).

    If the module has a `backbone`, that backbone's blocks are returned, however long a predictor on top of it is; if it has a
    `language_model`, that one's, however deep the vision tower beside it is.
    """
    lists = [(name, child) for name, child in module.named_modules() if isinstance(child, nn.ModuleList)]
    lists = [(name, child) for name, child in lists if name.startswith("backbone.")] or lists
    lists = [(name, child) for name, child in lists if "language_model" in name.split(".")] or lists
    if not lists:
        raise UserError("value.subset last-N: this learner has no list of blocks; use all or name:REGEX")
    return max(lists, key=lambda item: (len(item[1]), -item[0].count(".")))


def mlp_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the last block's trainable MLP parameters (experts and router included); empty without an MLP.

    The MLP is every part with matrices beside the part that mixes tokens, whatever its name.
    """
    prefix, blocks = blocks_of(module)
    mixer, parts = mixer_of(blocks[-1]), dict(blocks[-1].named_children())
    if mixer is None:
        return ()
    within = [name for name, part in parts.items() if name != mixer and any(p.ndim >= 2 for p in part.parameters())]
    prefixes = tuple(f"{prefix}.{len(blocks) - 1}.{name}." for name in within)
    return tuple(name for name, p in module.named_parameters() if p.requires_grad and name.startswith(prefixes))


def mixer_of(block: nn.Module) -> str | None:
    """Return the name of the one part of a block that mixes tokens, if that is an attention, else None."""
    mixers = [name for name, _ in block.named_children() if _MIXES.search(name)]
    return mixers[0] if len(mixers) == 1 and "att" in mixers[0] else None


def _nonempty(names: Iterable[str], spec: str, trainable: list[str]) -> tuple[str, ...]:
    chosen = tuple(names)
    if not chosen:
        raise UserError(f"value.subset {spec} selects no trainable parameter; they are named like {trainable[-1]}")
    return chosen
