"""An export has the files that servers and converters ask for, and they say what the learner is."""

from __future__ import annotations

import json

import gguf
import pytest
from models import tiny_model
from safetensors.torch import load_file
from worlds import tiny_recipe

from vpretrain import run_recipe

# vLLM: weights, configuration, tokenizer, sampling defaults and chat template. llama.cpp's convert_hf_to_gguf.py reads the
# same, the tokenizer from tokenizer.json.
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
