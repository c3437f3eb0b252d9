"""An export has the files that servers and converters ask for, and they say what the learner is."""

from __future__ import annotations

import json

import gguf
import pytest
from models import tiny_model
from safetensors.torch import load_file
from worlds import tiny_recipe

from vpretrain import run_recipe

# vLLM, by its page "Integration with Hugging Face" (docs/design/huggingface_integration.md, as of commit 1ae67bae) and source:
# - vllm.transformers_utils.config: `get_config` reads config.json, whose `architectures` names the model class, and
#   `try_get_generation_config` reads generation_config.json, or derives one where there is none;
# - vllm.tokenizers.registry: `get_tokenizer` is AutoTokenizer.from_pretrained, which reads tokenizer.json,
#   tokenizer_config.json and chat_template.jinja;
# - vllm.model_executor.model_loader.default_loader (as of commit 00b5ad07): `*.safetensors` before `*.bin` and `*.pt`; of
#   several only those in model.safetensors.index.json, which a model in one file, as here, does not have.
# llama.cpp: convert_hf_to_gguf.py reads the tokenizer by AutoTokenizer as well; the `SpecialVocab` of its package gguf, which
# is called below, reads special tokens, merges and chat template from tokenizer.json, tokenizer_config.json,
# chat_template.jinja and config.json.
ASKED_FOR = {"model.safetensors", "config.json", "generation_config.json"}
ASKED_FOR |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": ["q_proj"]}])
def test_servers_and_converters_find_what_they_ask_for(tmp_path, tokenizer, lora):
    tokenizer.chat_template = TEMPLATE
    recipe = tiny_recipe(tmp_path, tokenizer, arm="one-hot", budget={"steps": 1}, learner={"lora": lora})
    run_recipe(recipe)
    exported = recipe.directory / "model"
    files = {path.name for path in exported.iterdir() if path.is_file()}
    assert files >= ASKED_FOR
    assert not {name for name in files if name.endswith((".bin", ".pt", ".pkl"))}
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    # Names of the plain architecture, without adapters.
    weights = load_file(exported / "model.safetensors")
    assert set(weights) <= set(tiny_model().state_dict())
    assert weights["model.embed_tokens.weight"].shape[0] == config["vocab_size"] >= len(tokenizer)
    # By llama.cpp's own reader.
    found = gguf.SpecialVocab(exported)
    assert found.chat_template == TEMPLATE
    assert found.special_token_ids["eos"] == tokenizer.eos_token_id
