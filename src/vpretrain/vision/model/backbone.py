"""One interface to vision transformers of several families, cut at any block. Shapes: B images, T tokens, D width."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Dinov2Model, DINOv3ViTModel, IJepaModel

from vpretrain.errors import UserError
from vpretrain.types import Model

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's; all three families were trained with them


class Backbone(nn.Module):
    """A Dinov2Model, DINOv3ViTModel or IJepaModel, fed with pixels in [0, 1].

    Args:
        model: the transformers model, kept unchanged because export saves it.

    Raises:
        UserError: the model has another architecture.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        if not isinstance(model, Dinov2Model | DINOv3ViTModel | IJepaModel):
            raise UserError(
                f"{type(model).__name__} is not supported as a vision learner: use Dinov2Model, DINOv3ViTModel or IJepaModel"
            )
        self.model = model
        mask_token = getattr(model.embeddings, "mask_token", None)  # replaces hidden patches, but no patches are hidden
        if mask_token is not None:
            mask_token.requires_grad_(False)  # DDP would wait for its gradient
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks."""
        match self.model:
            case Dinov2Model():
                return self.model.encoder.layer
            case DINOv3ViTModel():
                return self.model.model.layer
            case _:
                return self.model.layers

    @property
    def norm(self) -> nn.Module:
        """The norm after the last block."""
        return self.model.norm if isinstance(self.model, DINOv3ViTModel) else self.model.layernorm

    @property
    def width(self) -> int:
        """The width D."""
        return int(self.model.config.hidden_size)

    @property
    def patch_size(self) -> int:
        """The side of a patch, in pixels."""
        return int(self.model.config.patch_size)

    @property
    def prefix(self) -> int:
        """The number of tokens before the patch tokens: class token and registers."""
        if isinstance(self.model, IJepaModel):
            return 0
        return 1 + getattr(self.model.config, "num_register_tokens", 0)

    @property
    def rotary(self) -> bool:
        """Whether positions are rotary: then tokens cannot be left out."""
        return isinstance(self.model, DINOv3ViTModel)

    def lower(
        self, pixels_B3HW: Float[Tensor, "B 3 H W"], stop: int, keep_BT: Int[Tensor, "B T"] | None = None
    ) -> tuple[Tensor, Any]:
        """Return the tokens (those in `keep_BT`) that enter block `stop`, and rotary positions in families that have them."""
        pixels = (pixels_B3HW - self.mean) / self.std
        rope = None
        match self.model:
            case Dinov2Model():
                hidden = self.model.embeddings(pixels)
            case DINOv3ViTModel():
                hidden, rope = self.model.embeddings(pixels), self.model.rope_embeddings(pixels)
            case _:
                hidden = self.model.embeddings(pixels, interpolate_pos_encoding=True)
        if keep_BT is not None:
            hidden = hidden.gather(1, keep_BT[:, :, None].expand(-1, -1, hidden.shape[-1]))
        for block in self.blocks[:stop]:
            hidden = self._through(block, hidden, rope)
        return hidden, rope

    def upper(self, hidden: Tensor, rope: Any, start: int) -> Float[Tensor, "B T D"]:
        """Return the normalised tokens after the last block, given those that enter block `start`."""
        for block in self.blocks[start:]:
            hidden = self._through(block, hidden, rope)
        return self.norm(hidden)

    def forward(self, pixels_B3HW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T D"]:
        """Return the normalised tokens of images."""
        return self.upper(*self.lower(pixels_B3HW, 0), 0)

    def summary(self, tokens_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """Return one vector per image: the class token, or the mean of the patch tokens if there is none."""
        return tokens_BTD[:, 0] if self.prefix else tokens_BTD.mean(1)

    def grid(self, tokens_BTD: Float[Tensor, "B T D"], height: int, width: int) -> Float[Tensor, "B D h w"]:
        """Arrange the patch tokens as an image."""
        patches = tokens_BTD[:, self.prefix :].transpose(1, 2)
        return patches.unflatten(2, (height // self.patch_size, width // self.patch_size))

    def _through(self, block: nn.Module, hidden: Tensor, rope: Any) -> Tensor:
        return block(hidden) if rope is None else block(hidden, position_embeddings=rope)


def positions(height: int, width: int, channels: int) -> Float[Tensor, "T D"]:
    """Return sines and cosines of a grid's rows and columns, row by row; `channels` is a multiple of 4."""
    rates = 10_000 ** -(torch.arange(channels // 4) / (channels // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [axis.flatten()[:, None] * rates for axis in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
