"""Output of the commands, and whether they can ask."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from vpretrain import console
from vpretrain.plot import can_draw
from vpretrain.types import Json


def can_ask() -> bool:
    """Whether somebody can answer."""
    return sys.stdin is not None and sys.stdin.isatty()  # started with <&- there is none


def hush_libraries() -> None:
    """Turn off the libraries' own progress bars and advice, unless --verbose asks for them; errors stay on."""
    if console.verbose:
        return
    # It takes long where their files are not in memory yet; of several processes one says so.
    first = os.environ.get("RANK", "0") == "0"
    with console.working("loading the libraries") if first else contextlib.nullcontext():
        import datasets
        import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def print_figures(result: Json) -> None:
    """Print the numbers and texts of a result, one per line."""
    for key, value in result.items():
        if value is not None and not isinstance(value, list | dict):
            print(f"{key:>20}  {value:.6g}" if isinstance(value, float) else f"{key:>20}  {value}")


def print_results(file: Path, draw: Callable[..., Path], *arguments: object) -> None:
    """Draw a picture of the results by `draw(*arguments)`, and print where both are."""
    picture = draw(*arguments) if can_draw() else "not drawn; pip install matplotlib"
    print(f"results: {file}   picture: {picture}")


def print_next(directory: Path) -> None:
    """Print the command that shows all of a run or comparison."""
    print(f"next:    vpretrain report {directory} (one HTML file of all this)")


def size_text(count: int) -> str:
    """Format a number of bytes."""
    units = {2**30: "GiB", 2**20: "MiB", 1: "bytes"}
    unit = next(size for size in units if count >= size or size == 1)
    return f"{count / unit:,.1f} {units[unit]}" if unit > 1 else f"{count:,} bytes"
