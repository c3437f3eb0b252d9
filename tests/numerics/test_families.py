"""Further families of learners: what works, and what is refused with the remedy."""

from __future__ import annotations

import pytest
import torch
from models import FAMILIES, FURTHER_FAMILIES, tiny_model
from numerics.test_engines import gradient_by, setting
from worlds import tiny_recipe

from vpretrain.errors import UserError
from vpretrain.inspection.doctor import relative_errors
from vpretrain.language.assemble import assemble
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.run import run_recipe


@pytest.mark.parametrize("kind", ["dot", "cosine"])
@pytest.mark.parametrize("subset", ["last-1", "all"])
@pytest.mark.parametrize("family", FURTHER_FAMILIES)
def test_the_linear_engine_equals_double_backward(family, subset, kind):
    parts = setting(family, subset)
    ours, _ = gradient_by("jvp", kind, *parts)
    oracle, _ = gradient_by("double_backward", kind, *parts)
    errors = relative_errors(ours, oracle)
    assert max(errors.values()) <= 1e-4, errors


@pytest.mark.parametrize("family", [*FAMILIES, *FURTHER_FAMILIES])
def test_whether_documents_of_a_row_are_kept_apart(family):
    assert LanguageLearner(tiny_model(family)).keeps_documents_apart() is (family != "mamba")


@pytest.mark.usefixtures("judged_early")
def test_a_state_space_model_has_one_document_a_row(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer, "mamba")
    with pytest.raises(UserError, match=r"set stream\.packing=false"):
        assemble(recipe)
    stream = recipe.stream.model_copy(update={"packing": False})
    result = run_recipe(recipe.model_copy(update={"stream": stream}))
    assert result.meta_updates == (2 if result.mean_alpha else 1)  # the last only where the tilt was taken
    assert result.answer_nll > 0


@pytest.mark.usefixtures("judged_early")
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "qwen3-moe"])
def test_whole_runs(tmp_path, tokenizer, family):
    torch.manual_seed(0)
    result = run_recipe(tiny_recipe(tmp_path, tokenizer, family))
    assert result.meta_updates == (2 if result.mean_alpha else 1)  # the last only where the tilt was taken
