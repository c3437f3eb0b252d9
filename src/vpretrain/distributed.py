"""The processes that train together, as torchrun started them. Alone, every question here has the answer of one process.

All reductions are means over processes, as DDP and FSDP2 put gradients together: a process's part of a weighted mean, times a
share of weight / mean(weight), has the mean of the whole as its mean over processes.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vpretrain.errors import Elsewhere, UserError

Item = TypeVar("Item")
_alone = False


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes that the environment names (torchrun's RANK, WORLD_SIZE and so on), if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Gloo as well on GPUs: what the host knows and asks for need not wait for the device.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
        _host.cache_clear()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, this process works for itself."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def size() -> int:
    """W: how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def leads() -> bool:
    """Whether this process decides, writes and speaks for all."""
    return int(os.environ.get("RANK", "0")) == 0  # known before they meet, and when they have parted


@functools.cache
def _host() -> dist.ProcessGroup | None:
    """The group for numbers that the host knows; one of our own where others have set up the processes, for GPUs alone."""
    return None if "cpu" in dist.get_backend_config() else dist.new_group(backend="gloo")


def portion(field: str, count: int) -> int:
    """How many of so many fall to this process. Raises UserError if one would have none."""
    if count < size():
        raise UserError(f"{field}={count} is below the {size()} processes: raise it")
    return len(range(rank(), count, size()))


def mean(number: float) -> float:
    """Over processes."""
    return means({"": number})[""]


def means(numbers: Mapping[str, float]) -> dict[str, float]:
    """Over processes, of numbers that all have under the same names."""
    if size() == 1:
        return dict(numbers)
    total = torch.tensor(list(numbers.values()), dtype=torch.float64)
    dist.all_reduce(total, group=_host())
    return dict(zip(numbers, (total / size()).tolist(), strict=True))


def mean_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Over processes, of tensors of one type, in one reduction."""
    if size() == 1:
        return list(tensors)
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors]) / size()
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def any_of(flag: bool) -> bool:
    """Whether it is so in any process."""
    return mean(float(flag)) > 0


def gather(item: Item) -> list[Item]:
    """Everyone's, by rank."""
    if size() == 1:
        return [item]
    items: list[Any] = [None] * size()
    dist.all_gather_object(items, item)
    return items


def first(item: Item) -> Item:
    """That of the process that leads."""
    if size() == 1:
        return item
    if isinstance(item, float):
        number = torch.tensor(item, dtype=torch.float64)
        dist.broadcast(number, 0, group=_host())
        return type(item)(number)
    items = [item]
    dist.broadcast_object_list(items)
    return items[0]


def lead(act: Callable[[], Item]) -> Item:
    """What the process that leads gets by doing something that one alone must do, or the UserError that it meets."""
    outcome: tuple[Any, str | None] = (None, None)
    if leads():
        try:
            with alone():
                outcome = act(), None
        except UserError as error:
            first((None, str(error)))
            raise
    result, failure = first(outcome)
    if failure is not None:
        raise Elsewhere(failure)
    return result


def everyone(act: Callable[[], Item]) -> list[Item]:
    """What the processes get by doing something, by rank; or, in all of them, the UserError that any has met."""
    outcome: Any
    try:
        outcome = act(), None
    except UserError as error:
        outcome = None, str(error)
    outcomes = gather(outcome)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    for _, failure in outcomes:
        if failure is not None:
            raise Elsewhere(failure)
    return [result for result, _ in outcomes]
