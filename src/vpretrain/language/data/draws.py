"""Endless draws from one source: in an order, with an exact cursor, and without the examples that cannot be read."""

from __future__ import annotations

from vpretrain.errors import Unreadable, or_unreadable
from vpretrain.language.config import SourceConfig, StreamConfig
from vpretrain.language.data.example import Example
from vpretrain.language.data.source import StreamingSource, open_source
from vpretrain.order import Shuffled
from vpretrain.run.skipped import Skipped
from vpretrain.types import Json


class Draws:
    """The examples of one source, or of one shard of it, epoch after epoch.

    Args:
        config: of the source.
        stream: says whether examples that cannot be read are skipped, and how many may be.
        seed: of each epoch's order; None: the source's own order, which a streaming source always has.
        shard: number of this shard.
        shards: number of shards. Together they give each example once per epoch.

    Attributes:
        source: the source.
        skipped: what was skipped.
    """

    def __init__(
        self, config: SourceConfig, stream: StreamConfig, seed: str | None, *, shard: int = 0, shards: int = 1
    ) -> None:
        self.source = open_source(config, shard=shard, shards=shards, skips=stream.on_error == "skip")
        self.skipped = Skipped(config.origin, stream)
        self._shard, self._shards = shard, shards
        self._drawn = 0  # examples taken from an indexed source
        self._order: Shuffled | None = None
        if seed is not None and not isinstance(self.source, StreamingSource):
            self._order = Shuffled(len(self.source), seed)

    def next(self) -> Example | None:
        """Return the next example; None in place of one that is skipped. Raises as `Skipped.met`."""
        found = or_unreadable(self._next)
        if isinstance(found, Unreadable):
            self.skipped.met(found, again=self._again)
            return None
        self.skipped.met(None, again=self._again)
        return found

    def state_dict(self) -> Json:
        """The cursor, JSON-ready."""
        return {
            "drawn": self._drawn,
            "skipped": self.skipped.state_dict(),
            "source": self.source.state_dict() if isinstance(self.source, StreamingSource) else None,
        }

    def load_state_dict(self, state: Json) -> None:
        """Continue from a cursor."""
        self._drawn = state["drawn"]
        self.skipped.load_state_dict(state["skipped"])
        if isinstance(self.source, StreamingSource):
            self.source.load_state_dict(state["source"])

    def _next(self) -> Example:
        if isinstance(self.source, StreamingSource):
            return self.source.next()
        number = self._drawn * self._shards + self._shard
        self._drawn += 1
        return self.source[number % len(self.source) if self._order is None else self._order[number]]

    @property
    def _again(self) -> bool:
        """Whether the last example came after the first epoch."""
        if isinstance(self.source, StreamingSource):
            return self.source.epoch > 0
        return (self._drawn - 1) * self._shards + self._shard >= len(self.source)
