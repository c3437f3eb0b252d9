"""What ends a command early, without a traceback."""


class UserError(ValueError):
    """Wrong input; the text is one line that says what is wrong and what to do. Exit code 2.

    Whatever is quoted in it (names, values, other libraries) can neither break the line nor steer a terminal.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class NonFinite(UserError):
    """A loss, gradient or value is no finite number; nothing was updated with it.

    Args:
        what: and which, e.g. "the loss is nan".
        remedy: settings that mend it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}: {remedy}")
        self.what, self.remedy = what, remedy


class Interrupted(BaseException):
    """A signal stopped the command; nothing was lost. Exit code 128 + the signal's number.

    Like KeyboardInterrupt it passes through what handles mere mistakes.

    Args:
        signal_number: the signal.
        message: what was kept and how to go on.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Paused(Exception):
    """A run has reached the share of its budget at which it was to leave off; nothing was lost. Exit code 75 (try again)."""

    exit_code = 75


class Elsewhere(UserError):
    """What another process has met, and tells."""
