"""Anything at all as input: what comes out is a result or a UserError of one line."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import pytest
import yaml
from conftest import character_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from worlds import recipe_data

from vpretrain import UserError
from vpretrain.language.config import SourceConfig
from vpretrain.language.data.source import open_source
from vpretrain.recipe import load_recipe, parse_recipe, with_overrides
from vpretrain.run.checkpoint import damage
from vpretrain.vision.data.source import read_image

pytestmark = pytest.mark.security
PROMISE = "19 fuzzed recipes, overrides, manifests, JSONL and images: a result, or an error of one line"

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return recipe_data(tmp_path_factory.mktemp("fuzz"), character_tokenizer())


def fuzzed(many, fault, strategies, run, *, examples):
    """Runs many cases, each of which may end in a UserError of one line and in nothing else."""

    @settings(
        max_examples=many(*examples),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(**strategies)
    def cases(**drawn):
        with fault():
            told = ""
            try:
                run(**drawn)
            except UserError as error:
                told = str(error)
            assert "\n" not in told

    cases()


def paths_of(data, prefix=()):
    yield prefix
    for key, inner in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from paths_of(inner, (*prefix, key))


@pytest.mark.timeout(900)
@pytest.mark.promise(PROMISE)
def test_recipes(valid, many, fault):
    """A valid recipe with anything in one place."""
    places = [path for path in paths_of(valid) if path]

    def run(place, value, extra):
        data = json.loads(json.dumps(valid))
        node = data
        for part in place[:-1]:
            node = node[part]
        node[place[-1]] = value
        if extra is not None:
            data[extra] = value
        parse_recipe(data)

    strategies = {"place": st.sampled_from(places), "value": VALUES, "extra": st.none() | st.text(max_size=8)}
    fuzzed(many, fault, strategies, run, examples=(60, 4000))


@pytest.mark.timeout(900)
@pytest.mark.promise(PROMISE)
def test_files_of_recipes(many, fault):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"

        def run(content):
            file.write_bytes(content)
            load_recipe(file)

        contents = (
            st.binary(max_size=64) | st.text(max_size=64).map(str.encode) | VALUES.map(yaml.safe_dump).map(str.encode)
        )
        fuzzed(many, fault, {"content": contents}, run, examples=(60, 2000))


@pytest.mark.timeout(900)
@pytest.mark.promise(PROMISE)
def test_overrides(valid, many, fault):
    names = [".".join(map(str, path)) for path in paths_of(valid) if path]

    def run(name, value):
        parse_recipe(with_overrides(json.loads(json.dumps(valid)), [f"{name}={value}"]))

    strategies = {"name": st.sampled_from(names) | st.text(max_size=12), "value": st.text(max_size=12)}
    fuzzed(many, fault, strategies, run, examples=(60, 2000))


@pytest.mark.timeout(900)
@pytest.mark.promise(PROMISE)
def test_manifests(many, fault):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "state.json").write_text("{}")

        def run(content):
            (Path(folder) / "manifest.json").write_bytes(content)
            found = damage(Path(folder))
            assert found
            assert "\n" not in found

        contents = st.binary(max_size=64) | VALUES.map(json.dumps).map(str.encode)
        fuzzed(many, fault, {"content": contents}, run, examples=(60, 1000))


@pytest.mark.timeout(900)
@pytest.mark.promise(PROMISE)
def test_rows(many, fault):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"

        def run(lines):
            file.write_bytes(b"\n".join(lines))
            source = open_source(SourceConfig(path=str(file), prompt="{q}", response="{a}", streaming=False))
            for index in range(min(3, len(source))):
                assert source[index].key

        rows = st.dictionaries(st.sampled_from(["q", "a", "b"]), VALUES, max_size=3).map(json.dumps).map(str.encode)
        lines = st.lists(rows | st.binary(max_size=24), max_size=4)
        fuzzed(many, fault, {"lines": lines}, run, examples=(15, 300))


@pytest.mark.timeout(900)
@pytest.mark.promise(PROMISE)
def test_pictures(many, fault):
    whole, grey = {}, Image.effect_noise((24, 24), 50)
    kinds = [(kind, "RGB") for kind in ("png", "jpeg", "webp", "tiff", "bmp")]
    for kind, mode in [*kinds, ("png", "P"), ("png", "I;16"), ("tiff", "I;16")]:
        content = io.BytesIO()
        grey.convert(mode).save(content, kind)
        whole[f"{kind} {mode}"] = content.getvalue()

    def run(kind, cut, place, byte, raw):
        content = bytearray(whole[kind][: max(1, int(cut * len(whole[kind])))])
        content[int(place * (len(content) - 1))] = byte
        picture = read_image(io.BytesIO(raw if raw is not None else bytes(content)), "a picture")
        assert picture.shape[0] == 3

    strategies = {
        "kind": st.sampled_from(sorted(whole)), "cut": st.floats(0, 1), "place": st.floats(0, 1),
        "byte": st.integers(0, 255), "raw": st.none() | st.binary(max_size=48),
    }  # fmt: skip
    fuzzed(many, fault, strategies, run, examples=(60, 2000))
