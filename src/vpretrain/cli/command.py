"""A command: a function with its example and arguments. Its name and docstring are the command's name and help."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from vpretrain.errors import Missing
from vpretrain.recipe import how_to_fetch, load_recipe, setting_choices, setting_names
from vpretrain.types import Keywords

Options = argparse.Namespace
Argument = Callable[[argparse._ActionsContainer], argparse.Action]
"""Adds an argument to a parser, or to a group of it."""
_LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Command:
    """A command; called with the options, it returns the exit code, None being 0."""

    handler: Callable[..., int | None]
    examples: str  # one call per line
    arguments: tuple[Argument, ...]
    recipe: bool  # whether it takes a recipe and settings to change; its handler gets the recipe, then the options
    notes: str  # at the end of its help

    @property
    def name(self) -> str:
        """What calls it."""
        return self.handler.__name__

    def __call__(self, options: Options) -> int | None:
        if self.recipe:
            try:
                return self.handler(load_recipe(options.recipe, options.overrides), options)
            except Missing as error:
                raise Missing(f"{error}{how_to_fetch(options.recipe)}") from error
        return self.handler(options)

    def add_to(self, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Add its parser to those of the other commands."""
        what = self.handler.__doc__ or ""
        parser = subparsers.add_parser(
            self.name,
            help=what[:1].lower() + what[1:].removesuffix("."),
            description=what,
            epilog=f"Example:\n  {self.examples}" + (f"\n\n{self.notes}" if self.notes else ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(command=self)
        add_switches(parser, default=argparse.SUPPRESS)  # the main parser's value stays where it is not given here
        if self.recipe:
            parser.add_argument("recipe", metavar="RECIPE", help="YAML file with the settings of the run")
            overrides(parser)
        for add in self.arguments:
            add(parser)


def command(
    examples: str, *arguments: Argument, recipe: bool = False, notes: str = ""
) -> Callable[[Callable[..., int | None]], Command]:
    """Return a decorator that makes a command of its handler, see `Command`."""
    return lambda handler: Command(handler, examples, arguments, recipe, notes)


recipe_command = partial(command, recipe=True)
"""The same for a command that takes a recipe and settings to change."""


def argument(
    name: str, metavar: str | None, what: str, *, complete: Callable[..., list[str]] | None = None, **kwargs: Any
) -> Argument:
    """Return an option, or, if the name has no hyphens, a positional argument.

    Args:
        name, metavar, what, kwargs: of `add_argument`.
        complete: returns what a word may become, for argcomplete; None: argcomplete's own.
    """

    def add(parser: argparse._ActionsContainer) -> argparse.Action:
        action = parser.add_argument(name, metavar=metavar, help=what, **kwargs)
        if complete is not None:
            action.completer = complete  # type: ignore[attr-defined]
        return action

    return add


def switch(option: str, what: str, default: object = False) -> Argument:
    """Return an option without a value."""
    return lambda parser: parser.add_argument(option, action="store_true", default=default, help=what)


def count(option: str, default: int | None, what: str, *, least: int = 1, required: bool = False) -> Argument:
    """Return an option that is a whole number."""
    kind = partial(_to_count, least=least)
    return argument(option, "N", _with_default(what, default), type=kind, default=default, required=required)


def number(option: str, default: float | None, what: str, metavar: str = "X", *, most: float = _LARGEST) -> Argument:
    """Return an option that is a number above 0."""
    return argument(option, metavar, _with_default(what, default), type=partial(to_number, most=most), default=default)


def overrides(parser: argparse._ActionsContainer) -> argparse.Action:
    """Add the settings to change, which a shell can complete."""
    what = "settings to change, as field=value with dots for nesting, e.g. optimizer.lr=1e-5 stream.sources.0.limit=100"
    return argument("overrides", "field=value", what, complete=_complete_setting, nargs="*", default=[])(parser)


def resume(what: str) -> tuple[Argument, Argument]:
    """Return the options of a command whose work may have begun earlier."""
    return (
        switch("--resume", f"continue {what} after an interruption"),
        switch("--overwrite", f"delete {what} of the same name"),
    )


def add_switches(parser: argparse.ArgumentParser, default: object) -> None:
    """Add --quiet and --verbose."""
    group = parser.add_mutually_exclusive_group()
    switch("--quiet", "no progress and no remarks: only results, warnings and errors", default)(group)
    switch("--verbose", "also how long each piece of work took, and the messages of the libraries", default)(group)


def chosen(options: Options, *names: str) -> Keywords:
    """Return some of the options by name."""
    return {name: getattr(options, name) for name in names}


def to_number(text: str, most: float) -> float:
    """Read a number above 0. Raises ArgumentTypeError."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) <= most:
            return number
    limit = f" and up to {most:g}" if most < _LARGEST else ""
    raise argparse.ArgumentTypeError(f"{text}: give a number above 0{limit}")


def _to_count(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number from {least}")
    return int(text)


def _with_default(what: str, default: float | None) -> str:
    return what if default is None else f"{what} (default: {default})"


def _complete_setting(prefix: str, **_: object) -> list[str]:
    name, equals, begun = prefix.partition("=")
    if equals:
        return [f"{name}={choice}" for choice in setting_choices(name) if choice.startswith(begun)]
    return [f"{name}=" for name in setting_names() if name.startswith(prefix)]


def complete_name(prefix: str, **_: object) -> list[str]:
    """Complete the name of a setting. For argcomplete."""
    return [name for name in setting_names() if name.startswith(prefix)]


def complete_arms(prefix: str, **_: object) -> list[str]:
    """Complete the last of several arms with commas between them. For argcomplete."""
    before, comma, begun = prefix.rpartition(",")
    return [f"{before}{comma}{arm}" for arm in setting_choices("arm") if arm.startswith(begun)]
