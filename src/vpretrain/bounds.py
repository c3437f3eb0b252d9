"""Types of settings with their bounds, for the models of recipes.

The bounds are wide: beyond them numbers overflow, work has no end, or nothing fits into all machines together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from vpretrain.errors import UserError

MANY = 10**12  # steps of a run, or examples of a data set
MOST_ROWS = 2**20  # of a micro-batch, for all processes
LONGEST = 2**24  # tokens of a row
WEIGHTS = 2**30  # layers x width^2 of a network that is trained beside the learner
LARGEST_OPTION = 10**6  # of a generator of problems: digits, terms or nodes, which it makes in memory
LARGEST_SEED = 2**31 - 1  # a sweep adds its trials to the seed, and numpy takes 32 bits
_NAME, _PATH = 255, 3000  # bytes: of a name in a file system, and of a path that leaves room for the files below it
# torch's, without `meta`, which holds no numbers. Another plugin's is privateuseone.
_DEVICES = "cpu|cuda|mps|xpu|hpu|npu|mlu|musa|mtia|maia|xla|privateuseone"
_DEVICE = re.compile(rf"auto|({_DEVICES})(:(0|[1-9][0-9]?))?")

Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=100)]  # learning rates
Norm = Annotated[float, Field(gt=0, le=10**12)]  # to which gradients are clipped; large: they are not
Weight = Annotated[float, Field(ge=0, le=1_000_000)]  # of a term of a loss
Temperature = Annotated[float, Field(ge=0.001, le=100)]
Minutes = Annotated[float, Field(gt=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Rows = Annotated[int, Field(ge=1, le=MOST_ROWS)]
Tokens = Annotated[int, Field(ge=8, le=LONGEST)]


def at_most(most: int, number: int, product: str) -> None:
    """Raise UserError if settings that are within their own bounds multiply to too large a number."""
    if number > most:
        raise UserError(f"{product} is {number:,}, above {most:,}: lower one of them")


def check_subset(spec: str) -> str:
    """Return a spec of S. Raises UserError if it is malformed."""
    kind, _, pattern = spec.partition(":")
    if kind == "name" and pattern:
        _regex(pattern)
    elif spec not in ("all", "last-mlp") and not re.fullmatch(r"last-[1-9][0-9]{0,3}", spec):
        raise UserError(f"the subset '{spec}' must be last-mlp, last-N (e.g. last-2), all, or name:REGEX")
    return spec


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"'{pattern}' is no regular expression: {error}") from None
    return pattern


def _device(name: str) -> str:
    if not _DEVICE.fullmatch(name):
        known = _DEVICES.replace("|", ", ")
        raise UserError(f"'{name}' is no device that trains: give auto, {known}, or one of several, as cuda:1")
    return name


def check_location(text: str) -> str:
    """Return a path, or a URL, which is looked up elsewhere. Raises UserError if the system cannot look it up."""
    if "://" in text:
        return text
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise UserError(f"the path {text!r} is no UTF-8: rename what is there") from None
    if size > _PATH or any(len(name.encode()) > _NAME for name in text.split("/")):
        raise UserError(f"a path takes {_PATH:,} bytes at most, and each name in it {_NAME}: shorten it")
    expanded(text)
    return text


def expanded(text: str) -> Path:
    """Return a path with a home directory in place of its `~`. Raises UserError if there is none."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"there is no home directory {text.split('/')[0]}: write it out") from None


def _hub_name(text: str) -> str:
    # Given a path, `datasets` would read all that lies below it.
    if not text or text.startswith(("/", "~")) or {".", ".."} & set(text.split("/")):
        raise UserError(
            f"'{text}' is no name of a data set on the hub, such as openai/gsm8k: give a folder as the path"
        )
    return text


Subset = Annotated[str, AfterValidator(check_subset)]
Regex = Annotated[str, AfterValidator(_regex)]
Device = Annotated[str, AfterValidator(_device)]
Location = Annotated[str, AfterValidator(check_location)]
HubName = Annotated[str, AfterValidator(_hub_name)]
