"""The base of vision learners: a student, the teacher that averages it, and evaluation at shifted parameters of S.

An objective (`dino.py`, `ijepa.py`) adds its head, its loss and its passes over views. Shapes: V views, B images, T tokens,
D the backbone's width, H x W pixels.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vpretrain.method.base_learner import BaseLearner
from vpretrain.method.last_mlp import MLPEntry, find_last_mlp
from vpretrain.method.parameters import ShardedTheta, sharded, theta_of
from vpretrain.method.protocols import AnyBatch, AnyState, Parameters, Task, with_tensors
from vpretrain.types import Model
from vpretrain.vision.config import DinoConfig, IJepaConfig
from vpretrain.vision.model.backbone import Backbone
from vpretrain.vision.model.batch import ViewBatch
from vpretrain.vision.model.block_entry import BlockEntries, BlockEntry

Entry = MLPEntry | BlockEntry


@dataclass(frozen=True)
class ViewState:
    """The outputs of student and teacher for a batch of views.

    Attributes:
        student: DINO's head outputs of the global views [V, B, N, P]; I-JEPA's predicted representations [B, M, N, D].
        teacher: the teacher's of the same, without gradient.
        entry: where a tangent through the last MLP or the last blocks starts, at the tokens of the global views.
    """

    student: Tensor
    teacher: Tensor
    entry: Entry | None

    def detach(self) -> ViewState:
        """Return the state without gradient."""
        return with_tensors(self, Tensor.detach)


class Network(nn.Module):
    """A backbone with an objective's head: the student and, as a copy, the teacher."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, part: str, *arguments: object) -> Any:
        """Run one of the parts by name, so that `functional_call` can replace parameters in any of them."""
        backbone = self.backbone
        run: dict[str, Any] = {"lower": backbone.lower, "upper": backbone.upper, "tokens": backbone, "head": self.head}
        return run[part](*arguments)


class Teacher(Network):
    """A running average of the student, with the running centres of its own outputs (DINO; otherwise 0): those of class tokens,
    and those of patches."""

    centre: Float[Tensor, " P"]
    patch_centre: Float[Tensor, " P"]

    def __init__(self, student: Network, outputs: int) -> None:
        super().__init__(copy.deepcopy(student.backbone), copy.deepcopy(student.head))
        self.eval().requires_grad_(False)
        for name in ("centre", "patch_centre"):
            self.register_buffer(name, torch.zeros(outputs, device=next(student.parameters()).device))


class PlainLayerNorm(TorchFunctionMode):
    """Layer norm from elementary operations.

    The fused kernel's forward-mode formula treats mean and deviation as constants, so that a gradient backward through
    its tangent is silently wrong by 5 to 15 % (torch 2.13).
    """

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        arguments: Sequence[object] = (),
        keywords: Mapping[str, object] | None = None,
    ) -> object:
        called: Callable[..., object] = _layer_norm if function is F.layer_norm else function
        return called(*arguments, **(keywords or {}))


def _layer_norm(
    input: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    assert len(shape) == 1
    centred = input - input.mean(-1, keepdim=True)
    scaled = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    scaled = scaled if weight is None else scaled * weight
    return scaled if bias is None else scaled + bias


class VisionLearner(BaseLearner):
    """The learner theta, with its teacher.

    Args:
        backbone: the pretrained transformer.
        head: the objective's head.
        config: settings of the objective.
        outputs: width of the teacher's centre.
        bf16: run training passes, the feedback's passes through the backbone, and tangents that start from an entry, under
            bf16 autocast. Values and other tangents are always fp32.
        parallel: how several processes hold student and teacher, see `vpretrain.method.parameters`.
    """

    module: Network
    _block_entries: BlockEntries | None = None  # what the passes record if S is some of the last blocks

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        config: DinoConfig | IJepaConfig,
        *,
        outputs: int,
        bf16: bool = False,
        parallel: Literal["ddp", "fsdp"] = "ddp",
    ) -> None:
        module = self.module = Network(backbone, head.to(next(backbone.parameters()).device))
        self.teacher = Teacher(module, outputs)  # copies the student before it is sharded
        with self.meta_mode():  # the trial needs it unsharded, too
            self.last_mlp = find_last_mlp(module, self.following, self._sample)
        super().__init__(module, theta_of(module, parallel), bf16=bf16)
        self.config, self.ema = config, config.ema
        if isinstance(self.theta, ShardedTheta):
            sharded(self.teacher)

    @property
    def backbone(self) -> Backbone:
        """The student's backbone."""
        return self.module.backbone

    @property
    def model(self) -> Model:
        """The student's transformers model."""
        return self.backbone.model

    def following(self) -> Sequence[nn.Module]:
        """Return the modules after the last block through which a tangent goes token by token: the final norm."""
        return (self.backbone.norm,)

    def tangents(self, inputs: ViewBatch, state: AnyState, direction: Parameters) -> Tensor:
        """Return D_u, along a direction over S, of the student's patch features (DINO) or predictions (I-JEPA)."""
        raise NotImplementedError

    def prepare(self, inputs: ViewBatch, parameters: Parameters) -> ViewBatch:
        """Return the views with everything that does not depend on `parameters`: tokens below S, and the teacher's outputs.

        Differentiable in the views. Computed once for an engine that evaluates at several values of `parameters`.
        """
        start = self.first_block(parameters)
        below = None if start is None else self.theta.forward_frozen("lower", *self.seen(inputs, start))
        return replace(inputs, prepared=(start, below, self.teach(inputs)))

    def prepare_in_own_precision(self, inputs: ViewBatch, parameters: Parameters) -> ViewBatch:
        """Return the same from passes in the learner's own precision."""
        with self.autocast():
            return self.prepare(inputs, parameters)

    def tokens(self, inputs: ViewBatch, parameters: Parameters) -> tuple[Float[Tensor, "VB T D"], Tensor]:
        """Return the student's tokens of the views of a meta step, and the teacher's outputs, from what `prepare` stored."""
        start, below, taught = (inputs if inputs.prepared else self.prepare(inputs, parameters)).prepared
        call = partial(self.theta.forward_with, parameters)
        hidden, rope = call("lower", *self.seen(inputs, 0)) if start is None else below
        with self.recording(self.every_token(*hidden.shape[:2])):
            return call("upper", hidden, rope, start or 0), taught

    def every_token(self, images: int, tokens: int) -> Bool[Tensor, "B T"]:
        """Return a mask of the tokens at which a pass over the global views is recorded: all of them."""
        return torch.ones(images, tokens, dtype=torch.bool, device=self.device)

    def _sample(self, theta: Parameters) -> Float[Tensor, "1 T D"]:
        """Return what `following` gives for a sample image, by all parameters."""
        side = 2 * self.backbone.patch_size
        image_13HW = torch.linspace(0, 1, 3 * side * side, device=self.device).view(1, 3, side, side)
        tokens: Tensor = functional_call(self.module, theta, ("tokens", image_13HW))
        return tokens

    def seen(self, inputs: ViewBatch, stop: int) -> tuple[Tensor | int | None, ...]:
        """Return the arguments of `Backbone.lower` for the student's part of the global views: pixels, `stop`, which tokens are
        kept, and which patches are hidden."""
        raise NotImplementedError

    def teach(self, inputs: ViewBatch) -> Tensor:
        """Return the teacher's outputs for these views, without gradient."""
        raise NotImplementedError

    def evaluate(self, batch: AnyBatch, parameters: Parameters) -> Float[Tensor, ""]:
        """L_down: the loss of a feedback batch's head on the backbone's patches, as a function of S."""
        tokens_BTD = self._tokens_from(batch.entry, parameters, len(batch.image_B3HW))
        if tokens_BTD is None:
            tokens_BTD = self.theta.forward_with(parameters, "tokens", batch.image_B3HW)
        with torch.autocast(self.device.type, enabled=False):  # heads and depths are fp32
            return batch.loss(self.backbone.grid(tokens_BTD.to(batch.image_B3HW), *batch.image_B3HW.shape[2:]))

    def features(
        self, pixels_B3HW: Float[Tensor, "B 3 H W"], hidden_BN: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return normalised tokens of the frozen backbone, without gradient or dropout; see `Backbone.forward`."""
        with self.meta_mode(), torch.no_grad():
            return self.module("tokens", pixels_B3HW, hidden_BN)

    def features_and_entry(self, pixels_B3HW: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B T D"], Entry | None]:
        """Return `features`, and the entry of their pass at all tokens, if entries are kept (see `keep_entries`)."""
        patches = math.prod(self.backbone.patches(*pixels_B3HW.shape[2:]))
        with self.recording(self.every_token(len(pixels_B3HW), self.backbone.prefix + patches)):
            features_BTD = self.features(pixels_B3HW)
        return features_BTD, self.entry_of_pass()

    def keep_entries(self, subset: Iterable[str]) -> bool:
        """Keep the entry into the last MLP, or into the lowest block of S, with states from now on.

        Return False, and keep none, if S is neither that MLP nor within the blocks, or if theta is sharded.
        """
        if self._block_entries is not None:
            self._block_entries.remove()
            self._block_entries = None
        if super().keep_entries(subset):
            return True
        first = self.first_block(subset)
        if first is None or first == len(self.backbone.blocks) or not self.has_own_gradient:
            return False
        self._block_entries = BlockEntries(self.backbone.blocks, first)
        return True

    @contextlib.contextmanager
    def recording(self, at_BT: Bool[Tensor, "B T"]) -> Iterator[None]:
        """Record the entry of one pass, for `entry_of_pass`: into the last MLP at these tokens, or into a block."""
        of_block = contextlib.nullcontext() if self._block_entries is None else self._block_entries.recording()
        with super().recording(at_BT), of_block:
            yield

    def entry_of_pass(self) -> Entry | None:
        """Return the entry of the last recorded pass, once; None unless `keep_entries` has turned that on."""
        return self.take_entry() if self._block_entries is None else self._block_entries.take()

    def tokens_and_tangents(
        self, entry: Entry | None, direction: Parameters, images: int
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"]] | None:
        """Return the normalised tokens of an entry's images, and D_u of them; None without an entry that u starts from."""
        if isinstance(entry, BlockEntry):
            if not self._starts_at(entry, direction):
                return None
            tokens_BTD, tangent_BTD = self.tangent_pass(partial(self._upper, entry), direction)
            return tokens_BTD.detach(), tangent_BTD.detach()
        found = self.tangent_from_entry(entry, direction)
        return None if found is None else (found[0].unflatten(0, (images, -1)), found[1].unflatten(0, (images, -1)))

    def _tokens_from(self, entry: Entry | None, parameters: Parameters, images: int) -> Float[Tensor, "B T D"] | None:
        """Return the same tokens, as a function of S."""
        if isinstance(entry, BlockEntry):
            return self._upper(entry, parameters) if self._starts_at(entry, parameters) else None
        tokens_ND = self.hidden_from_entry(entry, parameters)
        return None if tokens_ND is None else tokens_ND.unflatten(0, (images, -1))

    def _upper(self, entry: BlockEntry, parameters: Parameters) -> Float[Tensor, "B T D"]:
        tokens_BTD: Tensor = self.theta.forward_with(parameters, "upper", entry.tokens_BTD, entry.rope, entry.number)
        return tokens_BTD

    def _starts_at(self, entry: BlockEntry, parameters: Parameters) -> bool:
        """Whether nothing below the entry depends on these parameters."""
        first = self.first_block(parameters)
        return first is not None and first >= entry.number

    def after_step(self, tasks: Sequence[Task], progress: float) -> None:
        """Update the teacher, an exponential average of the student whose momentum rises to 1 along a cosine."""
        self.follow(tasks, 1 - (1 - self.ema) * 0.5 * (1 + math.cos(math.pi * progress)))

    def follow(self, tasks: Sequence[Task], momentum: float) -> None:
        """Move the teacher one step towards the student."""
        self.theta.reshard()
        if isinstance(self.teacher, FSDPModule):
            self.teacher.reshard()
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), self.module.parameters(), strict=True):
                mine.lerp_(theirs, 1 - momentum)

    @contextlib.contextmanager
    def without_fused_kernels(self) -> Iterator[None]:
        """Run attention and layer norm in unfused form."""
        with super().without_fused_kernels(), PlainLayerNorm():
            yield

    def first_block(self, parameters: Iterable[str]) -> int | None:
        """Return the lowest block with parameters in S; None if S reaches below the blocks or into the head."""
        blocks = [*self.backbone.blocks, self.backbone.norm]
        numbers = {id(p): i for i, block in enumerate(blocks) for p in block.parameters()}
        theta = dict(self.module.named_parameters())
        touched = [id(theta[name]) for name in parameters]
        if any(i not in numbers for i in touched):
            return None
        return min((numbers[i] for i in touched), default=len(self.backbone.blocks))
