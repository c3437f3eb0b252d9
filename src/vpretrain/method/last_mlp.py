"""The tangent of the last hidden states along a direction over the last block's MLP (METHODS: the exact task).

S = the MLP of the last block is the one S for which D_u h costs next to nothing: nothing below the MLP depends on it, and
everything above works token by token. So the tangent starts from tensors of the learner's own pass, the input of the last block
and the outputs of its attention and of its linear layers, and runs at the targets only: no attention, no lower block, no
logits, and no product a second time.

Shapes: B rows, T tokens, N targets, D width, F width inside the MLP.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from vpretrain.errors import UserError
from vpretrain.method.products import whole
from vpretrain.method.protocols import Parameters
from vpretrain.method.subset import blocks_of, mixer_of, mlp_names
from vpretrain.types import Keywords


@dataclass(frozen=True)
class MLPEntry:
    """Where the tangent starts, at the targets.

    Attributes:
        block_ND: the input of the last block.
        attention_ND: the output of its attention.
        products: the outputs of the block's linear layers, [N, F] or [N, D], by name, which the tangent needs, too.
    """

    block_ND: Float[Tensor, "N D"]
    attention_ND: Float[Tensor, "N D"]
    products: dict[str, Tensor]

    def rows(self, chosen: slice, of: int) -> MLPEntry:
        """Return the entry at some of its `of` rows, with equally many targets each, without the products."""
        block_ND, attention_ND = (
            x.unflatten(0, (of, -1))[chosen].flatten(0, 1) for x in (self.block_ND, self.attention_ND)
        )
        return MLPEntry(block_ND, attention_ND, {})


class LastMLP:
    """The last block and the norm after it as a function of the MLP's parameters only.

    Args:
        module: holds the model, not yet sharded.
        following: the modules that the model applies to the last block's output, in order: the final norm, in OPT also a
            projection.

    Raises:
        UserError: the last block has no MLP beside an attention.
    """

    def __init__(self, module: nn.Module, following: Sequence[nn.Module]) -> None:
        prefix, blocks = blocks_of(module)
        block, number = blocks[-1], len(blocks) - 1
        attention = mixer_of(block)
        if attention is None or not mlp_names(module):
            raise UserError("the last block has no MLP beside its attention")
        self.names = frozenset(mlp_names(module))
        # Copies without weights: shards, hooks, checkpointing and compilation are on the model's own block, not on a copy.
        self._skeleton = _Skeleton(_without_weights(block), attention, [_without_weights(part) for part in following])
        # From the skeleton's names of parameters to the module's.
        places = {f"block.{n}": f"{prefix}.{number}.{n}" for n, _ in block.named_parameters()}
        modules = {id(part): name for name, part in module.named_modules()}
        for i, part in enumerate(following):
            places |= {f"following.{i}.{n}": f"{modules[id(part)]}.{n}" for n, _ in part.named_parameters()}
        own = {name for name, _ in self._skeleton.named_parameters()}
        self._places = {name: place for name, place in places.items() if name in own}  # the skeleton has no attention
        # Buffers have values in the model only: the copies' are on the meta device.
        wholes = nn.ModuleDict({"block": block, "following": nn.ModuleList(following)})
        own = {name for name, _ in self._skeleton.named_buffers()}
        self._buffers = {name: buffer for name, buffer in wholes.named_buffers() if name in own}
        self._block, self._attention = block, getattr(block, attention)
        self._linear = {} if _has_dropout(self._skeleton) else self._skeleton.linear_layers()
        self._at_BT: Tensor | None = None  # while a pass is recorded
        self._at_N: Tensor | None = None  # from the last block on: the numbers of these tokens
        self._seen: dict[str, Tensor] = {}
        self._products: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self.compiled = False  # whether the model's passes are

    def watch(self, on: bool = True) -> None:
        """Turn the recording of passes on or off. While it is on, this block of a compiled model runs uncompiled."""
        if on and not self._hooks:
            self._hooks = [
                self._block.register_forward_pre_hook(torch.compiler.disable(self._enter), with_kwargs=True),
                self._attention.register_forward_hook(self._attend),
            ]
            for name in self._linear:
                layer = self._block.get_submodule(name)
                self._hooks.append(layer.register_forward_hook(functools.partial(self._multiply, name)))
            if self.compiled:  # torch.compile drops the hook on the attention
                vars(self._block)["forward"] = torch.compiler.disable(self._block.forward)
        elif not on:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    @contextlib.contextmanager
    def recording(self, at_BT: Bool[Tensor, "B T"]) -> Iterator[None]:
        """Record one pass of the model at some tokens, for `take_entry`."""
        self._at_BT, self._seen, self._products = at_BT, {}, {}
        try:
            yield
        except BaseException:
            self._seen, self._products = {}, {}  # of a part of the pass
            raise
        finally:
            self._at_BT = self._at_N = None

    def take_entry(self) -> MLPEntry | None:
        """Return the entry of the last recorded pass, and release it here; None if none was recorded."""
        seen, products, self._seen, self._products = self._seen, self._products, {}, {}
        return MLPEntry(seen["block"], seen["attention"], products) if seen else None

    def hidden(self, entry: MLPEntry, theta: Parameters, mlp: Parameters) -> Float[Tensor, "N D"]:
        """The last hidden states at the targets, with these values of the MLP's parameters."""
        values = {name: mlp.get(place, theta[place]) for name, place in self._places.items()}
        # All targets as one row: without attention no token depends on another.
        arguments = (entry.block_ND[None], entry.attention_ND[None])
        hidden_1ND: Tensor = functional_call(self._skeleton, values | self._buffers, arguments)
        return hidden_1ND[0]

    def linearised(
        self, entry: MLPEntry, theta: Parameters, direction: Parameters
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
        """The last hidden states at the targets, and D_u of them.

        Args:
            entry: see `recording`.
            theta: all parameters of the module, by name; shards are gathered here.
            direction: u, over parameters of the MLP.
        """
        needed = set(self._places.values())  # gather no other shards
        values = {name: whole(p.detach()) for name, p in theta.items() if name in needed}
        along = {name: whole(u) for name, u in direction.items()}
        # Not by torch.func.jvp, which takes half as long again.
        with forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(values[name], u) for name, u in along.items()}
            with self._given(entry.products):
                hidden_ND, tangent_ND = forward_ad.unpack_dual(self.hidden(entry, values, duals))
        return hidden_ND, torch.zeros_like(hidden_ND) if tangent_ND is None else tangent_ND

    @contextlib.contextmanager
    def _given(self, products: dict[str, Tensor]) -> Iterator[None]:
        """Multiply nothing in the layers whose outputs are given."""
        for name, product in products.items():
            self._linear[name].product = product
        try:
            yield
        finally:
            for name in products:
                self._linear[name].product = None

    def _enter(self, block: nn.Module, arguments: tuple[Any, ...], keywords: Keywords) -> None:
        if self._at_BT is not None:
            # Once per pass: a GPU makes the host wait for the shape of whatever a mask selects.
            self._at_N = self._at_BT.flatten().nonzero()[:, 0]
            self._seen["block"] = self._chosen(arguments[0] if arguments else keywords["hidden_states"])

    def _attend(self, attention: nn.Module, arguments: object, output: Tensor | tuple[Tensor, ...]) -> None:
        if self._at_N is not None:
            self._seen["attention"] = self._chosen(output if isinstance(output, Tensor) else output[0])
            self._skeleton.bare = isinstance(output, Tensor)  # or a tuple: the block expects the same in the skeleton

    def _multiply(self, name: str, layer: nn.Module, arguments: object, output: Tensor) -> None:
        if self._at_BT is not None and output.shape[:-1].numel() == self._at_BT.numel():
            self._products[name] = self._chosen(output)

    def _chosen(self, output: Tensor) -> Tensor:
        """An output at the tokens that are recorded; some blocks flatten rows and tokens."""
        return output.detach().flatten(end_dim=-2)[self._at_N]


def find_last_mlp(
    module: nn.Module,
    following: Callable[[], Sequence[nn.Module]],
    sample: Callable[[Parameters], Float[Tensor, "1 N D"]],
) -> LastMLP | None:
    """Return the `LastMLP`; None where its tangent would not be the model's, because no MLP can be told apart or the block is
    built differently.

    Args:
        module: as in `LastMLP`.
        following: returns those of `LastMLP`.
        sample: the last hidden states of a sample row, by all parameters of the module.
    """
    try:
        found = LastMLP(module, following())
    except UserError:
        return None
    theta: Parameters = dict(module.named_parameters())
    with torch.no_grad():
        found.watch()
        try:
            at_1N = torch.ones(sample(theta).shape[:2], dtype=torch.bool, device=next(module.parameters()).device)
            with found.recording(at_1N):
                sample(theta)
            entry = found.take_entry()
            assert entry is not None
            for scale in (1.1, 1.0):  # also away from the present weights
                moved = {name: scale * theta[name] for name in found.names}
                theirs_ND, ours_ND = sample(theta | moved)[0], found.hidden(entry, theta, moved)
                if not torch.allclose(ours_ND, theirs_ND, rtol=1e-3, atol=1e-4):
                    return None
            # Forward mode goes through the copy, and what was recorded of its layers is what they need.
            ours_ND, _ = found.linearised(entry, theta, {name: theta[name] for name in found.names})
            if not torch.allclose(ours_ND, theirs_ND, rtol=1e-3, atol=1e-4):
                return None
        except (TypeError, ValueError, KeyError, IndexError, RuntimeError, AttributeError):
            return None
        finally:
            found.watch(False)
    return found


class _Skeleton(nn.Module):
    """The block with a given attention output, and the modules that follow it."""

    def __init__(self, block: nn.Module, attention: str, following: list[nn.Module]) -> None:
        super().__init__()
        self.block, self.following = block, nn.ModuleList(following)
        self._given = _Given()
        setattr(block, attention, self._given)
        wanted = inspect.signature(type(block).forward).parameters.values()
        positional = (p for p in wanted if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty)
        # Required arguments after self and the hidden states: only the attention reads them, so None will do.
        self._unused = dict.fromkeys([p.name for p in positional][2:])
        self.bare = False
        self.eval()  # no dropout in the tangent

    def linear_layers(self) -> dict[str, _Linear]:
        """The block's linear layers by their names in it; not the attention's, nor those in lists, such as experts, each of
        which gets some tokens only, in an order of its own."""
        layers = {name: layer for name, layer in self.block.named_modules() if isinstance(layer, _Linear)}
        return {name: layer for name, layer in layers.items() if not any(map(str.isdigit, name.split(".")))}

    def forward(self, block_1ND: Tensor, attention_1ND: Tensor) -> Tensor:
        self._given.output = attention_1ND if self.bare else (attention_1ND, None)
        output = self.block(block_1ND, **self._unused)
        self._given.output = None
        hidden: Tensor = output if isinstance(output, Tensor) else output[0]
        for part in self.following:
            hidden = part(hidden)
        return hidden


class _Linear(nn.Linear):
    """Multiplies no tangent that is 0, and nothing whose product is given: the formula of torch takes a product with zeros
    where only the weight has a tangent."""

    product: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        (x, dx), (w, dw) = forward_ad.unpack_dual(input), forward_ad.unpack_dual(self.weight)
        b, db = (None, None) if self.bias is None else forward_ad.unpack_dual(self.bias)
        given = self.product
        y = F.linear(x, w, b) if given is None else given.to(_product_dtype(w)).view(*x.shape[:-1], len(w))
        if dx is None and dw is None and db is None:
            return y
        parts = [] if dw is None else [F.linear(x, dw, db)]
        parts += [] if dx is None else [F.linear(dx, w)]
        parts += [db.expand_as(y)] if dw is None and db is not None else []
        dual: Tensor = forward_ad.make_dual(y, sum(parts[1:], parts[0]))
        return dual


class _Given(nn.Module):
    """Stands in for the attention and returns the given output."""

    output: Tensor | tuple[Tensor, None] | None = None

    def forward(self, *arguments: object, **keywords: object) -> Tensor | tuple[Tensor, None] | None:
        return self.output


def _has_dropout(part: nn.Module) -> bool:
    """Whether the outputs of the layers in training are not those of the tangent, which runs without dropout."""
    rates = (rate for inner in part.modules() for name, rate in vars(inner).items() if name == "p" or "drop" in name)
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def _without_weights(part: nn.Module) -> nn.Module:
    """A copy without weights, hooks, activation checkpointing or a replaced `forward`."""
    # deepcopy uses the entries of memo instead of copying: meta tensors for weights and buffers, and no hooks.
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in part.parameters()}
    memo |= {id(b): b.detach().to("meta") for b in part.buffers()}
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    memo |= {id(getattr(inner, name)): OrderedDict() for inner in part.modules() for name in hooks}
    copied = copy.deepcopy(part, memo)
    for inner in copied.modules():
        vars(inner).pop("forward", None)
        if type(inner) is nn.Linear:
            inner.__class__ = _Linear
        if hasattr(inner, "gradient_checkpointing"):
            vars(inner)["gradient_checkpointing"] = False
        config: Any = getattr(inner, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"  # the fused experts have no forward-mode derivative
    return copied


def _product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that a product with a weight has here; it may have been another one in the recorded pass."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
