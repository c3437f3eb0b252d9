"""One interface to vision transformers of several families, cut at any block.

Shapes: B images, T tokens, N patches, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, DINOv3ViTModel, IJepaModel
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer

from vpretrain.errors import UserError
from vpretrain.types import Keywords, Model

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
        embeddings: Any = model.embeddings
        if embeddings.mask_token is None:  # a release that ships none
            del embeddings.mask_token
            zeros = torch.zeros(1, 1, model.config.hidden_size)  # as at the start of DINOv2's own training
            embeddings.register_buffer("mask_token", zeros, persistent=False)  # so that exports do not change
        embeddings.mask_token.requires_grad_(False)  # DDP would wait for its gradient where no patch is hidden
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks."""
        if isinstance(self.model, Dinov2Model):
            return self.model.encoder.layer
        return self.model.model.layer if isinstance(self.model, DINOv3ViTModel) else self.model.layers

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
        return 0 if isinstance(self.model, IJepaModel) else 1 + getattr(self.model.config, "num_register_tokens", 0)

    @property
    def rotary(self) -> bool:
        """Whether positions are rotary: then tokens cannot be left out."""
        return isinstance(self.model, DINOv3ViTModel)

    def lower(
        self,
        pixels_B3HW: Float[Tensor, "B 3 H W"],
        stop: int,
        keep_BT: Int[Tensor, "B T"] | None = None,
        hidden_BN: Bool[Tensor, "B N"] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return the tokens that enter block `stop`, and rotary positions in families that have them.

        Args:
            pixels_B3HW: images.
            stop: number of a block.
            keep_BT: the tokens that are kept; None for all.
            hidden_BN: patches whose content the mask token replaces; None for none.
        """
        pixels = (pixels_B3HW - self.mean) / self.std
        kwargs: Keywords = {"interpolate_pos_encoding": True} if isinstance(self.model, IJepaModel) else {}
        if hidden_BN is not None:
            kwargs["bool_masked_pos"] = hidden_BN
        hidden = self.model.embeddings(pixels, **kwargs)
        rope = self.model.rope_embeddings(pixels) if self.rotary else None
        if keep_BT is not None:
            hidden = hidden.gather(1, keep_BT[:, :, None].expand(-1, -1, hidden.shape[-1]))
        return _through(self.blocks[:stop], hidden, rope), rope

    def upper(self, hidden: Tensor, rope: tuple[Tensor, Tensor] | None, start: int) -> Float[Tensor, "B T D"]:
        """Return the normalised tokens after the last block, given those that enter block `start`."""
        return self.norm(_through(self.blocks[start:], hidden, rope))

    def forward(
        self, pixels_B3HW: Float[Tensor, "B 3 H W"], hidden_BN: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return the normalised tokens of images; see `lower` for hidden patches."""
        return self.upper(*self.lower(pixels_B3HW, 0, hidden_BN=hidden_BN), 0)

    def summary(self, tokens_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """Return one vector per image: the class token, or the mean of the patch tokens if there is none."""
        return tokens_BTD[:, 0] if self.prefix else self.patch_mean(tokens_BTD)

    def patch_mean(self, tokens_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """Return the mean of the patch tokens of each image."""
        return tokens_BTD[:, self.prefix :].mean(1)

    def patches(self, height: int, width: int) -> tuple[int, int]:
        """Return the numbers of rows and columns of patches in an image."""
        return height // self.patch_size, width // self.patch_size

    def grid(self, tokens_BTD: Float[Tensor, "B T D"], height: int, width: int) -> Float[Tensor, "B D h w"]:
        """Arrange the patch tokens as an image."""
        return tokens_BTD[:, self.prefix :].transpose(1, 2).unflatten(2, self.patches(height, width))


def positions(height: int, width: int, channels: int) -> Float[Tensor, "T D"]:
    """Return sines and cosines of a grid's rows and columns, row by row; `channels` is a multiple of 4."""
    rates = 10_000 ** -(torch.arange(channels // 4) / (channels // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [axis.flatten()[:, None] * rates for axis in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def plain_blocks(layers: int, width: int, heads: int) -> nn.ModuleList:
    """Build the blocks of a small new transformer: DINOv2's, with layer scales that begin at 1."""
    sizes = Dinov2Config(hidden_size=width, num_attention_heads=heads, layerscale_value=1.0, attn_implementation="sdpa")
    return nn.ModuleList(Dinov2Layer(sizes) for _ in range(layers))


def _through(blocks: nn.ModuleList, hidden: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
    for block in blocks:
        hidden = block(hidden) if rope is None else block(hidden, position_embeddings=rope)
    return hidden
