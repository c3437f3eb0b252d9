"""Probes and metrics: planted labels are recovered, figures equal plain formulas; scenes are what they say."""

from __future__ import annotations

import contextlib
import math
from functools import partial

import pytest
import torch
from models import tiny_vision_model
from PIL import Image
from worlds import vision_recipe

from vpretrain.order import Shuffled
from vpretrain.vision.assemble import assemble
from vpretrain.vision.config import DinoConfig, EvaluationConfig
from vpretrain.vision.data.scenes import CLASSES, rendered
from vpretrain.vision.evaluation import dense
from vpretrain.vision.evaluation.classification import classification_accuracy
from vpretrain.vision.evaluation.dense import DenseMetrics, depth_errors, depth_metrics, image_iou
from vpretrain.vision.evaluation.evaluate import Evaluation
from vpretrain.vision.evaluation.features import WholeImages, central_part, patch_mean, whole_images
from vpretrain.vision.evaluation.retrieval import scene_map
from vpretrain.vision.model.backbone import Backbone
from vpretrain.vision.model.batch import IGNORED, Labelled
from vpretrain.vision.model.dino import DinoLearner
from vpretrain.vision.model.heads import (
    dense_head,
    depth_loss,
    pixel_outputs,
    predicted_depth,
    refitted_bias,
    segmentation_loss,
)


def test_scenes_follow_from_their_seed_and_hold_what_they_say():
    one = rendered(seed=11, scenes=6, cameras=2, size=48)
    assert one["image_N3HW"].shape == (12, 3, 48, 48)
    assert one["scene_N"].tolist() == [i for i in range(6) for _ in range(2)]
    assert int(one["label_NHW"].max()) < len(CLASSES)
    assert float(one["depth_NHW"].min()) > 0.1
    other = rendered(seed=12, scenes=6, cameras=2, size=48)
    assert not torch.equal(one["image_N3HW"], other["image_N3HW"])
    more = rendered(seed=11, scenes=7, cameras=2, size=48)
    assert torch.equal(one["image_N3HW"], more["image_N3HW"][:12])
    main = [(one["label_NHW"][n] == one["category_N"][n]).any() for n in range(12)]
    assert sum(map(bool, main)) >= 11  # the main object may be hidden now and then


def test_probes_recover_planted_labels(tmp_path):
    recipe = vision_recipe(tmp_path)
    evaluation = Evaluation(EvaluationConfig(**recipe.evaluation.model_dump() | {"probe_steps": 300, "probe_lr": 1e-2}))
    learner = DinoLearner(Backbone(tiny_vision_model()), DinoConfig(outputs=8, hidden=8, bottleneck=8))
    for pool in (*evaluation.train.values(), evaluation.test):  # labels that a linear head on the features can give
        pictures = pool[range(len(pool))]
        grid = learner.backbone.grid(learner.features(pictures.image_B3HW.float() / 255), 32, 32)
        fine = torch.nn.functional.interpolate(grid, (32, 32), mode="bilinear")
        labels, depths = (fine[:, 0] > fine[:, 1]).byte(), (2 + 0.5 * fine[:, 2].tanh()).half()
        pool._kept = {n: (pictures.image_B3HW[n], labels[n], depths[n]) for n in range(len(pool))}
        pool.category_N.copy_((grid.mean((2, 3))[:, 0] > grid.mean()).long())
    figures = evaluation(learner)
    assert figures["miou"] > 0.7
    assert figures["depth_delta_1"] > 0.9
    assert figures["depth_rmse"] < 0.25
    assert len(figures["test_images"]) == 12


def test_iou_ignores_what_has_no_label():
    label = torch.tensor([[[0, 0, 1, IGNORED]]])
    predicted = torch.tensor([[[0, 1, 1, 5]]])
    assert image_iou(predicted[0], label[0]) == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_what_is_predicted_where_there_is_no_label_counts_against_no_class():
    label = torch.tensor([[0, 0, 1, IGNORED]])
    found = [image_iou(torch.tensor([[0, 1, 1, guess]]), label) for guess in (0, 1, 5)]
    assert found == pytest.approx([1 / 2] * 3)


def test_depth_metrics_are_the_usual_ones():
    true = torch.tensor([[[1.0, 2.0, 4.0, 0.0, 20.0]], [[5.0, 0.0, 0.0, 0.0, 0.0]]])
    ours = torch.tensor([[[1.1, 3.0, 4.0, 9.0, 9.0]], [[5.5, 1.0, 1.0, 1.0, 1.0]]])
    errors = torch.stack([depth_errors(*image) for image in zip(ours, true, strict=True)])
    squares = [(0.01 + 1.0) / 3, 0.25]
    figures = depth_metrics(errors)
    assert figures["depth_rmse"] == pytest.approx(((3 * squares[0] + squares[1]) / 4) ** 0.5, rel=1e-4)
    assert figures["depth_rmse_of_images"] == pytest.approx((squares[0] ** 0.5 + squares[1] ** 0.5) / 2, rel=1e-4)
    assert figures["depth_abs_rel"] == pytest.approx((0.1 + 0.5 + 0.1) / 4, rel=1e-4)
    assert figures["depth_delta_1"] == pytest.approx(3 / 4)


def test_retrieval_finds_the_other_picture_of_a_scene():
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    assert scene_map(features, torch.tensor([0, 0, 1, 1])) == 1.0
    assert scene_map(features, torch.tensor([0, 1, 0, 1])) < 0.6
    assert scene_map(features, torch.arange(4)) is None


def test_the_classifier_finds_what_a_linear_one_can_and_no_more():
    torch.manual_seed(0)
    x, y = torch.randn(80, 4), torch.arange(80) % 2
    x[:, 0] += 4 * y
    assert classification_accuracy(x[:60], y[:60], x[60:], y[60:], 50, torch.device("cpu")) > 0.9
    corners = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]).repeat(20, 1)
    exclusive = torch.tensor([0, 0, 1, 1]).repeat(20)
    assert classification_accuracy(corners, exclusive, corners, exclusive, 50, torch.device("cpu")) <= 0.75


def test_the_classifier_is_fitted_by_sgd_with_momentum_in_batches_of_1024(monkeypatch):
    fitted = []

    class Watched(torch.optim.SGD):
        def __init__(self, parameters, **settings):
            super().__init__(parameters, **settings)
            fitted.extend(self.param_groups[0]["params"])

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    generator, steps = torch.Generator().manual_seed(4), 6
    x, y = torch.randn(1100, 5, generator=generator), torch.arange(1100) % 3
    classification_accuracy(x, y, x, y, steps, torch.device("cpu"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
    order, speeds = Shuffled(1100, "classes"), [torch.zeros_like(p) for p in head.parameters()]
    for step in range(steps):
        rows = [order[1024 * step + i] for i in range(1024)]
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(head(x[rows]), y[rows]), [*head.parameters()])
        rate = 0.1 * (1 + math.cos(math.pi * step / steps)) / 2
        for p, speed, g in zip(head.parameters(), speeds, gradients, strict=True):
            speed.mul_(0.9).add_(g)
            p.data.sub_(rate * speed)
    for ours, expected in zip(fitted, head.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_a_dense_probe_is_fitted_as_in_the_paper(tmp_path):
    """Batches of 8, AdamW with a weight decay of 0.05, gradients cut to a norm of 1, 5 % of warm-up and a cosine."""
    steps, rate = 40, 0.02
    evaluation = {"probe_steps": steps, "probe_lr": rate / 10, "depth_probe_lr": rate}
    recipe = vision_recipe(tmp_path, evaluation=evaluation)
    (probes,) = Evaluation(recipe.evaluation)._probes()
    learner = DinoLearner(Backbone(tiny_vision_model()), DinoConfig(outputs=8, hidden=8, bottleneck=8))
    width, images = learner.backbone.width, probes.train[range(12)]
    far = torch.full_like(images.depth_BHW, 9.0)
    probes.train._kept = {n: (images.image_B3HW[n], images.label_BHW[n], far[n]) for n in range(12)}
    features = torch.randn(12, width, 4, 4, generator=torch.Generator().manual_seed(5))
    found = probes._fit("depth", learner, lambda rows, of: features[list(rows)], lambda parts: None)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = torch.nn.Sequential(torch.nn.BatchNorm2d(width), torch.nn.Conv2d(width, 1, 1))
    optimizer = torch.optim.AdamW(head.parameters(), weight_decay=0.05)
    order, norms = Shuffled(12, "depth"), []
    for step in range(steps):
        rows = [order[8 * step + i] for i in range(8)]
        raw = torch.nn.functional.interpolate(head(features[rows]), (32, 32), mode="bilinear")
        optimizer.zero_grad()
        (torch.nn.functional.softplus(raw) - 9).square().mean().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)))
        optimizer.param_groups[0]["lr"] = rate * (0.5 if step == 0 else (1 + math.cos(math.pi * step / steps)) / 2)
        optimizer.step()
    assert norms[0] > 1
    for ours, expected in zip(found.state_dict().values(), head.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_probes_are_fitted_and_tested_in_the_learners_precision(tmp_path, monkeypatch, precision, dtype):
    fitting, testing = [], []

    def watched(*arguments):
        head = dense_head(*arguments)
        head.register_forward_hook(
            lambda head, inputs, output: (fitting if head.training else testing).append(output.dtype)
        )
        assert all(p.dtype == torch.float32 for p in head.parameters())
        return head

    monkeypatch.setattr(dense, "dense_head", watched)
    parts = assemble(vision_recipe(tmp_path, learner={"precision": precision}))
    parts.evaluate()
    assert fitting == [dtype] * 20  # two heads, 10 steps each
    assert testing
    assert set(testing) == {dtype}


def test_features_that_are_not_kept_give_the_same_probes(tmp_path, monkeypatch):
    recipe = vision_recipe(tmp_path)
    learner = DinoLearner(Backbone(tiny_vision_model()), DinoConfig(outputs=8, hidden=8, bottleneck=8))
    kept = Evaluation(recipe.evaluation)(learner)
    monkeypatch.setattr(dense, "_KEPT_BYTES", 0)
    again = Evaluation(recipe.evaluation)(learner)
    assert again["miou"] == pytest.approx(kept["miou"], abs=1e-3)
    assert again["depth_rmse"] == pytest.approx(kept["depth_rmse"], rel=1e-3)


def test_a_probes_prediction_for_an_image_does_not_depend_on_the_others_of_its_batch(tmp_path):
    (probes,) = Evaluation(vision_recipe(tmp_path).evaluation)._probes()
    learner = DinoLearner(Backbone(tiny_vision_model()), DinoConfig(outputs=8, hidden=8, bottleneck=8))
    grids, _ = probes._grids(learner, (32, 32), lambda parts: None)
    head = probes._fit("depth", learner, grids, lambda parts: None)
    grid = grids(range(4), probes.train[range(4)])
    torch.testing.assert_close(head(grid)[:1], head(grid[:1]))


@pytest.mark.parametrize(("batch_size", "swapped"), [(1, False), (5, False), (16, True), (3, True)])
def test_figures_depend_on_neither_the_batch_size_nor_the_order_of_the_images(tmp_path, batch_size, swapped):
    recipe = vision_recipe(tmp_path)
    learner = DinoLearner(Backbone(tiny_vision_model()), DinoConfig(outputs=8, hidden=8, bottleneck=8))
    small, large = {"scenes": 4, "seed": 5, "size": 32, "cameras": 2}, {"scenes": 3, "seed": 6, "size": 40}

    def probed(batch_size, *test):
        config = EvaluationConfig(**recipe.evaluation.model_dump() | {"test": list(test), "batch_size": batch_size})
        (probes,) = Evaluation(config)._probes()
        return probes(learner, lambda parts: None)

    expected = probed(16, small, large)
    order = [*range(8, 11), *range(8)] if swapped else list(range(11))
    found = probed(batch_size, large, small) if swapped else probed(batch_size, small, large)
    for ours, theirs in (
        (found.train_ND, expected.train_ND),
        (found.test_ND, expected.test_ND[order]),
        (found.test_mean_ND, expected.test_mean_ND[order]),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for number, before in enumerate(order):
        assert found.images[number]["depth_rmse"] == pytest.approx(expected.images[before]["depth_rmse"], rel=1e-5)
    for name in ("depth_rmse", "depth_rmse_of_images", "depth_abs_rel"):
        assert found.together[name] == pytest.approx(expected.together[name], rel=1e-5)
    # These count pixels: one that lies on a border may fall to either side.
    for name in ("miou", "depth_delta_1"):
        assert found.together[name] == pytest.approx(expected.together[name], abs=0.01)


def test_depth_may_have_a_size_of_its_own(tmp_path):
    recipe = vision_recipe(tmp_path)
    learner = DinoLearner(Backbone(tiny_vision_model()), DinoConfig(outputs=8, hidden=8, bottleneck=8))

    def figures(**sizes):
        return Evaluation(EvaluationConfig(**recipe.evaluation.model_dump() | sizes))(learner)

    small, large, both = figures(), figures(size=40), figures(depth_size=40)
    assert both["miou"] == small["miou"] != large["miou"]
    assert both["depth_rmse"] == large["depth_rmse"] != small["depth_rmse"]
    assert both["accuracy"] == small["accuracy"]
    assert [set(image) for image in both["test_images"]] == [set(image) for image in small["test_images"]]


def test_the_parts_of_classification_and_retrieval_keep_their_proportions(tmp_path):
    ramp = ramps(20, 40).image_B3HW[0]
    file = tmp_path / "ramp.png"
    Image.fromarray(ramp.permute(1, 2, 0).numpy()).save(file)
    middle = central_part(file, (8, 8))[0, 0, 4].float() / 255
    expected = (torch.arange(8) + 4 + 0.5) / 16  # the middle half of 16 columns
    assert torch.allclose(middle, expected, atol=0.01)
    mean = patch_mean(Patches(), ramp, 16)  # 8 x 16 pixels: 2 x 4 patches
    assert mean.tolist()[0] == pytest.approx([0.5] * 3, abs=0.01)


def test_no_image_is_enlarged_for_retrieval_so_that_a_querys_part_keeps_its_pixels():
    seen, watched = [], Patches()
    watched.features = lambda pixels: seen.append(tuple(pixels.shape[2:])) or Patches.features(watched, pixels)
    for sides in ((30, 50), (9, 6), (3, 64)):
        patch_mean(watched, torch.zeros(3, *sides, dtype=torch.uint8), 32)
    assert seen == [(16, 32), (8, 4), (4, 32)]  # the last side is that of a patch at least


@pytest.mark.parametrize(("family", "before"), [("dinov2", 1), ("dinov3", 3), ("ijepa", 0)])
def test_the_mean_patch_token_has_no_part_of_class_token_and_registers(family, before):
    model = tiny_vision_model(family)
    learner = DinoLearner(Backbone(model), DinoConfig(outputs=8, hidden=8, bottleneck=8))
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))
    found = patch_mean(learner, image, 32)
    mean, std = (torch.tensor(of)[:, None, None] for of in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        tokens = model.eval()(((image / 255 - mean) / std)[None]).last_hidden_state
    assert tokens.shape[1] == before + 16
    torch.testing.assert_close(found, tokens[:, before:].mean(1))


class Patches:
    """A learner whose tokens are the mean colours of its patches."""

    patch_size, device, autocast = 4, torch.device("cpu"), contextlib.nullcontext

    @property
    def backbone(self):
        return self

    def features(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 4).flatten(2).transpose(1, 2)

    def patch_mean(self, tokens):
        return tokens.mean(1)

    def grid(self, tokens, height, width):
        return tokens.transpose(1, 2).unflatten(2, (height // 4, width // 4))


class Predicted:
    """Whole images whose pixels a head takes to be of these classes."""

    def __init__(self, label_BHW, class_BHW):
        images = torch.zeros(len(label_BHW), 3, *label_BHW.shape[1:], dtype=torch.uint8)
        unknown = torch.zeros(label_BHW.shape)
        self.images = Labelled(images, label_BHW.byte(), unknown, torch.zeros(len(images), dtype=torch.long))
        self._class_BHW = class_BHW

    def at_pixels(self, outputs):
        return torch.nn.functional.one_hot(self._class_BHW, 5).permute(0, 3, 1, 2).float()


def test_the_sets_miou_counts_what_is_predicted_or_true_and_no_pixel_that_is_ignored():
    """Class 3 is predicted and never true, class 4 neither; the pixel that is ignored is taken for class 3, too."""
    metrics = DenseMetrics({"segmentation": torch.nn.Identity()}, 5)
    images = []
    for label, taken in (([0, 0, 1, IGNORED], [0, 1, 1, 3]), ([2, 2, 0, 0], [2, 3, 0, 0])):
        images += metrics.add(Predicted(torch.tensor([[label]]), torch.tensor([[taken]])))
    assert metrics.together()["miou"] == pytest.approx((3 / 4 + 1 / 2 + 1 / 2 + 0 / 1) / 4)
    # Of an image, over the classes that it shows.
    assert [image["miou"] for image in images] == pytest.approx([(1 / 2 + 1 / 2) / 2, (1 / 2 + 2 / 2) / 2])


def ramps(height, width, count=1, *, down=False):
    """Images that grow lighter from left to right (or downwards); the lighter half is class 1; depth 1 to 5 metres."""
    whole = ((torch.arange(width) + 0.5) / width).expand(count, height, width)
    if down:
        whole = ((torch.arange(height) + 0.5) / height)[:, None].expand(count, height, width)
    light = (255 * whole).round().byte()[:, None].expand(count, 3, height, width)
    return Labelled(light, (whole > 0.5).byte(), (1 + 4 * whole).half(), torch.zeros(count, dtype=torch.long))


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 28), (28, 20), (33, 70), (10, 13)])
def test_predictions_are_scored_at_the_labels_own_pixels(height, width, down):
    """Images are scaled to cover 16 x 16 and extended to whole patches, which must not shift what is predicted."""
    whole = WholeImages.of(Patches(), ramps(height, width, 2, down=down), (16, 16))
    assert min(whole.grid_BDhw.shape[2:]) == 4
    seen_HW = whole.at_pixels(partial(pixel_outputs, torch.nn.Identity()))[0, 0]
    seen, side = (seen_HW[:, width // 2], height) if down else (seen_HW[height // 2], width)
    true = (torch.arange(side) + 0.5) / side
    inside = (true > 0.15) & (true < 0.85)  # bilinear interpolation is flat at the edges
    assert torch.allclose(seen[inside], true[inside], atol=0.02)

    classes = torch.nn.Conv2d(3, 2, 1)
    classes.weight.data, classes.bias.data = (
        torch.tensor([[0.0] * 3, [1.0, 0, 0]])[:, :, None, None],
        torch.tensor([0.5, 0]),
    )
    metrics = DenseMetrics({"segmentation": classes}, 2)
    images = metrics.add(whole)
    wrong = int((seen.gt(0.5) != true.gt(0.5)).sum())
    assert wrong <= 1  # of a row's pixels, at the border
    half = side / 2
    by_hand = ((half - wrong) / half + half / (half + wrong)) / 2
    assert [image["miou"] for image in images] == pytest.approx([by_hand] * 2, abs=0.02)
    assert metrics.together()["miou"] == pytest.approx(by_hand, abs=0.02)

    depth = torch.nn.Conv2d(3, 1, 1)  # softplus(y) = 1 + 4 x is nearly linear from 1 to 5
    depth.weight.data, depth.bias.data = torch.tensor([4.5, 0, 0])[None, :, None, None], torch.tensor([0.5])
    found = DenseMetrics({"depth": depth}, 0).add(whole)
    assert all(image["depth_rmse"] < 0.35 for image in found)


def test_images_of_one_size_that_follow_one_another_are_evaluated_together():
    class Images(list):
        def __getitem__(self, rows):
            return super().__getitem__(rows[0])

    pool = Images([ramps(16, 16)] * 3 + [ramps(16, 20)] + [ramps(16, 16)])
    found = [whole.images.image_B3HW.shape for whole in whole_images(Patches(), pool, range(5), (16, 16), 2)]
    assert [(shape[0], shape[3]) for shape in found] == [(2, 16), (1, 16), (1, 20), (1, 16)]


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_heads_and_their_losses(kind):
    grid = torch.randn(2, 8, 4, 4)
    label = torch.randint(5, (2, 16, 16))
    label[0] = IGNORED
    loss = segmentation_loss(dense_head(kind, 8, 5), grid, label)
    assert float(loss.detach()) > 0
    depth = torch.zeros(2, 16, 16)
    head = dense_head(kind, 8, 1)
    assert float(depth_loss(head, grid, depth).detach()) == 0  # nothing is valid
    depth[1] = 3.0
    assert float(depth_loss(head, grid, depth).detach()) > 0


def test_biases_are_refitted_on_every_other_pixel_of_images_of_64_pixels():
    label = torch.zeros(2, 64, 64, dtype=torch.long)
    label[:, :, 48:] = 1
    images = Labelled(torch.zeros(2, 3, 64, 64), label, torch.zeros(2, 64, 64), torch.zeros(2, dtype=torch.long))
    head = torch.nn.Conv2d(8, 2, 1)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    bias = refitted_bias("segmentation", head, torch.rand(2, 8, 4, 4), images).bias
    assert float(bias[0] - bias[1]) == pytest.approx(math.log(3), abs=0.01)  # of three pixels and one


def test_predicted_depths_are_within_the_range_of_valid_ones_however_large_the_heads_output():
    grid = torch.tensor([[[[-100.0, 100.0]]]])
    depths = predicted_depth(torch.nn.Identity(), grid, 1, 2).flatten().tolist()
    assert depths == pytest.approx([0.001, 10.0])


def test_the_depth_loss_has_a_gradient_where_a_prediction_is_out_of_range():
    grid = torch.tensor([[[[100.0, 5.0]]]], requires_grad=True)
    depth_loss(torch.nn.Identity(), grid, torch.tensor([[[4.0, 4.0]]])).backward()
    assert grid.grad.flatten().tolist() == pytest.approx([0.5, 0.5], abs=0.01)


def test_the_segmentation_loss_is_a_mean_over_labelled_pixels_only():
    grid = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    label = torch.tensor([[[0, 2], [IGNORED, IGNORED]]])
    half = segmentation_loss(torch.nn.Identity(), grid[:, :, :1], label[:, :1])
    torch.testing.assert_close(segmentation_loss(torch.nn.Identity(), grid, label), half)
