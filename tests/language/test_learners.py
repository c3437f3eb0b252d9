"""Surprises of learners: rows without a token, windows, adapters on tied heads, vision towers, processors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from models import FAMILIES, FURTHER_FAMILIES, OTHER_SHAPES, random_batch, tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    Gemma3Config,
    SiglipVisionConfig,
    T5Config,
)
from worlds import recipe_data, tiny_recipe, write_jsonl

from vpretrain import UserError, run_recipe
from vpretrain.cli.parser import main
from vpretrain.files import read_lines
from vpretrain.language.assemble import assemble, load_learner
from vpretrain.language.config import LearnerConfig
from vpretrain.language.data.example import Example
from vpretrain.language.evaluation.solve import solve
from vpretrain.language.inspection.check import check
from vpretrain.language.inspection.gate import gate
from vpretrain.language.inspection.steering import steering
from vpretrain.language.inspection.tokens import tokens
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.language.model.load import load_model, tokens_of
from vpretrain.language.task.construction import OneHot
from vpretrain.recipe import parse_recipe

EVERY = [*FAMILIES, *FURTHER_FAMILIES, *OTHER_SHAPES]


# Rows of the embedding that stand for no token.


@pytest.mark.parametrize("arm", ["uniform", "self-distillation", "v-paper"])
def test_no_target_has_mass_on_a_row_beyond_the_tokenizer(tmp_path, tokenizer, arm):
    """Though the learner finds these rows the likeliest."""
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm=arm))
    embedding_VD = parts.learner.model.get_output_embeddings().weight
    assert tokens_of(tokenizer) == len(tokenizer) < len(embedding_VD)
    with torch.no_grad():
        embedding_VD[len(tokenizer) :] *= 50
    batch = parts.stream.next()[0]
    state = parts.learner.forward(batch).detach()
    assert float(state.logits.log_p_NK.exp().sum(-1).min()) < 0.5  # the rest is on those rows
    target = parts.construction.targets(batch, state).target
    assert int(target.candidates_NK.max()) < len(tokenizer)
    torch.testing.assert_close(target.q_NK.sum(-1), torch.ones(len(target.q_NK)))


@pytest.mark.parametrize("arm", ["v", "v-learned"])
def test_no_tilt_moves_mass_to_a_row_beyond_the_tokenizer(tmp_path, tokenizer, arm):
    parts = assemble(tiny_recipe(tmp_path, tokenizer, arm=arm, value={"strength": 1.0}))
    with torch.no_grad():
        parts.learner.model.get_output_embeddings().weight[len(tokenizer) :] *= 50
    batch = parts.stream.next()[0]
    with parts.meta.dry_run([batch]):
        found = steering(parts, batch)
    assert float(found.values_NK.abs().max()) > 0
    assert float(found.q_NK[:, 0].min()) < 0.99  # the tilt is taken
    assert int(found.candidates_NK.max()) < len(tokenizer)
    torch.testing.assert_close(found.q_NK.sum(-1), torch.ones(len(found.q_NK)))


def test_no_row_beyond_the_tokenizer_is_shown_as_a_token(tmp_path, tokenizer, capsys):
    """By gate, inspect and the report, though the learner finds these rows the likeliest."""
    recipe = tiny_recipe(tmp_path, tokenizer, value={"strength": 1.0})
    model = AutoModelForCausalLM.from_pretrained(recipe.learner.name)
    with torch.no_grad():
        model.get_output_embeddings().weight[len(tokenizer) :] *= 50
    model.save_pretrained(recipe.learner.name)
    run_recipe(recipe)
    assert gate(recipe.directory, 2)["targets"] > 0
    shown = [token for row in tokens(recipe.directory)["rows"] for token in row["tokens"]]
    names = {name for token in shown for name, *_ in token.get("candidates", [])}
    known = {tokenizer.decode([token]) for token in range(len(tokenizer))}
    assert len(names) > 1
    assert names <= known
    capsys.readouterr()
    assert main(["inspect", str(recipe.directory / "recipe.yaml"), "--positions", "8"]) == 0
    told = capsys.readouterr().out
    assert "(true)" in told
    assert "''" not in told  # what an id without a token decodes to
    assert tokenizer.decode([len(tokenizer)]) == ""


def test_more_candidates_than_tokens_are_refused(tmp_path, tokenizer):
    most = len(tokenizer)
    recipe = tiny_recipe(tmp_path, tokenizer, designer={"top_k": most + 1})
    with pytest.raises(UserError, match=rf"designer\.top_k={most + 1} is above the vocabulary of {most}"):
        assemble(recipe)


# Attention and padding.


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_a_sliding_window_stays_within_its_document(family):
    config = tiny_model(family).config
    config.sliding_window = 4
    torch.manual_seed(0)
    learner = LanguageLearner(AutoModelForCausalLM.from_config(config).eval())
    assert learner.keeps_documents_apart()
    batch = random_batch(2, 24)
    alone = torch.cat([learner.nll(document) for document in batch.apart()])
    torch.testing.assert_close(learner.nll(batch), alone, rtol=1e-4, atol=1e-5)
    wide = LanguageLearner(tiny_model(family).eval())
    wide.model.load_state_dict(learner.model.state_dict())
    assert not torch.allclose(
        wide.nll(batch), alone, rtol=1e-4, atol=1e-5
    )  # the window reaches less far than the document


@pytest.mark.parametrize("family", EVERY)
def test_problems_decoded_together_have_the_solutions_of_problems_decoded_alone(tokenizer, family):
    learner = LanguageLearner(tiny_model(family).eval())
    prompts = ["1", "a longer problem: 2 + 2 = ", "3 + 3 ?"]
    examples = [Example(prompt, "", "sums", prompt, "", {}) for prompt in prompts]
    with torch.no_grad():
        alone = [solve(learner, tokenizer, [example], 8)[0] for example in examples]
        assert solve(learner, tokenizer, examples, 8) == alone
    assert len({text for (text,) in alone}) > 1


def test_an_evaluation_depends_on_neither_batch_size_nor_order(tmp_path, tokenizer):
    def evaluated(name, order, batch_size):
        data = recipe_data(tmp_path, tokenizer)
        source = data["evaluation"]["sources"][0]
        rows = read_lines(Path(source["path"]))
        sources = [source | {"path": write_jsonl(tmp_path / f"{name}.jsonl", order(rows))}]
        size = {"problems": len(rows), "pass_at_1_problems": len(rows), "samples": 2, "batch_size": batch_size}
        data["evaluation"] |= {"sources": sources, "retention_tokens": 480, **size}
        return assemble(parse_recipe(data)).evaluate()

    first = evaluated("first", list, 4)
    problems = {problem["key"]: problem for problem in first["problems"]}
    for name, order, size in (("one", list, 1), ("all", list, 10), ("reversed", lambda rows: rows[::-1], 3)):
        other = evaluated(name, order, size)
        for figure in ("answer_nll", "answer_nll_tempered", "answer_top_1", "pass_at_1", "retention_nll"):
            assert other[figure] == pytest.approx(first[figure], abs=1e-5), figure
        assert other["pass_at_k"] == first["pass_at_k"]
        assert {problem["key"] for problem in other["problems"]} == problems.keys()
        for problem in other["problems"]:
            assert problem == pytest.approx(problems[problem["key"]], abs=1e-5)


# Adapters.


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama-untied", {"modules_to_save": ["lm_head"]}),
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("llama-untied", {"modules_to_save": ["embed_tokens"]}),
        ("llama", {"modules_to_save": ["embed_tokens"]}),
        ("llama", {"target_modules": ["q_proj", "lm_head"]}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    ],
)
def test_loss_and_gradient_are_the_models_own_whatever_peft_has_replaced(family, settings):
    model = get_peft_model(tiny_model(family), LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **settings})).eval()
    torch.manual_seed(1)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    learner, batch = LanguageLearner(model), random_batch(1, 12).apart()[0]
    state = learner.forward(batch)
    ours = learner.loss(state, OneHot().targets(batch, state.detach()))
    logits = model(input_ids=batch.ids_BT).logits[0, :-1]
    theirs = F.cross_entropy(logits[batch.predicts_BT[0, :-1]], batch.targets_N)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    found, expected = (torch.autograd.grad(loss, list(trained.values()), allow_unused=True) for loss in (ours, theirs))
    for name, one, other in zip(trained, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("end", ["lm_head", "embed_tokens"])
def test_a_tied_head_with_an_adapter_is_untied_when_it_is_exported(tmp_path, tokenizer, end):
    lora = {"r": 2, "dropout": 0.0, "target_modules": ["q_proj", end]}
    recipe = tiny_recipe(tmp_path, tokenizer, arm="one-hot", learner={"lora": lora}, optimizer={"lr": 1e-2})
    run_recipe(recipe)
    ids = torch.randint(1, 50, (2, 12))
    base = AutoModelForCausalLM.from_pretrained(recipe.learner.name, dtype=torch.float32)
    before = base.eval()(ids).logits
    expected = PeftModel.from_pretrained(base, recipe.directory / "model" / "adapter").eval()(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(recipe.directory / "model", dtype=torch.float32).eval()
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, expected, rtol=1e-4, atol=1e-5)
    assert not merged.config.tie_word_embeddings


# Learners that are more, or other, than a causal language model.


@pytest.mark.parametrize("config", [T5Config(), BartConfig()], ids=["t5", "bart"])
def test_an_encoder_decoder_is_refused_before_its_decoder_is_loaded_alone(tmp_path, config):
    config.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=rf"is an encoder-decoder \({config.model_type}\): give a causal language model"
    ):
        load_model(LearnerConfig(name=str(tmp_path)))


@pytest.fixture
def vision_language(tmp_path, tokenizer):
    """A directory with a Gemma 3 whose vision tower has more blocks than its text model."""
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4}
    config = Gemma3Config(
        text_config=tiny_model("gemma3").config,
        vision_config=SiglipVisionConfig(**vision, image_size=32, patch_size=8),
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    directory = tmp_path / "vision-language"
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": ["q_proj", "down_proj", "fc1"]}])
def test_of_a_vision_language_model_the_text_model_alone_is_trained(tmp_path, tokenizer, vision_language, lora):
    learner = {"name": vision_language, "lora": lora}
    recipe = tiny_recipe(tmp_path, tokenizer, learner=learner, optimizer={"lr": 1e-2})
    list(check(recipe))
    parts = assemble(recipe)
    trained = [name for name, _ in parts.learner.named_parameters()]
    assert all("language_model" in name for name in trained)
    assert parts.learner.last_mlp is not None
    assert all(".language_model.layers.2.mlp." in name for name in parts.learner.last_mlp.names)
    run_recipe(recipe)
    before, after = (
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        for directory in (vision_language, recipe.directory / "model")
    )
    assert type(after) is type(before)
    moved = {name for name, p in after.named_parameters() if not torch.equal(p, before.get_parameter(name))}
    assert moved
    assert all("language_model" in name for name in moved)


@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": ["q_proj"]}])
def test_an_export_keeps_chat_template_generation_config_and_processor(tmp_path, tokenizer, lora):
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    changes = {"arm": "one-hot", "budget": {"steps": 1}, "learner": {"lora": lora}}
    recipe = tiny_recipe(tmp_path, tokenizer, **changes)
    learner, exported = Path(recipe.learner.name), recipe.directory / "model"
    # As published: a temperature without sampling, which transformers warns of.
    generation = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": [0, 2], "transformers_version": "4.40.0"}
    (learner / "generation_config.json").write_text(json.dumps(generation))
    (learner / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor", "size": 896}')
    run_recipe(recipe)
    assert AutoTokenizer.from_pretrained(exported).chat_template == tokenizer.chat_template
    kept = json.loads((exported / "generation_config.json").read_text())
    assert {name: kept[name] for name in ("temperature", "top_p", "eos_token_id")} == {
        name: generation[name] for name in ("temperature", "top_p", "eos_token_id")
    }
    file = "preprocessor_config.json"
    assert (exported / file).read_bytes() == (learner / file).read_bytes()


def test_an_export_outlives_the_directory_of_its_learner(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, arm="one-hot")
    _, export = load_learner(recipe)
    shutil.rmtree(recipe.learner.name)
    export(tmp_path / "exported")
    AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
