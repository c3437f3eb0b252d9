"""Images of any mode, as users have them, give the pixels that a viewer shows."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from vision.test_readers import save_ade20k

from vpretrain.errors import UserError
from vpretrain.vision.config import SourceConfig
from vpretrain.vision.data.pixels import as_tensor
from vpretrain.vision.data.readers import Ade20k, read_image

LOSSLESS = {"webp": {"lossless": True}}
LEFT_TO_RIGHT = np.array([[0, 128, 255]])


def reopened(tmp_path, image, name="image.png", **kwargs):
    image.save(tmp_path / name, **kwargs)
    return read_image(tmp_path / name)


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name):
    image = Image.fromarray(np.array([[0, 257 * 100, 65_535]], dtype=np.uint16))
    assert reopened(tmp_path, image, name)[:, 0].tolist() == [[0, 100, 255]] * 3


def test_floats_are_scaled_from_zero_to_one(tmp_path):
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert reopened(tmp_path, image, "float.tif")[:, 0].tolist() == [[0, 128, 255]] * 3


@pytest.mark.parametrize("values", [[0.0, 255.0], [-0.5, 0.5], [float("nan"), 0.5]])
def test_floats_of_an_unknown_range_are_refused(tmp_path, values):
    with pytest.raises(UserError, match=r"cannot read the image .*float\.tif: an image of floats from .* from 0 to 1"):
        reopened(tmp_path, Image.fromarray(np.array([values], dtype=np.float32)), "float.tif")


def test_integers_of_more_than_sixteen_bits_are_refused():
    with pytest.raises(UserError, match="an image of integers from 0 to 70000: they must be from 0 to 65535"):
        as_tensor(Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)))


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[0, 50, 100], [150, 200, 250]]), (2, [[100, 50, 0], [250, 200, 150]]),
        (3, [[250, 200, 150], [100, 50, 0]]), (4, [[150, 200, 250], [0, 50, 100]]),
        (5, [[0, 150], [50, 200], [100, 250]]), (6, [[150, 0], [200, 50], [250, 100]]),
        (7, [[250, 100], [200, 50], [150, 0]]), (8, [[100, 250], [50, 200], [0, 150]]),
    ],
)  # fmt: skip
def test_an_image_is_turned_by_its_exif_orientation(tmp_path, orientation, expected):
    stored = np.array([[0, 50, 100], [150, 200, 250]])
    grey = Image.fromarray(stored.astype(np.uint8))
    deep, big_endian = (Image.fromarray((257 * stored).astype(kind)) for kind in ("<u2", ">u2"))
    floats = Image.fromarray((stored / 255).astype(np.float32))
    cases = [
        (grey, "grey.png"), (grey, "grey.webp"), (grey, "grey.tif"), (deep, "deep.png"), (deep, "deep.tif"),
        (big_endian, "big_endian.tif"), (floats, "floats.tif"), (grey.convert("RGB"), "colours.tif"),
    ]  # fmt: skip
    for image, name in cases:
        found = reopened(tmp_path, image, name, exif=exif(orientation), **LOSSLESS.get(name[-4:], {}))
        assert found[0].tolist() == expected, name
    for image, name in ((grey, "grey.tif"), (deep, "deep.tif"), (floats, "floats.tif")):
        found = reopened(tmp_path, image, name, exif=exif(orientation), compression="tiff_lzw")
        assert found[0].tolist() == expected, name


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("name", ["image.jpg", "image.png", "image.tif"])
def test_a_picture_is_read_by_its_contents_whatever_its_name_says(tmp_path, kind, name):
    pixels = np.array([[[10, 20, 30], [200, 100, 0]]], dtype=np.uint8)
    found = reopened(tmp_path, Image.fromarray(pixels), name, format=kind, **LOSSLESS.get(kind, {}))
    assert found[:, 0].T.tolist() == pixels[0].tolist()


def test_transparency_is_laid_on_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 127]]], dtype=np.uint8)
    expected = [[10, 20, 30], [255, 255, 255], [128, 128, 128]]
    assert reopened(tmp_path, Image.fromarray(pixels))[:, 0].T.tolist() == expected


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_transparent_colour_is_laid_on_white(tmp_path, mode):
    image = Image.new("RGB", (2, 1), (0, 0, 0))
    image.putpixel((1, 0), (90, 90, 90))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    transparent = image.getpixel((0, 0))
    found = reopened(tmp_path, image, transparency=transparent)
    assert found[:, 0].T.tolist() == [[255, 255, 255], [90, 90, 90]]


GREY, COLOUR = 0, 2  # kinds of PNG


def read_png(kind: int, bits: int, row: bytes, *, transparent: bytes = b"") -> list[list[int]]:
    """The pixels of a PNG of one row, as it is stored: Pillow writes no colours of 16 bits, and no grey of 2 or 4."""
    width = len(row) * 8 // bits // (3 if kind == COLOUR else 1)
    parts = {b"IHDR": struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0), b"tRNS": transparent}
    parts |= {b"IDAT": zlib.compress(b"\0" + row), b"IEND": b""}
    chunks = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts.items()
        if content or name == b"IEND"
    ]
    return read_image(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)), "row.png")[:, 0].T.tolist()


def test_a_transparent_value_of_sixteen_bits_is_laid_on_white():
    row = struct.pack(">3H", 257 * 100, 257 * 100 + 1, 0)  # the first two are one value of 8 bits
    assert read_png(GREY, 16, row) == [[100] * 3, [100] * 3, [0] * 3]
    transparent = struct.pack(">H", 257 * 100)
    assert read_png(GREY, 16, row, transparent=transparent) == [[255] * 3, [100] * 3, [0] * 3]


@pytest.mark.parametrize(("bits", "row"), [(1, 0b01000000), (2, 0b00011011), (4, 0b01010001)])
def test_a_transparent_value_of_few_bits_is_laid_on_white(bits, row):
    values = [row >> shift & 2**bits - 1 for shift in range(8 - bits, -1, -bits)]
    greys = [value * 255 // (2**bits - 1) for value in values]
    assert read_png(GREY, bits, bytes([row])) == [[grey] * 3 for grey in greys]
    expected = [[255 if value == 1 else grey] * 3 for value, grey in zip(values, greys, strict=True)]
    assert read_png(GREY, bits, bytes([row]), transparent=struct.pack(">H", 1)) == expected


def test_colours_of_sixteen_bits_are_read_and_refused_with_a_transparent_one():
    row = struct.pack(">6H", *(257 * value for value in (1, 2, 3, 0, 100, 255)))
    assert read_png(COLOUR, 16, row) == [[1, 2, 3], [0, 100, 255]]
    for transparent in ((257, 514, 771), (0, 0, 0)):
        with pytest.raises(UserError, match=r"row\.png: an image of 16 bits per colour with a transparent colour, of"):
            read_png(COLOUR, 16, row, transparent=struct.pack(">3H", *transparent))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, [255, 255, 255]),
        ("L", 77, [77, 77, 77]),
        ("LA", (77, 255), [77, 77, 77]),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGBA", (1, 2, 3, 255), [1, 2, 3]),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("HSV", (0, 255, 255), [255, 0, 0]),
        ("YCbCr", (128, 128, 128), [128, 128, 128]),
        ("RGBa", (5, 10, 15, 255), [5, 10, 15]),
        ("RGBa", (0, 0, 0, 0), [255, 255, 255]),
        ("RGBX", (1, 2, 3, 0), [1, 2, 3]),
        ("I;16", 65_535, [255, 255, 255]),
        ("I;16B", 257 * 50, [50, 50, 50]),
        ("I;16L", 257 * 50, [50, 50, 50]),
        ("I;16N", 257 * 50, [50, 50, 50]),
        ("I", 257 * 50, [50, 50, 50]),
        ("F", 0.2, [51, 51, 51]),
    ],
)
def test_every_mode_has_its_colour(mode, colour, expected):
    assert as_tensor(Image.new(mode, (2, 1), colour))[:, 0, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_an_image_with_a_palette_has_the_colours_of_the_palette(mode):
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert as_tensor(image.convert(mode))[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(("lightness", "expected"), [(0, 0), (255, 255)])
def test_lab_has_black_and_white_to_the_rounding_of_its_profile(lightness, expected):
    found = as_tensor(Image.new("LAB", (2, 1), (lightness, 128, 128)))[:, 0, 0].tolist()
    assert found == pytest.approx([expected] * 3, abs=1)


def test_a_mode_that_pillow_cannot_convert_is_refused():
    with pytest.raises(UserError, match="an image of mode La cannot be converted to RGB: convert it before"):
        as_tensor(Image.new("La", (2, 1), (77, 255)))


def test_exif_that_cannot_be_read_leaves_the_pixels(tmp_path):
    image = Image.fromarray(LEFT_TO_RIGHT.astype(np.uint8))
    assert reopened(tmp_path, image, "image.png", exif=b"Exif\x00\x00nonsense")[0].tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("turned_before", [False, True])
def test_labels_turn_with_their_image(tmp_path, turned_before):
    root = save_ade20k(tmp_path, count=1)
    file, labels = tmp_path / "images/training/ADE_0.jpg", tmp_path / "annotations/training/ADE_0.png"
    stored = np.zeros((48, 64, 3), dtype=np.uint8)
    stored[:, 32:] = 255  # class 150 is on the right
    Image.fromarray(stored).save(file, exif=exif(6))
    if turned_before:
        Image.open(labels).transpose(Image.Transpose.ROTATE_270).save(labels)
    image_3HW, class_HW, _ = Ade20k(SourceConfig(ade20k=root)).read(0)
    assert image_3HW.shape[1:] == class_HW.shape == (64, 48)
    assert ((image_3HW[0] > 128) == (class_HW == 149)).all()


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\x00\x00", b"no image"])
def test_a_broken_image_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read the image .*image\.png: .*; remove or replace it"):
        read_image(tmp_path / "image.png")


def test_an_image_too_large_to_be_meant_is_refused_in_one_line(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="exceeds limit of 2000 pixels"):
        read_image(tmp_path / "image.png")
