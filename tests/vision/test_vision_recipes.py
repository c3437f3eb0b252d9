"""The paper's vision recipes have the settings of its Table 11 and its protocol (App G)."""

from __future__ import annotations

from pathlib import Path

import pytest

from vpretrain import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
ADE20K, NYUV2 = "data/ADEChallengeData2016", "data/nyu_depth_v2_labeled.mat"
# learner rate, batch, r, images of a meta update, blocks in S, designer, its rate, keep, sparsity, smoothness, both weights
TABLE_11 = {
    "dinov3-vitb-ade20k": (4.15e-6, 256, 4, 32, 2, "unet", 1.54e-4, 0.6, 0.131, 0.144, 1, 8),
    "dinov3-vitl-ade20k": (4.50e-5, 50, 4, 16, 4, "unet", 2.17e-4, 0.5, 0.196, 0.0399, 4, 1),
    "dinov3-vitb-nyuv2": (8.58e-6, 256, 8, 64, 3, "dit", 2.21e-4, 0.4, 0.111, 0.0417, 16, 2),
    "dinov3-vitl-nyuv2": (1.94e-6, 50, 2, 32, 4, "unet", 8.03e-4, 0.4, 0.401, 0.159, 32, 16),
}
DINO = {**TABLE_11, "dinov3-vitb-multitask": TABLE_11["dinov3-vitb-ade20k"]}
ALL = [*DINO, "ijepa-vith-ade20k", "ijepa-vith-nyuv2"]


def recipe_of(name):
    return load_recipe(RECIPES / f"{name}.yaml")


def ranges(sources):
    """Each source's set, split and part."""
    return [(source.ade20k or source.nyuv2, source.split, source.skip, source.limit) for source in sources]


def test_no_recipe_of_the_paper_is_left_out():
    assert sorted(ALL) == sorted(path.stem for kind in ("dinov3", "ijepa") for path in RECIPES.glob(f"{kind}*.yaml"))


@pytest.mark.parametrize("name", DINO)
def test_the_settings_of_table_11(name):
    recipe = recipe_of(name)
    value, designer, feedback = recipe.effective_value, recipe.designer, recipe.feedback
    assert recipe.arm == "v-paper"
    assert (value.align, value.metric) == ("dot", "identity")
    assert (
        recipe.optimizer.lr,
        recipe.stream.batch_size * recipe.stream.accumulation,
        value.every_steps,
        value.batch_size,
        int(value.subset.removeprefix("last-")),
        designer.kind,
        designer.lr,
        designer.keep,
        designer.sparsity,
        designer.smoothness,
        feedback.segmentation,
        feedback.depth,
    ) == DINO[name]
    assert recipe.learner.name == f"facebook/dinov3-{name.split('-')[1]}16-pretrain-lvd1689m"


@pytest.mark.parametrize("name", DINO)
def test_dinos_views_head_and_teacher(name):
    recipe = recipe_of(name)
    stream, dino = recipe.stream, recipe.learner.dino
    assert (stream.global_views, stream.global_size, stream.local_views, stream.local_size) == (2, 224, 6, 96)
    assert stream.colour
    assert (dino.outputs, dino.student_temperature, dino.teacher_temperature) == (8192, 0.1, 0.04)
    assert (dino.ema, dino.centre_momentum, dino.patch_loss) == (0.996, 0.9, 0.0)


@pytest.mark.parametrize("name", ALL)
def test_the_course_of_a_run(name):
    recipe = recipe_of(name)
    optimizer = recipe.optimizer
    assert (recipe.learner.precision, recipe.learner.objective) == ("bf16", "ijepa" if "ijepa" in name else "dino")
    assert recipe.budget.steps == 20_000
    assert optimizer.warmup_fraction * recipe.budget.steps == pytest.approx(1000)
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.schedule) == (0.04, 1.0, "cosine")


@pytest.mark.parametrize("name", ALL)
def test_the_pools_of_the_feedback(name):
    feedback = recipe_of(name).feedback
    heads = [(ADE20K, "training", 0, 2000), (NYUV2, "train", 0, 512)]
    meta = [(ADE20K, "training", 2000, 512), (NYUV2, "train", 512, 128)]
    if name in DINO:
        assert (ranges(feedback.heads), ranges(feedback.meta)) == (heads, meta)
    else:  # one set each
        which = int("nyuv2" in name)
        assert (ranges(feedback.heads), ranges(feedback.meta)) == ([heads[which]], [meta[which]])


@pytest.mark.parametrize("name", ALL)
def test_the_evaluation(name):
    recipe = recipe_of(name)
    evaluation = recipe.evaluation
    ade, nyu = (any(word in name for word in (kind, "multitask")) for kind in ("ade20k", "nyuv2"))
    assert ranges(evaluation.train) == [
        *([(ADE20K, "training", 0, None)] if ade else []), *([(NYUV2, "train", 0, None)] if nyu else []),
    ]  # fmt: skip
    assert ranges(evaluation.test) == [
        *([(ADE20K, "validation", 0, None)] if ade else []), *([(NYUV2, "test", 0, None)] if nyu else []),
    ]  # fmt: skip
    of_nyu = [s for sources in recipe.roles.values() for s in sources if s.nyuv2 is not None]
    assert all(source.eigen_crop and source.splits == "data/splits.mat" for source in of_nyu)
    patch = 14 if "ijepa" in name else 16  # a size is the next multiple of the patch, if it is none
    if ade:
        assert evaluation.shape == {14: (504, 504), 16: (512, 512)}[patch]
    if nyu:
        assert evaluation.depth_shape == {14: (504, 672), 16: (480, 640)}[patch]
    assert evaluation.probe_steps == 20_000
    if ade:
        assert evaluation.probe_rate("segmentation") == 5e-4
    if nyu:
        assert evaluation.probe_rate("depth") == 1e-3


@pytest.mark.parametrize("name", ALL)
def test_accuracy_and_retrieval_are_measured_where_the_documentation_says(name):
    evaluation = recipe_of(name).evaluation
    assert (evaluation.classes is not None) == name.endswith("ade20k")
    assert (len(evaluation.retrieval.paths) == 2) == (name == "dinov3-vitl-ade20k")
