"""The processes that torchrun has started. Without torch.distributed every function behaves as with world size 1.

All reductions are means over processes, as in DDP and FSDP2. So a process scales its part of a weighted mean by
weight / mean(weight); the mean of the scaled parts over processes is the mean of the whole.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

import torch
import torch.distributed as dist
from torch import Tensor

from vpretrain.errors import FailedOnAnotherRank, UserError

Item = TypeVar("Item")
_alone = False


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes that the environment names (torchrun's RANK, WORLD_SIZE and so on), if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Gloo on GPUs too: collectives on data of the host need not wait for the device.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
        _host.cache_clear()


@contextlib.contextmanager
def without_collectives() -> Iterator[None]:
    """Make every function behave as with world size 1, inside the context."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def size() -> int:
    """Return W, the number of processes."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def is_rank_0() -> bool:
    """Whether this is rank 0, which decides, writes and prints for all."""
    return int(os.environ.get("RANK", "0")) == 0  # also before the processes join and after they leave


@functools.cache
def _host() -> dist.ProcessGroup | None:
    """Return the group for data of the host; a new one if the processes were set up elsewhere, for GPUs alone."""
    return None if "cpu" in dist.get_backend_config() else dist.new_group(backend="gloo")


def portion(field: str, count: int) -> int:
    """Return how many of `count` items this process gets. Raises UserError if any process would get none."""
    if count < size():
        raise UserError(f"{field}={count} is below the {size()} processes: raise it")
    return len(range(rank(), count, size()))


@overload
def all_reduce_mean(values: float) -> float: ...
@overload
def all_reduce_mean(values: Mapping[str, float]) -> dict[str, float]: ...
@overload
def all_reduce_mean(values: Sequence[Tensor]) -> list[Tensor]: ...
def all_reduce_mean(values: Any) -> Any:
    """Return the mean over processes of a number, of numbers by name, or of tensors of one dtype, in one all-reduce."""
    if isinstance(values, Mapping):
        return dict(zip(values, _mean_numbers(list(values.values())), strict=True))
    if not isinstance(values, Sequence):
        return _mean_numbers([values])[0]
    if size() == 1:
        return list(values)
    flat = torch.cat([tensor.detach().flatten() for tensor in values]) / size()
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in values])
    return [part.view_as(tensor) for part, tensor in zip(parts, values, strict=True)]


def _mean_numbers(numbers: list[float]) -> list[float]:
    if size() == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total, group=_host())
    return (total / size()).tolist()


def all_gather(item: Item) -> list[Item]:
    """Return the items of all processes, by rank."""
    if size() == 1:
        return [item]
    items: list[Any] = [None] * size()
    dist.all_gather_object(items, item)
    return items


def broadcast(item: Item) -> Item:
    """Return rank 0's item."""
    if size() == 1:
        return item
    if isinstance(item, float):
        number = torch.tensor(item, dtype=torch.float64)
        dist.broadcast(number, 0, group=_host())
        return type(item)(number)
    items = [item]
    dist.broadcast_object_list(items)
    return items[0]


def on_rank_0(act: Callable[[], Item]) -> Item:
    """Call `act` on rank 0 alone; in all processes, return its result or raise a UserError if it did."""
    outcome: tuple[Any, str | None] = (None, None)
    if is_rank_0():
        try:
            with without_collectives():
                outcome = act(), None
        except UserError as error:
            broadcast((None, str(error)))
            raise
    result, failure = broadcast(outcome)
    if failure is not None:
        raise FailedOnAnotherRank(failure)
    return result


def on_all_ranks(act: Callable[[], Item]) -> list[Item]:
    """Call `act` in all processes; in each, return the results by rank, or raise a UserError if any of them did."""
    outcomes: list[tuple[Any, str | None]]
    try:
        outcomes = all_gather((act(), None))
    except UserError as error:
        all_gather((None, str(error)))
        raise
    for _, failure in outcomes:
        if failure is not None:
            raise FailedOnAnotherRank(failure)
    return [result for result, _ in outcomes]
