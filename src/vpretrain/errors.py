"""Exceptions that end a command early, without a traceback."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class UserError(ValueError):
    """Wrong input; the message is one line with the problem and the remedy. Exit code 2.

    Quoted text in it (names, values, other libraries' messages) can neither break the line nor control a terminal.

    Examples:
        >>> try:
        ...     load_recipe("recipe.yaml", ["optimiser.lr=1e-5"])
        ... except UserError as error:
        ...     print(error)
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class MachineError(UserError):
    """Under a run the machine fails, and not its input: a full disk, a lost connection. Exit code 74."""

    exit_code = 74


class Missing(UserError):
    """A learner or data that a recipe names are not there; the recipe may say how to fetch them."""


class NonFinite(UserError):
    """A loss, gradient or value is NaN or infinite; nothing was updated with it.

    Args:
        what: the number and its value, e.g. "the loss is nan".
        remedy: settings that may fix it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}: {remedy}")
        self.what, self.remedy = what, remedy


class Unreadable(UserError):
    """A row, an image or the rest of a file is not what its format says; a stream may skip it.

    Only for faults of the content, which are the same in every process and after a resume. What the machine fails to read is a
    UserError.

    Args:
        message: the line for a user whose run this ends.
        place: where it is, e.g. "line 3 of rows.jsonl".
        reason: what is wrong there, e.g. "is no object with fields".
    """

    def __init__(self, message: str, place: str = "", reason: str = "") -> None:  # by the message alone when unpickled
        super().__init__(message)
        self.place, self.reason = place, reason


class UnknownColumns(UserError):
    """Rows have no columns from which it can be guessed how they become text; templates say it.

    Args:
        message: the line for a user.
        path: of the data.
        pair: whether they must become a prompt and a response, not raw text.
    """

    def __init__(self, message: str, path: str, pair: bool) -> None:
        super().__init__(message)
        self.path, self.pair = path, pair


def or_unreadable(
    read: Callable[Arguments, Result], *arguments: Arguments.args, **keywords: Arguments.kwargs
) -> Result | Unreadable:
    """Return what a call returns, or the Unreadable that it raises."""
    try:
        return read(*arguments, **keywords)
    except Unreadable as error:
        return error


class Interrupted(BaseException):
    """A signal stopped the command; nothing was lost. Exit code 128 + the signal's number.

    The message says what was kept and how to continue. Like KeyboardInterrupt it passes through `except Exception`.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Paused(Exception):
    """A run has reached the fraction of its budget at which to pause; nothing was lost. Exit code 75 (try again)."""

    exit_code = 75


class FailedOnAnotherRank(UserError):
    """Another rank failed and has already reported why."""
