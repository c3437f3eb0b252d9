"""Vision transformers of several families behind one face, cut at any block. Shapes: B pictures, T tokens, D width."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Dinov2Model, DINOv3ViTModel, IJepaModel

from vpretrain.errors import UserError

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which all three families were trained with


class Backbone(nn.Module):
    """A Dinov2Model, DINOv3ViTModel or IJepaModel, fed with pixels in [0, 1].

    Args:
        model: the transformers model, which stays as it is: export saves it.

    Raises:
        UserError: another architecture.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        if not isinstance(model, Dinov2Model | DINOv3ViTModel | IJepaModel):
            raise UserError(
                f"{type(model).__name__} is not supported as a vision learner: use Dinov2Model, DINOv3ViTModel or IJepaModel"
            )
        self.model = model
        mask_token = getattr(model.embeddings, "mask_token", None)  # in the place of hidden patches: there are none
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
        """D."""
        return int(self.model.config.hidden_size)

    @property
    def patch_size(self) -> int:
        """Pixels a side of a patch."""
        return int(self.model.config.patch_size)

    @property
    def prefix(self) -> int:
        """Tokens before those of the patches: class token and registers."""
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
        """The tokens (of those to keep) that enter block `stop`, and the rotary positions of families that have them."""
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
        """The normed tokens after the last block, from those that enter block `start`."""
        for block in self.blocks[start:]:
            hidden = self._through(block, hidden, rope)
        return self.norm(hidden)

    def forward(self, pixels_B3HW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T D"]:
        """The normed tokens of pictures."""
        return self.upper(*self.lower(pixels_B3HW, 0), 0)

    def summary(self, tokens_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """One vector a picture: the class token, or the mean of the patches where there is none."""
        return tokens_BTD[:, 0] if self.prefix else tokens_BTD.mean(1)

    def grid(self, tokens_BTD: Float[Tensor, "B T D"], height: int, width: int) -> Float[Tensor, "B D h w"]:
        """The patches' tokens as a picture."""
        patches = tokens_BTD[:, self.prefix :].transpose(1, 2)
        return patches.unflatten(2, (height // self.patch_size, width // self.patch_size))

    def _through(self, block: nn.Module, hidden: Tensor, rope: Any) -> Tensor:
        return block(hidden) if rope is None else block(hidden, position_embeddings=rope)


def positions(height: int, width: int, channels: int) -> Float[Tensor, "T D"]:
    """Sines and cosines of a grid's rows and columns, row by row; `channels` is a multiple of 4."""
    rates = 10_000 ** -(torch.arange(channels // 4) / (channels // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [axis.flatten()[:, None] * rates for axis in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
