"""Streams that are gone on with by other numbers of processes."""

from __future__ import annotations

import json

import torch

from vpretrain.run.prefetch import Prefetched


def resumed(opened, numbers, steps, tensors, prefetch=0):
    """Each of these numbers of processes goes on for some steps, and reads what one process reads, dealt out.

    `tensors` are those of a batch's units, a slice. Yields the stream of one process, and the cursor that the others have left.
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
