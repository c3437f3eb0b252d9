"""The processes that train together, as torchrun started them; without torch.distributed, one.

All reductions are means over processes, as DDP and FSDP2 put gradients together: a process's part of a weighted mean, times a
share of weight / mean(weight), has the mean of the whole as its mean over processes.
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

from vpretrain.errors import Elsewhere, UserError

Item = TypeVar("Item")
_alone = False


@contextlib.contextmanager
def process_group() -> Iterator[None]:
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
def without_collectives() -> Iterator[None]:
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


def is_rank_0() -> bool:
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


@overload
def all_reduce_mean(values: float) -> float: ...
@overload
def all_reduce_mean(values: Mapping[str, float]) -> dict[str, float]: ...
@overload
def all_reduce_mean(values: Sequence[Tensor]) -> list[Tensor]: ...
def all_reduce_mean(values: Any) -> Any:
    """The mean over processes: of a number, of numbers by name, or of tensors of one type, in one reduction."""
    if isinstance(values, Mapping):
        return dict(zip(values, _mean_numbers(list(values.values())), strict=True))
    if isinstance(values, Sequence):
        return _mean_tensors(values)
    return _mean_numbers([values])[0]


def _mean_numbers(numbers: list[float]) -> list[float]:
    if size() == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total, group=_host())
    return (total / size()).tolist()


def _mean_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
    if size() == 1:
        return list(tensors)
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors]) / size()
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def on_any_rank(flag: bool) -> bool:
    """Whether it is so in any process."""
    return all_reduce_mean(float(flag)) > 0


def all_gather(item: Item) -> list[Item]:
    """Everyone's, by rank."""
    if size() == 1:
        return [item]
    items: list[Any] = [None] * size()
    dist.all_gather_object(items, item)
    return items


def broadcast(item: Item) -> Item:
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


def on_rank_0(act: Callable[[], Item]) -> Item:
    """What the process that leads gets by doing something that one alone must do, or the UserError that it meets."""
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
        raise Elsewhere(failure)
    return result


def on_all_ranks(act: Callable[[], Item]) -> list[Item]:
    """What the processes get by doing something, by rank; or, in all of them, the UserError that any has met."""
    outcome: Any
    try:
        outcome = act(), None
    except UserError as error:
        outcome = None, str(error)
    outcomes = all_gather(outcome)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    for _, failure in outcomes:
        if failure is not None:
            raise Elsewhere(failure)
    return [result for result, _ in outcomes]
