"""The unlabeled stream: a weighted mixture of sources, packed to rows of fixed length, with an exact cursor.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from vpretrain.errors import UserError
from vpretrain.language.config import SourceConfig, StreamConfig
from vpretrain.language.data.draws import Draws
from vpretrain.language.data.encode import Document, collate, encode, fitted
from vpretrain.language.data.example import Example
from vpretrain.language.model.batch import TokenBatch
from vpretrain.run.left_out import LeftOut, by_source, listed
from vpretrain.run.skipped import UNREADABLE, entries
from vpretrain.types import Json

HOPELESS = 2000  # this many examples in a row without a usable one end the run
HELD_BACK = "in feedback or evaluation"
_SHORT = "shorter than min_chunk"


class LanguageStream:
    """D_u, the stream. Seed and cursor determine every batch, so that all arms see the same batches.

    Args:
        config: sources and shape.
        tokenizer: the learner's; it has an end token.
        seed: order of the examples and choice of the sources.
        held_back: keys that must not be learned from (problems of feedback and evaluation).
        mixed_in: further sources of the mixture, with weights relative to those of `config`, from which nothing is held back.
            A row comes from one of them with probability weight / (sum of all weights). The other rows are, source by
            source, the same in the same order as without them; only which source a given row is drawn from can differ.
        rank: this process, from 0.
        processes: their number. The rows of a micro-batch are divided among them and do not depend on it.

    Raises:
        UserError: a source cannot be opened, or gives nothing that can be learned from; or a micro-batch cannot be divided
            evenly among the processes.
    """

    def __init__(
        self,
        config: StreamConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        held_back: frozenset[str] = frozenset(),
        mixed_in: Sequence[SourceConfig] = (),
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.config, self.tokenizer, self.seed = config, tokenizer, seed
        self.device: torch.device | str = "cpu"
        self.rows_drawn = 0  # by all processes
        self._rows = config.rows_for(rank, processes)
        sources = [(source, held_back) for source in config.sources] + [(source, frozenset()) for source in mixed_in]
        self._weights = [source.weight for source, _ in sources]
        self._origins = [source.origin for source, _ in sources]
        # Row i of a micro-batch comes from shard i % shards. A shard whose rows go to several processes is read by each.
        self._shards = {
            shard: [
                _Packer(source, config, tokenizer, f"{seed}/{i}", owned, shard)
                for i, (source, owned) in enumerate(sources)
            ]
            for shard in sorted({i % config.shards for i in self._rows})
        }

    @property
    def has_chats(self) -> bool:
        """Whether a source gives chats."""
        return any(packer.has_chats for packers in self._shards.values() for packer in packers)

    def left_out(self, cursor: Json) -> LeftOut:
        """The examples that were met and left out until a cursor, of this process or merged, by origin and reason."""
        packers = [pair for shard in cursor["shards"].values() for pair in zip(self._origins, shard, strict=True)]
        return by_source((origin, packer["left_out"]) for origin, packer in packers)

    def skipped(self, cursor: Json) -> list[Json]:
        """The rows that could not be read until a merged cursor, see `run.skipped`."""
        return entries(self._origins, cursor["shards"])

    def next(self) -> list[TokenBatch]:
        """Return the micro-batches of one learner step: `accumulation` times [batch_size / processes, length]."""
        return [self._batch() for _ in range(self.config.accumulation)]

    def state_dict(self) -> Json:
        """The cursor, JSON-ready: the number of rows drawn, and the position in each shard that is read here."""
        shards = {str(shard): [packer.state_dict() for packer in packers] for shard, packers in self._shards.items()}
        return {"rows_drawn": self.rows_drawn, "shards": shards}

    @staticmethod
    def merge(states: Sequence[Json]) -> Json:
        """Merge the cursors of all processes, after the same number of steps, into the whole stream's."""
        shards: Json = {}
        for state in states:
            assert state["rows_drawn"] == states[0]["rows_drawn"], "the processes are not equally far"
            for shard, cursors in state["shards"].items():
                assert shards.setdefault(shard, cursors) == cursors, f"two processes disagree on shard {shard}"
        return {"rows_drawn": states[0]["rows_drawn"], "shards": shards}

    def load_state_dict(self, state: Json) -> None:
        """Continue from a cursor, of this process or merged: the batches that follow are the same bit for bit."""
        self.rows_drawn = state["rows_drawn"]
        for shard, packers in self._shards.items():
            for packer, cursor in zip(packers, state["shards"][str(shard)], strict=True):
                packer.load_state_dict(cursor)

    def _batch(self) -> TokenBatch:
        rows = []
        for i in range(self.config.batch_size):
            packers = self._shards.get(i % self.config.shards)
            if packers is not None:
                draw = random.Random(f"{self.seed}/{self.rows_drawn + i}")  # the counter is the only state
                row = draw.choices(packers, self._weights)[0].row()
                if i in self._rows:
                    rows.append(row)
        self.rows_drawn += self.config.batch_size
        return collate(rows, self.tokenizer, length=self.config.length, average=self.config.average).to(self.device)


def usable(
    example: Example, tokenizer: PreTrainedTokenizerBase, config: StreamConfig, held_back: frozenset[str]
) -> Document | str:
    """Encode an example of a stream; if nothing can be learned from it, return the reason in place of the document."""
    if example.lacks:
        return example.lacks
    if example.key in held_back:
        return HELD_BACK
    if example.prompt:  # a pair or a chat is cut at its end; raw text continues in the next row
        return fitted(example, tokenizer, config.length)
    document = encode(example, tokenizer)
    return document if document.targets > 0 and len(document) >= min(config.min_chunk, config.length) else _SHORT


def rows_of(
    source: SourceConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    tokens: int,
    batch_size: int,
    packing: bool,
) -> list[TokenBatch]:
    """Batch the first rows of one source in its own order until they hold `tokens` tokens: fixed text to evaluate on."""
    config = StreamConfig(sources=[source], length=length, packing=packing, on_error="stop")
    packer = _Packer(source, config, tokenizer, None, frozenset())
    rows: list[list[Document]] = []
    while tokens > 0:
        rows.append(packer.row())
        tokens -= length if packing else sum(map(len, rows[-1]))  # packed rows are full, or nearly
    return [collate(rows[i : i + batch_size], tokenizer, length=length) for i in range(0, len(rows), batch_size)]


def _plain(document: Document) -> list[object]:
    """A document as JSON."""
    gaps = [list(gap) for gap in document.gaps]
    return [list(document.ids), document.context, document.raw, document.domain, document.key, *gaps]


class _Packer:
    """Fills rows with the documents of one source, or of one shard of it. `seed` None: in the source's own order."""

    def __init__(
        self,
        source: SourceConfig,
        config: StreamConfig,
        tokenizer: PreTrainedTokenizerBase,
        seed: str | None,
        held_back: frozenset[str],
        shard: int = 0,
    ) -> None:
        self.source_config, self.config, self.tokenizer = source, config, tokenizer
        self.left_out: Counter[str] = Counter()  # by reason
        self._held_back = held_back
        self._draws = Draws(source, config, seed, shard=shard, shards=config.shards)
        # The document that did not fit into the last row. The first is drawn here, so that an unusable source fails at once.
        self._waiting: Document | None = self._document()

    @property
    def has_chats(self) -> bool:
        """Whether the source gives chats."""
        return self._draws.source.config.messages is not None

    def row(self) -> list[Document]:
        """The documents of one row, at most `length` tokens."""
        documents: list[Document] = []
        room = self.config.length
        while room >= self.config.min_chunk or not documents:
            document = self._waiting or self._document()
            self._waiting = None
            if len(document) > room:
                if document.raw:
                    documents.append(document.cut(0, room))
                    rest = document.cut(room)
                    self._waiting = rest if len(rest) >= self.config.min_chunk else None
                else:
                    self._waiting = document
                break
            documents.append(document)
            room -= len(document)
            if not self.config.packing:
                break
        return documents

    def state_dict(self) -> Json:
        one = self._waiting
        waiting = None if one is None else _plain(one)
        return {**self._draws.state_dict(), "left_out": dict(self.left_out), "waiting": waiting}

    def load_state_dict(self, state: Json) -> None:
        self._draws.load_state_dict(state)
        self.left_out = Counter(state["left_out"])
        self._waiting = None
        if state["waiting"] is not None:
            ids, context, raw, domain, key, *gaps = state["waiting"]
            self._waiting = Document(
                tuple(ids), context, raw, domain, key, tuple((start, stop) for start, stop in gaps)
            )

    def _document(self) -> Document:
        """The next document with something to learn from."""
        for _ in range(HOPELESS):
            example = self._draws.next()
            if example is None:
                self.left_out[UNREADABLE] += 1
                continue
            found = usable(example, self.tokenizer, self.config, self._held_back)
            if isinstance(found, Document):
                return found
            self.left_out[found] += 1
        first = "".join(f"; the first: {place} {why}" for place, why in self._draws.skipped.named[:1])
        raise UserError(
            f"{self.source_config.origin}: {HOPELESS} examples in a row have no token to learn from: their prompts fill "
            f"stream.length={self.config.length}, they are shorter than stream.min_chunk, their fields are empty, or feedback "
            f"and evaluation own them; left out so far: {listed(self.left_out)}{first}"
        )
