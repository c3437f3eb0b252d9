"""What ends a command early, without a traceback."""


class UserError(ValueError):
    """Wrong input; the text is one line that says what is wrong and what to do. Exit code 2."""


class Interrupted(Exception):
    """A signal stopped the command; nothing was lost. Exit code 128 + the signal's number.

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
