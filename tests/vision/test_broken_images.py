"""Images that cannot be read: another takes the place of each, no other image moves, and each is named once."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from streams import resumed
from vision.test_readers import save_ade20k
from worlds import vision_recipe

from vpretrain import run_recipe
from vpretrain.errors import Unreadable, UserError
from vpretrain.run.prefetch import Prefetched
from vpretrain.run.skipped import SKIPPED, TooManySkipped
from vpretrain.vision.config import SourceConfig, StreamConfig
from vpretrain.vision.data.readers import read_image
from vpretrain.vision.data.source import Pool, open_images
from vpretrain.vision.data.stream import VisionStream
from vpretrain.vision.inspection.check import _readings
from vpretrain.vision.inspection.inspect import inspect

COUNT = 16
FORMAT = "it has no format that Pillow knows"


def png(side=40, seed=0):
    content = io.BytesIO()
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (side, side, 3), dtype=torch.uint8, generator=draw)
    Image.fromarray(pixels.numpy()).save(content, "png")
    return content.getvalue()


BROKEN = {
    "02.png": (b"", FORMAT),
    "05.png": (b"GIF, or so", FORMAT),
    "07.png": (png()[:2000], "truncated"),
    "11.png": (png(200), "decompression bomb"),
    "13.png": (png(20), "its 20 x 20 pixels are smaller than a crop"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of 16 images."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # a bomb has twice as many
    (tmp_path / "images").mkdir()
    for number in range(COUNT):
        (tmp_path / "images" / f"{number:02}.png").write_bytes(png(seed=number))
    return tmp_path / "images"


def break_images(folder):
    for name, (content, _) in BROKEN.items():
        (folder / name).write_bytes(content)


def stream_of(path, *, rank=0, processes=1, **settings):
    shape = {"batch_size": 4, "global_size": 32, "local_size": 16, "local_views": 1, **settings}
    config = StreamConfig(sources=[SourceConfig(path=str(path))], **shape)
    return VisionStream(config, seed=3, rank=rank, processes=processes)


def drawn(stream, steps):
    """The names of the images."""
    return [Path(key).name for _ in range(steps) for batch in stream.next() for key in batch.keys]


def named(stream):
    return stream.skipped(stream.merge([stream.state_dict()]))


def test_another_image_takes_the_place_of_each_and_no_other_moves(folder):
    sound = drawn(stream_of(folder), 8)
    break_images(folder)
    stream = stream_of(folder)
    found = drawn(stream, 8)  # two epochs
    assert len(found) == len(sound) == 2 * COUNT
    for before, now in zip(sound, found, strict=True):
        assert now not in BROKEN
        assert now == before or before in BROKEN
    entries = {Path(entry["place"]).name: entry["reason"] for entry in named(stream)}
    assert entries.keys() == BROKEN.keys()
    assert len(named(stream)) == len(BROKEN)
    assert all(reason in entries[name] for name, (_, reason) in BROKEN.items())
    assert {entry["source"] for entry in named(stream)} == {str(folder)}
    assert stream.left_out(stream.state_dict()) == {str(folder): {"unreadable": 2 * len(BROKEN)}}
    assert [Path(key).name for key in stream.sample(COUNT).keys] == found[:COUNT]


@pytest.mark.parametrize(("shards", "prefetch"), [(1, 0), (4, 0), (1, 2)])
def test_resumed_by_other_numbers_of_processes_the_stream_reads_on(folder, shards, prefetch):
    break_images(folder)

    def opened(rank, processes):
        return stream_of(folder, rank=rank, processes=processes, shards=shards)

    def crops(batch, images):
        return batch.global_VB3HW[:, images], batch.local_VB3HW[:, images]

    for whole, cursor in resumed(opened, (1, 2, 4, 2), 2, crops, prefetch):
        assert cursor == whole.state_dict()
    assert len(whole.skipped(cursor)) == len(BROKEN)


def test_the_stream_stops_at_the_first_if_it_is_told_to(folder):
    break_images(folder)
    with pytest.raises(
        Unreadable, match=r"cannot read the image .*\.png: .*; remove or replace it|smaller than a crop"
    ):
        drawn(stream_of(folder, on_error="stop"), 4)


def test_more_than_the_share_stops_the_stream(folder):
    break_images(folder)
    with pytest.raises(
        TooManySkipped, match=r"images: 4 of \d+ rows or images cannot be read, the last: .*png .*; mend"
    ):
        drawn(stream_of(folder, max_skipped=0.003), 4)


def test_without_an_image_that_can_be_read_nothing_begins(folder):
    for file in folder.iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read the image .*00\.png: it has no format that Pillow knows; remove"):
        stream_of(folder)
    for number in range(1, COUNT):
        (folder / f"{number:02}.png").write_bytes(png(seed=number))
    assert stream_of(folder)  # though its first image is broken


def test_what_the_machine_cannot_read_is_not_skipped(folder):
    stream = stream_of(folder)
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"cannot read the image .*png: .*No such file") as caught:
        stream.next()
    assert not isinstance(caught.value, Unreadable)


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "13.png"])
def test_the_reason_is_the_same_in_every_process(monkeypatch, name):
    """No address of an object, by which cursors and files would differ."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    reasons = set()
    for _ in range(2):
        with pytest.raises(Unreadable) as caught:
            read_image(io.BytesIO(BROKEN[name][0]), "an image")
        reasons.add(caught.value.reason)
    assert len(reasons) == 1
    assert " at 0x" not in reasons.pop()


def archive(path, members):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, content in members.items():
                opened.writestr(name, content)
        return
    with tarfile.open(path, "w") as opened:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_images_lie_in_folders_of_archives(tmp_path, ending):
    for number in range(2):
        members = {f"{folder}/{number}.png": png(seed=10 * number + len(folder)) for folder in ("a", "bc/d")}
        members |= {"note.txt": b"none", "a/._0.png": b"of macOS", f"{ending}-empty/": b""}
        archive(tmp_path / f"{number}.{ending}", members)
    images = open_images(SourceConfig(path=str(tmp_path / f"*.{ending}")))
    names = [images.key(index).removeprefix(str(tmp_path)) for index in range(len(images))]
    assert names == [f"/{number}.{ending}:{folder}/{number}.png" for number in range(2) for folder in ("a", "bc/d")]
    for index, seed in enumerate((1, 4, 11, 14)):
        assert torch.equal(images[index], read_image(io.BytesIO(png(seed=seed))))


@pytest.mark.parametrize("name", ["all.tar.gz", "all.tgz", "*.tar.zst", "all.tar.xz"])
def test_a_compressed_tar_file_is_refused_with_the_remedy(tmp_path, name):
    (tmp_path / "all.tar.gz").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        open_images(SourceConfig(path=f"{tmp_path}/{name}"))
    assert str(caught.value) == (
        f"{tmp_path}/{name}: images of a compressed tar file cannot be read in place: unpack it, or give .tar or .zip files"
    )


def test_a_zip_file_is_read_alike_by_a_process_of_its_own(tmp_path):
    archive(tmp_path / "all.zip", {f"{number}.png": png(seed=number) for number in range(12)})
    plain, ahead = stream_of(tmp_path / "all.zip"), stream_of(tmp_path / "all.zip")
    worker = Prefetched(ahead, 2, torch.device("cpu"))  # opened before it is forked
    for _ in range(4):
        (expected,), (batch,) = plain.next(), worker.next()
        assert batch.keys == expected.keys
        assert torch.equal(batch.global_VB3HW, expected.global_VB3HW)


def test_a_broken_member_of_a_zip_file_is_skipped_and_a_broken_file_refused(tmp_path):
    path = tmp_path / "all.zip"
    archive(path, {f"{number}.png": png(seed=number) for number in range(8)} | {"empty.png": b""})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as opened:
        start = opened.getinfo("3.png").header_offset
    content[start + 35 : start + 55] = b"\xff" * 20  # behind the member's header
    path.write_bytes(content)
    stream = stream_of(path)
    assert not {"3.png", "empty.png"} & {name.rpartition(":")[2] for name in drawn(stream, 8)}
    assert {entry["place"] for entry in named(stream)} == {f"{path}:3.png", f"{path}:empty.png"}
    path.write_bytes(content[:-40])
    with pytest.raises(UserError, match=r"cannot read the shard .*all\.zip: .*; shards are .zip or uncompressed .tar"):
        stream_of(path)


def test_broken_images_of_a_hub_data_set_are_skipped_and_named_by_their_number(monkeypatch):
    contents = [png(seed=number) for number in range(COUNT)]
    contents[2], contents[5], contents[7] = b"", b"GIF, or so", png()[:2000]
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": one, "path": None} for one in contents]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *what, **kwargs: rows)
    shape = {"batch_size": 4, "global_size": 32, "local_size": 16, "local_views": 1}
    stream = VisionStream(StreamConfig(sources=[SourceConfig(hub="some/images")], **shape), seed=3)
    assert not {"2", "5", "7"} & set(drawn(stream, 4))  # one epoch
    reasons = {entry["place"]: entry["reason"] for entry in named(stream)}
    assert reasons.keys() == {"some/images/2", "some/images/5", "some/images/7"}
    assert reasons["some/images/2"] == reasons["some/images/5"] == FORMAT
    assert "truncated" in reasons["some/images/7"]
    images = open_images(SourceConfig(hub="some/images"))
    assert torch.equal(images[3], read_image(io.BytesIO(contents[3])))
    with pytest.raises(Unreadable, match=rf"cannot read the image some/images/2: {FORMAT}; remove or replace it"):
        images[2]


def test_labelled_images_are_never_skipped(tmp_path):
    root = save_ade20k(tmp_path)
    pool = Pool([SourceConfig(ade20k=root)], None)
    for file in (tmp_path / "annotations" / "training").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(Unreadable, match=r"cannot read the map of classes .*; remove or replace it"):
        pool[[1]]


def test_inspect_counts_what_was_left_out(folder, tmp_path, capsys):
    break_images(folder)
    stream = {"sources": [{"path": str(folder)}], "batch_size": COUNT}
    inspect(vision_recipe(tmp_path, arm="fixed", stream=stream), examples=1, positions=0)
    assert f"left out of stream {folder}: {len(BROKEN)} (unreadable)\n" in capsys.readouterr().out


def test_a_run_names_what_it_skips_and_check_says_so_before(folder, tmp_path):
    break_images(folder)
    source = {"path": str(folder)}
    recipes = [
        vision_recipe(tmp_path, arm="fixed", name=name, stream={"sources": [source], "prefetch": prefetch})
        for name, prefetch in (("plain", 0), ("ahead", 2))
    ]
    (line,) = _readings(recipes[0])
    assert line.startswith(f"read all {COUNT} images of stream {folder}: 5 cannot be read and would be skipped, ")
    assert line.endswith(f"the first: {folder / '02.png'} {FORMAT}")
    results = [run_recipe(recipe) for recipe in recipes]
    assert [result.left_out[f"stream {folder}"]["unreadable"] >= len(BROKEN) for result in results] == [True, True]
    files = [(recipe.directory / SKIPPED).read_bytes() for recipe in recipes]
    assert files[0] == files[1]
    found = [json.loads(entry) for entry in files[0].splitlines()]
    assert {Path(entry["place"]).name for entry in found} == BROKEN.keys()


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path, monkeypatch):
    def broken(folder, pattern):
        raise OSError(22, "Invalid argument", f"{folder}/net")

    monkeypatch.setattr(Path, "rglob", broken)
    with pytest.raises(UserError, match=r"^cannot list .*/net, in .*: Invalid argument; name another folder$"):
        open_images(SourceConfig(path=str(tmp_path)))
