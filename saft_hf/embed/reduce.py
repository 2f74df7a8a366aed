"""Sums whose last bit does not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from saft_hf.distributed import World

T = TypeVar("T")


def tree_reduce(world: World, num_shards: int, shard_value: Callable[[int], T], merge: Callable[[T, T], T]) -> T | None:
    """Merge one value a shard along a binary tree whose shape depends on the number of shards alone.

    Each process merges the subtrees that lie within its own shards; what is left, few values for each process, is
    merged on the main one. Adding up a sum for each process instead would change the last bits of most scores
    with the number of processes.

    Args:
        world: the processes; shard `i` belongs to the process whose share of neighbours holds it.
        num_shards: how many shards the plan has.
        shard_value: gives the value of a shard of this process.
        merge: joins the values of two neighbours, left one first.

    Returns:
        The merged value on the main process (None where there are no shards), None on the others.
    """
    bounds = [num_shards * rank // world.size for rank in range(world.size + 1)]

    def owner(low: int, high: int) -> int | None:
        for rank in range(world.size):
            if bounds[rank] <= low and high <= bounds[rank + 1]:
                return rank
        return None

    def fold(low: int, high: int) -> T:
        if high - low == 1:
            return shard_value(low)
        middle = (low + high) // 2
        return merge(fold(low, middle), fold(middle, high))

    def subtrees(low: int, high: int) -> list[tuple[int, int]]:
        """The largest subtrees that one process can merge alone, left to right."""
        if owner(low, high) is not None:
            return [(low, high)]
        middle = (low + high) // 2
        return subtrees(low, middle) + subtrees(middle, high)

    if num_shards == 0:
        return None
    values: dict[tuple[int, int], T] = {}
    with world.sync_errors("summing moments"):
        for span in subtrees(0, num_shards):
            if owner(*span) == world.rank:
                values[span] = fold(*span)

    def collect(low: int, high: int) -> T | None:
        rank = owner(low, high)
        if rank is not None:
            value = world.broadcast(values.pop((low, high), None), rank)
            return value if world.is_main else None
        middle = (low + high) // 2
        left, right = collect(low, middle), collect(middle, high)
        return None if left is None or right is None else merge(left, right)

    return collect(0, num_shards)
