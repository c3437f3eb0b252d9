"""The stream of pictures: what several processes see is what one sees, dealt out, and so are blocks and masks."""

from __future__ import annotations

import json

import pytest
import torch
from models import tiny_vision_model

from vpretrain.errors import UserError
from vpretrain.vision.config import DesignerConfig, IJepaConfig, StreamConfig
from vpretrain.vision.data import stream as module
from vpretrain.vision.data.stream import VisionStream
from vpretrain.vision.model.backbone import Backbone
from vpretrain.vision.model.ijepa import IJepaLearner
from vpretrain.vision.task.construction import RandomMask

SOURCE = {"scenes": 10, "seed": 1, "size": 40}


def group(processes, **settings):
    shape = {"batch_size": 4, "global_size": 32, "local_size": 16, "local_views": 1}
    config = StreamConfig(**(shape | settings), sources=[SOURCE])
    return [VisionStream(config, seed=3, rank=rank, processes=processes) for rank in range(processes)]


def dealt_back(parts):
    """Along the pictures: rank r of W has those of the numbers r, r + W, ..."""
    return torch.stack(parts, dim=2).flatten(1, 2)


@pytest.mark.parametrize(("shards", "processes"), [(1, 2), (2, 2), (4, 2), (2, 4)])
def test_processes_deal_out_the_same_crops(shards, processes):
    (whole,), streams = group(1, shards=shards), group(processes, shards=shards)
    for _ in range(3):
        (expected,), parts = whole.next(), [stream.next()[0] for stream in streams]
        for name in ("global_VB3HW", "local_VB3HW"):
            assert torch.equal(dealt_back([getattr(part, name) for part in parts]), getattr(expected, name))
        assert [part.keys for part in parts] == [expected.keys[rank::processes] for rank in range(processes)]
        assert expected.places == (0, 1, 2, 3)
        assert [part.places for part in parts] == [expected.places[rank::processes] for rank in range(processes)]
    cursor = json.loads(json.dumps(whole.merge([stream.state_dict() for stream in streams])))
    assert cursor == whole.state_dict()


def test_shards_change_augmentation_and_not_which_pictures_come():
    ((one,),), ((two,),) = ([stream.next() for stream in group(1, shards=shards)] for shards in (1, 2))
    assert one.keys == two.keys
    assert not torch.equal(one.global_VB3HW, two.global_VB3HW)


def test_a_picture_is_cropped_anew_whenever_it_comes():
    (stream,) = group(1)
    stream._order = [0, 1, 2, 3] * 2
    (one,), (other,) = stream.next(), stream.next()
    assert one.keys == other.keys
    assert not torch.equal(one.global_VB3HW, other.global_VB3HW)
    assert not torch.equal(one.local_VB3HW, other.local_VB3HW)


def test_blocks_and_masks_of_a_picture_depend_neither_on_the_processes_nor_on_the_size_of_a_meta_batch():
    settings = {"global_views": 2, "local_views": 0}
    ((whole,),) = (stream.next() for stream in group(1, **settings))
    parts = [stream.next()[0] for stream in group(2, **settings)]
    mask = RandomMask(DesignerConfig()).mask
    assert torch.equal(dealt_back([mask(part) for part in parts]), mask(whole))
    assert torch.equal(mask(whole.restrict(rows=3)), mask(whole)[:, :3])

    config = IJepaConfig(predictor_width=16, predictor_heads=2, predictor_layers=1)
    learner = IJepaLearner(Backbone(tiny_vision_model("dinov2")), config)
    blocks = learner._blocks(whole)
    for batch, chosen in (
        (parts[0], [0, 2, 4, 6]), (parts[1], [1, 3, 5, 7]), (parts[1].restrict(rows=1), [1, 5]),
        (whole.restrict(rows=3), [0, 1, 2, 4, 5, 6]),
    ):  # fmt: skip
        own = learner._blocks(batch)
        assert torch.equal(own.context_BC, blocks.context_BC[chosen])
        assert torch.equal(own.target_BMN, blocks.target_BMN[chosen])


def test_blocks_and_masks_follow_from_the_seed_of_the_run_and_the_draw():
    seeds = []
    for seed in (3, 4):
        stream = VisionStream(group(1)[0].config, seed=seed)
        seeds += [stream.next()[0].seed for _ in range(2)]
    assert len(set(seeds)) == 4


def test_the_generators_of_gpus_which_dropout_draws_from_are_left_alone(monkeypatch):
    (stream,) = group(1)
    before = torch.get_rng_state()
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("it seeds every device"))
    stream.next()
    stream.sample(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_shared_out_is_refused():
    with pytest.raises(UserError, match=r"stream.batch_size=4 is no multiple of the 3 processes: use 3 or 6"):
        group(3)
    with pytest.raises(ValueError, match="shards=3 does not divide batch_size=4"):
        group(1, shards=3)


def test_oblong_pictures_are_cut_and_not_squeezed_and_large_ones_are_made_smaller(monkeypatch):
    column = (torch.arange(400) % 256).byte().expand(3, 100, 400)  # each column is one brighter than the last
    torch.manual_seed(0)
    for picture in (column, column.mT):
        parts = torch.stack([module._square(picture, 100) for _ in range(8)])
        assert parts.shape == (8, 3, 100, 100)
        brightness = 255 * (parts[:, 0, 0] if picture is column else parts[:, 0, :, 0])
        assert set(brightness.diff().round().unique().tolist()) <= {1.0, -255.0}  # neighbours are still neighbours
        assert len(brightness[:, 0].unique()) > 4
    config = StreamConfig(sources=[SOURCE], batch_size=2, global_size=32, local_size=16, colour=False)
    seen, made = [], module.augmentations(config)
    monkeypatch.setattr(
        module,
        "augmentations",
        lambda config: [lambda x, one=one: seen.append(tuple(x.shape)) or one(x) for one in made],
    )
    module.crops([torch.zeros(3, side, 2 * side, dtype=torch.uint8) for side in (300, 40)], config)
    assert set(seen) == {(2, 3, 72, 72)}  # of 72 pixels a side a local crop of 5 % has 16


def test_the_second_global_crop_is_solarised_at_one_half_as_in_byol_and_dino():
    crops = module.augmentations(StreamConfig(sources=[SOURCE]))
    steps = [step for crop in crops for step in crop.children() if "Solarize" in type(step).__name__]
    assert [step.p for step in steps] == [0.0, 0.2, 0.0]
    shades = torch.linspace(0, 1, 256).expand(64, 3, 1, 256)
    threshold, addition = (steps[1].generate_parameters(shades.shape)[key] for key in ("thresholds", "additions"))
    solarised = steps[1].apply_transform(shades, {"thresholds": threshold, "additions": addition}, {}, None)
    assert torch.allclose(solarised, torch.where(shades < 0.5, shades, 1 - shades), atol=1e-6)
