"""Streams that are gone on with by other numbers of processes."""

from __future__ import annotations

import json

import torch

from vpretrain.run.prefetch import Prefetched


def resumed(opened, numbers, steps, tensors, prefetch=0):
    """Resume a stream with one number of processes after another; each time they read what one process reads, dealt out.

    `opened(rank, processes)` opens a stream; `tensors(batch, rows)` returns the tensors to compare, of a slice of a batch.
    Yields the stream of the one process and the others' merged cursor, so nothing is compared unless it is iterated.
    """
    whole = opened(0, 1)
    cursor = whole.state_dict()
    for processes in numbers:
        streams = [opened(rank, processes) for rank in range(processes)]
        if prefetch:
            streams = [Prefetched(stream, prefetch, torch.device("cpu")) for stream in streams]
        for stream in streams:
            stream.load_state_dict(cursor)
        for _ in range(steps):
            (expected,) = whole.next()
            for rank, stream in enumerate(streams):
                (batch,) = stream.next()
                dealt = slice(rank, None, processes)
                assert batch.keys == expected.keys[dealt]
                assert all(map(torch.equal, tensors(batch, slice(None)), tensors(expected, dealt)))
        cursor = json.loads(json.dumps(streams[0].merge([stream.state_dict() for stream in streams])))
        yield whole, cursor
