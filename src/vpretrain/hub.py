"""The Hugging Face hub, asked once whether it answers: its own clients retry for up to a minute."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator

SECONDS = 3.0  # for the hub's answer, names resolved
_REFUSED = (403, 407, 502, 503, 504)  # what a proxy answers for a hub that it does not reach


@contextlib.contextmanager
def access() -> Iterator[str | None]:
    """Yield None if the hub can be asked, else the reason why not; then transformers and datasets read their caches only."""
    from huggingface_hub import constants  # it takes a while, and `--help` should not wait for it

    if constants.HF_HUB_OFFLINE:
        yield "HF_HUB_OFFLINE is set"
    elif _answers(constants.ENDPOINT):
        yield None
    else:
        constants.HF_HUB_OFFLINE = True
        try:
            yield f"{constants.ENDPOINT} does not answer"
        finally:
            constants.HF_HUB_OFFLINE = False


def remedy(reason: str, *others: str) -> str:
    """Return the remedies for what the cache of a machine without the hub does not hold.

    Args:
        reason: from `access`.
        others: remedies that need no hub, e.g. "give a path".
    """
    fill = "fill the cache (HF_HOME) on a machine that reaches the hub, and set HF_HUB_OFFLINE=1"
    return f"{reason}: {', or '.join([*others, fill])}"


@functools.cache
def _answers(endpoint: str) -> bool:
    """Whether the hub answers in time, through the user's proxy if there is one. Tested once per process."""
    from huggingface_hub.utils import get_session

    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # of the network, the proxy or the HTTP client
            if get_session().head(endpoint, timeout=SECONDS).status_code not in _REFUSED:
                answered.set()

    thread = threading.Thread(target=ask, daemon=True)  # looking up a name has no timeout of its own
    thread.start()
    thread.join(SECONDS)
    return answered.is_set()
