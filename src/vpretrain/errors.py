"""The one kind of error that a user is expected to see."""


class UserError(ValueError):
    """Wrong input: one line that says what is wrong and what to do. The command line exits with code 2 on it."""
