"""Every setting of every modality, at its bounds, beyond them, and with nonsense: a recipe, or one line that refuses it."""

from __future__ import annotations

import copy
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from worlds import small_recipe

from vpretrain import UserError
from vpretrain.cli.parser import main
from vpretrain.config import Recipe
from vpretrain.modality import MODALITIES
from vpretrain.plain import texts
from vpretrain.recipe import parse_recipe, save_recipe, with_overrides

pytestmark = pytest.mark.reliability

PAIRS = {"path": "a.jsonl", "prompt": "{q}", "response": "{a}"}
BASES = {
    "language": {
        "name": "a",
        "learner": {"name": "a", "lora": {}},
        "stream": {"sources": [dict(PAIRS)]},
        "feedback": {"sources": [dict(PAIRS)]},
        "budget": {"steps": 1},
        "evaluation": {"sources": [dict(PAIRS)], "retention": [dict(PAIRS)]},  # none is shared: each is changed alone
    },
    "vision": {
        "modality": "vision",
        "name": "a",
        "learner": {"name": "a"},
        "stream": {"sources": [{"scenes": 40}]},
        "feedback": {"heads": [{"scenes": 1}], "meta": [{"scenes": 1}]},
        "budget": {"steps": 1},
        "evaluation": {
            "train": [{"scenes": 1}],
            "test": [{"scenes": 1}],
            "classes": {"train": "a", "test": "b"},
        },
    },
}
NONSENSE = [
    None, True, [], {}, [[]], {"a": {}}, "", "nonsense", "(", "name:(", "last-99999", "~nobody-is-here/a", "a\0b", "\ud800",
    "x" * 5000, "x/" * 5000, -1, 0, 2**31, 2**63, 10**30, -(10**30), 0.5, 5e-324, 1e300, -1e300, math.nan, math.inf, -math.inf,
]  # fmt: skip

ODD = [
    *(one for one in NONSENSE if isinstance(one, str)), " ", "\n", "a\nb", "\x1b[31m", "\ufeff", "e\u0301 漢 🙂", "..",
    "/nobody/here", ".", "~",
    "/dev/null", "/dev/zero", "/proc/self/mem", "*", "**", "[", "a[b", "file:///nobody", "nobody://here/a.jsonl", "://",
    "pypi:nobody", "pypi:", "a/b/c", "C:\\a", "--help", "-", "{", "{}", "{question}", "{question.9}", "{{question}}",
    "{question!r}", "%s", "$HOME", "name:", "name:^$", "name:(?i)MLP", "\\", "(?P<a>", ".*", "0", "-1", "1e999", "nan", "null",
    "true", "2024-01-02",
]  # fmt: skip
# What else changes in the section of a setting with another value: what it replaces, and what it is about.
_OTHER, _HUB, _RAW = {"path": None, "scenes": None}, {"path": None, "hub": "a/b"}, {"prompt": None, "response": None}
BESIDE: dict[str, dict[str, Any]] = {
    "hub": _OTHER, "builtin": _OTHER | _RAW, "reasoning_gym": _OTHER, "labelled": _OTHER, "ade20k": _OTHER, "nyuv2": _OTHER,
    "config": _HUB | {"scenes": None}, "split": _HUB | {"scenes": None}, "column": _HUB | {"scenes": None},
    "path": {"scenes": None}, "splits": {"scenes": None, "nyuv2": "nobody.mat"}, "text": _RAW, "messages": _RAW,
    "options": {"path": None, "reasoning_gym": "basic_arithmetic", "size": 64},
}  # fmt: skip


# What takes as much time or memory as it says is checked at 64: it would take hours, and show its progress.
COSTLY = {
    "accumulation", "batch_size", "bottleneck", "cameras", "first_head_steps", "head_batch_size", "head_steps", "hidden",
    "local_size", "outputs", "prefetch", "retention_tokens", "scenes", "size", "width",
}  # fmt: skip


class Setting(NamedTuple):
    """A number, text or choice that a recipe may hold.

    `path` leads to it through sections and lists of sections, `wrap` makes the setting's value of one plain value: the list,
    tuple or mapping that it is in. `kind` is its type, `marks` are pydantic's limits, `choices` those of a Literal.
    """

    path: tuple[str | int, ...]
    wrap: Callable[[Any], Any]
    kind: Any
    marks: tuple[Any, ...]
    choices: tuple[Any, ...] = ()

    @property
    def odd(self) -> Sequence[Any]:
        """Values of a text, a choice or a generator's options that somebody may give."""
        return self.choices or {str: ODD, Any: NONSENSE}.get(self.kind, [])

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def limits(self) -> tuple[list[float], list[float]]:
        """As they are written: lower, upper."""
        lower, upper = (
            [limit for mark in self.marks for key in keys if (limit := getattr(mark, key, None)) is not None]
            for keys in (("ge", "gt"), ("le", "lt"))
        )
        return lower, upper

    @property
    def smallest(self) -> float:
        return max(
            self._next(mark.gt, math.inf) if hasattr(mark, "gt") else mark.ge
            for mark in self.marks
            if hasattr(mark, "gt") or hasattr(mark, "ge")
        )

    @property
    def largest(self) -> float:
        return min(
            self._next(mark.lt, -math.inf) if hasattr(mark, "lt") else mark.le
            for mark in self.marks
            if hasattr(mark, "lt") or hasattr(mark, "le")
        )

    @property
    def beyond(self) -> tuple[float, float]:
        """The next value below the smallest, and the next above the largest."""
        return self._next(self.smallest, -math.inf), self._next(self.largest, math.inf)

    def within(self, base: dict[str, Any], value: Any) -> dict[str, Any]:
        """A recipe's data with another value of this setting."""
        data = node = copy.deepcopy(base)
        for part in self.path[:-1]:
            if isinstance(node, dict) and node.get(part) is None:
                node[part] = {}
            node = node[part]
        node[self.path[-1]] = self.wrap(value)
        return data

    def _next(self, value: float, towards: float) -> float:
        if self.kind is int:
            return value + (1 if towards > 0 else -1)
        return math.nextafter(value, towards)


def same(value):
    return value


def settings_of(model, prefix=()):
    for name, field in model.model_fields.items():
        yield from plain_settings((*prefix, name), field.annotation, tuple(field.metadata), same)


def plain_settings(path, annotation, marks, wrap):
    """The settings in a type: of each part of a union, list, tuple, mapping or section."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from settings_of(annotation, path)
    elif origin is Annotated:
        own = (mark for one in inner[1:] for mark in getattr(one, "metadata", [one]))
        yield from plain_settings(path, inner[0], (*marks, *own), wrap)
    elif origin in (Union, UnionType):
        for part in inner:
            yield from plain_settings(path, part, marks, wrap)
    elif origin is list and isinstance(inner[0], type) and issubclass(inner[0], BaseModel):
        yield from settings_of(inner[0], (*path, 0))
    elif origin is list:
        yield from plain_settings(path, inner[0], (), lambda value: wrap([value]))
    elif origin is tuple:
        yield from plain_settings(path, inner[0], (), lambda value: wrap([value] * len(inner)))
    elif origin is dict:
        yield from plain_settings(path, inner[1], (), lambda value: wrap({"a": value}))
    elif annotation is not NoneType:
        yield Setting(path, wrap, origin or annotation, marks, inner if origin is Literal else ())


SETTINGS = {name: list(settings_of(modality.recipe)) for name, modality in MODALITIES.items()}
NUMBERS = {name: [one for one in found if one.kind in (int, float)] for name, found in SETTINGS.items()}
modalities = pytest.mark.parametrize("modality", MODALITIES)


def outcome(data):
    """The recipe, or the line that refuses it."""
    try:
        return parse_recipe(data)
    except UserError as error:
        told = str(error)
    assert "\n" not in told
    return told


def refusal(modality, *overrides):
    told = outcome(with_overrides(copy.deepcopy(BASES[modality]), overrides))
    assert isinstance(told, str), overrides
    return told


@modalities
def test_the_walk_meets_every_kind_of_setting(modality):
    assert isinstance(outcome(BASES[modality]), Recipe)
    kinds = {one.kind for one in SETTINGS[modality]}
    assert {int, float, str, bool, Literal} <= kinds
    assert modality == "vision" or Any in kinds
    assert {one.path[-1] for found in SETTINGS.values() for one in found} >= set(BESIDE)
    names = {one.name for one in SETTINGS[modality]}
    assert {"optimizer.betas", "value.strength", "stream.sources.0.skip", "tracking.trackers"} <= names
    assert len(names) > 120


@modalities
def test_every_number_has_a_lower_and_an_upper_bound(modality):
    unbounded = [one.name for one in NUMBERS[modality] if not all(one.limits)]
    assert unbounded == []


@modalities
def test_beyond_its_bound_a_number_is_refused_by_name_and_bound(modality):
    for one in NUMBERS[modality]:
        for value, limits in zip(one.beyond, one.limits, strict=True):
            told = outcome(one.within(BASES[modality], value))
            assert isinstance(told, str), (one.name, value)
            assert f"'{one.name}" in told
            bounds = [float(number) for number in re.findall(r"(?:than|to) (-?\d[\d.e+-]*)", told)]
            assert set(bounds) & set(map(float, limits)), told


@modalities
def test_at_its_bound_a_number_is_taken_unless_other_settings_contradict(modality):
    for one in NUMBERS[modality]:
        for value in (one.smallest, one.largest):
            told = outcome(one.within(BASES[modality], value))
            assert isinstance(told, Recipe) or "Input should be" not in told, (one.name, value, told)


@modalities
def test_nonsense_is_refused_in_one_line_or_harmless(modality):
    for one in SETTINGS[modality]:
        for value in NONSENSE:
            found = outcome(one.within(BASES[modality], value))
            if isinstance(found, Recipe) and one.kind is not Any:  # a generator's own options are for it to judge
                whole = found.model_dump(mode="json")
                assert not any("\0" in text for text in texts(whole)), (one.name, value)
                json.dumps(whole, allow_nan=False)


@modalities
@pytest.mark.parametrize("end", ["smallest", "largest"])
def test_all_numbers_at_their_bounds_are_one_line(modality, end):
    data = BASES[modality]
    for one in NUMBERS[modality]:
        data = one.within(data, getattr(one, end))
    assert isinstance(outcome(data), str)


@pytest.mark.parametrize(
    ("modality", "setting", "value", "reason"),
    [
        ("language", "seed", "18446744073709551616", "2147483647"),
        ("language", "threads", "4294967296", "1024"),
        ("language", "optimizer.betas", "[1.5, 2.0]", "less than 1"),
        ("language", "optimizer.betas", "[.nan, .9]", "finite"),
        ("language", "optimizer.lr", ".nan", "finite"),
        ("language", "value.subset", "name:(", "is no regular expression: missing )"),
        ("language", "value.subset", "name:a{99999999999999999999}", "is no regular expression"),
        ("language", "value.subset", "last-0", "must be last-mlp, last-N"),
        ("language", "designer.subset", "name:[", "is no regular expression"),
        ("language", "stream.sources.0.exclude", "{a: (}", "is no regular expression"),
        ("language", "learner.device", "meta", "is no device that trains: give auto, cpu, cuda"),
        ("language", "learner.device", "cuda:a", "is no device that trains"),
        ("language", "evaluation.problems", "1e30", "integer"),
        ("language", "evaluation.problems", "1.0e+30", "integer"),
        ("language", "evaluation.problems", "1000000000000000000000000000000", "1000000000000"),
        ("language", "output", '"a\\0b"', "it contains a NUL character"),
        ("language", "stream.sources.0.prompt", '"\\ud800"', "no character of UTF-8 (such as"),
        ("language", "stream.sources.0.options", "{max_terms: 1000000000}", "max_terms has a number above 1,000,000"),
        ("language", "stream.sources.0.options", "{sizes: [1, .nan]}", "sizes has a number above 1,000,000"),
        ("language", "stream.sources.0.options", "{seed: null}", "seed=None is no whole number"),
        *((modality, "stream.sources", f'[{{hub: "{name}"}}]', "give a folder as the path")
          for modality in MODALITIES for name in ("", "/", ".", "..", "a/../..", "~", "~/a")),
        ("language", "output", f"a/{'b' * 300}", "each name in it 255"),
        ("language", "learner.name", "~nobody-is-here/model", "there is no home directory ~nobody-is-here"),
        ("language", "budget.minutes", ".inf", "finite"),
        ("language", "budget.minutes", "1.0e+300", "1000000"),
        ("language", "stream.batch_size", "1000000000", "1048576"),
        ("language", "stream.accumulation", "1000000000", "100000"),
        ("language", "stream.prefetch", "1000000000", "256"),
        ("language", "designer.layers", "1000000000", "128"),
        ("vision", "learner.device", "meta", "is no device that trains"),
        ("vision", "stream.batch_size", "1000000000", "1048576"),
        ("vision", "stream.accumulation", "1000000000", "100000"),
        ("vision", "designer.layers", "1000000000", "128"),
        ("vision", "stream.global_scale", "[0, 1]", "0.001"),
        ("vision", "stream.global_scale", "[0.9, 0.3]", "[0.9, 0.3] must rise"),
        ("vision", "evaluation.size", "[100000, 14]", "16384"),
    ],
)  # fmt: skip
def test_what_used_to_end_in_a_traceback_or_never(modality, setting, value, reason):
    told = refusal(modality, f"{setting}={value}")
    assert f"'{setting}" in told
    assert reason in told


@pytest.mark.parametrize(
    ("modality", "overrides", "reason"),
    [
        ("language", ["stream.batch_size=1048576", "stream.length=8192"],
         "stream.batch_size x stream.length is 8,589,934,592, above 1,073,741,824: lower one of them"),
        ("language", ["evaluation.length=1048576", "evaluation.batch_size=4096"],
         "evaluation.batch_size x evaluation.length is 4,294,967,296"),
        ("language", ["stream.accumulation=100000", "stream.prefetch=99"],
         "stream.accumulation x (1 + prefetch) x batch_size x length is 20,480,000,000"),
        ("language", ["designer.layers=128", "designer.hidden_size=8192"], "designer.layers x hidden_size^2 is"),
        ("language", ["direct.problems=4096", "direct.group=1024"], "direct.problems x direct.group is 4,194,304"),
        ("vision", ["stream.batch_size=1048576"], "stream.batch_size x the pixels of an image's crops is"),
        ("vision", ["stream.accumulation=100000"], "stream.accumulation x (1 + prefetch) x batch_size x the pixels"),
        ("vision", ["feedback.size=16384", "feedback.batch_size=4096"], "feedback.batch_size x size^2 is"),
        ("vision", ["feedback.size=16384", "feedback.head_batch_size=4096"], "feedback.head_batch_size x size^2 is"),
        ("vision", ["evaluation.size=16384", "evaluation.batch_size=4096"], "evaluation.batch_size x the pixels"),
        ("vision", ["stream.sources.0.scenes=1000000", "stream.sources.0.size=2048"],
         "scenes x cameras x size^2 is 4,194,304,000,000"),
        ("vision", ["learner.dino.outputs=1048576", "learner.dino.bottleneck=4096"], "dino.outputs x bottleneck is"),
        ("vision",
         [f"learner.ijepa.predictor_{name}" for name in ("width=8192", "layers=128", "heads=4")],
         "predictor_layers x predictor_width^2 is"),
        ("vision", ["designer.levels=10"], "designer.width x 2^levels is 16,384, above 8,192"),
        ("vision", ["designer.kind=dit", "designer.width=1024", "designer.layers=128"],
         "designer.layers x (12 width)^2 is"),
    ],
)  # fmt: skip
def test_what_multiplies_to_an_absurd_size_is_refused_with_the_product(modality, overrides, reason):
    assert reason in refusal(modality, *overrides)


def refused(command, capsys):
    """Whether a command ends in one line, which then comes within five seconds; else it ends well."""
    capsys.readouterr()
    start = time.monotonic()
    code = main(command)
    told = capsys.readouterr().err
    assert "Traceback" not in told, command
    assert code == 0 or (code == 2 and told.splitlines()[-1].startswith("vpretrain: ")), (command, told)
    assert code == 0 or time.monotonic() - start < 5, command
    return code == 2


PROMISE = "29 any value of any setting: one line within five seconds, or it works"


@pytest.mark.promise(PROMISE)
@pytest.mark.parametrize(
    ("modality", "overrides"),
    [
        ("language", ["seed=18446744073709551616", "threads=4294967296", "optimizer.betas=[.nan, .9]", "optimizer.lr=.inf",
                      "value.subset=name:(", "learner.device=meta", "evaluation.problems=1e30", 'output="a\\0b"',
                      "budget.minutes=.inf", "stream.batch_size=1000000000", "stream.sources.0.exclude={a: (}"]),
        ("vision", ["seed=-1", "stream.global_scale=[0.9, 0.3]", "designer.layers=1000000000", "feedback.size=.nan"]),
    ],
)  # fmt: skip
def test_check_and_run_refuse_what_is_out_of_bounds_at_once(tmp_path, tokenizer, capsys, fault, modality, overrides):
    recipe = small_recipe(modality, tmp_path, tokenizer)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    for override in overrides:
        for command in ("check", "run"):
            with fault():
                assert refused([command, str(tmp_path / "recipe.yaml"), override], capsys), override
    assert not recipe.directory.exists()


@pytest.mark.promise(PROMISE)
def test_check_and_run_work_at_the_bounds(tmp_path, tokenizer, capsys, fault):
    recipe = small_recipe("language", tmp_path, tokenizer)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    at_bounds = ["seed=2147483647", "optimizer.betas=[0.0, 0.0]", "stream.accumulation=1", "budget.steps=1"]
    for command in ("check", "run"):
        with fault():
            assert not refused([command, str(tmp_path / "recipe.yaml"), *at_bounds], capsys)
    assert (recipe.directory / "result.json").exists()


@pytest.mark.promise(PROMISE)
@pytest.mark.timeout(7200)
@modalities
def test_check_at_the_bounds_passes_or_ends_in_one_line_at_once(tmp_path, tokenizer, capsys, fault, many, modality):
    if many(True, False):
        pytest.skip("in the long form")
    recipe = small_recipe(modality, tmp_path, tokenizer)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    whole = recipe.model_dump(mode="json")
    check = ["check", str(tmp_path / "recipe.yaml")]
    assert main(check) == 0  # imports all, and draws the scenes
    for one in NUMBERS[modality]:
        for value in (one.smallest, min(one.largest, 64) if one.path[-1] in COSTLY else one.largest):
            if isinstance(outcome(one.within(whole, value)), str):
                continue  # as tested above
            with fault():
                refused([*check, f"{one.name}={json.dumps(one.wrap(value))}"], capsys)


@pytest.mark.promise(PROMISE)
@pytest.mark.timeout(14400)
@modalities
def test_check_with_odd_texts_passes_or_ends_in_one_line_at_once(
    tmp_path, tokenizer, capsys, fault, many, monkeypatch, modality
):
    if many(True, False):
        pytest.skip("in the long form")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # below which there is little to read, as in the home directory
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    file = tmp_path / "recipe.yaml"
    recipe = small_recipe(modality, tmp_path, tokenizer)
    whole = recipe.model_dump(mode="json")
    save_recipe(recipe, file)
    assert main(["check", str(file)]) == 0  # imports all, and draws the scenes
    for one in SETTINGS[modality]:
        for value in one.odd:
            if one.path[-1] == "prompt" and len(value or "") > 1000:
                continue  # 2,000 examples are read before it is refused, for it leaves no room in any
            data = one.within(whole, value)
            section = data
            for part in one.path[:-1]:
                section = section[part]
            section.update({name: other for name, other in BESIDE.get(one.path[-1], {}).items() if name in section})
            if isinstance(outcome(data), str):
                continue  # as tested above
            file.write_text(yaml.safe_dump(data), encoding="utf-8")
            with fault():
                refused(["check", str(file)], capsys)
