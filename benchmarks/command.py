"""End a benchmark that fails or is stopped with one line and vpretrain's exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable

from vpretrain.errors import Interrupted, UserError


def command(main: Callable[[], None]) -> None:
    """Run a benchmark's main function."""
    try:
        main()
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted:
        print("benchmark: stopped; the same command goes on with the run that was interrupted", file=sys.stderr)
        sys.exit(130)
