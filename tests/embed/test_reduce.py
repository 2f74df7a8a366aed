"""The tree of sums: the same bits for any number of processes."""

from __future__ import annotations

import threading
from contextlib import nullcontext

from hypothesis import given, settings
from hypothesis import strategies as st

from saft_hf.embed.reduce import tree_reduce


class Threads:
    """A world whose processes are threads."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, box: dict) -> None:
        self.rank, self.size, self._barrier, self._box = rank, size, barrier, box

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sync_errors(self, doing: str):
        return nullcontext()

    def broadcast(self, value, rank: int = 0):
        if self.rank == rank:
            self._box["value"] = value
        self._barrier.wait(timeout=10)
        got = self._box["value"]
        self._barrier.wait(timeout=10)
        return got


def reduced(shards: int, size: int) -> tuple[str | None, list[int]]:
    """The tree as text: a merge that is not associative shows its shape."""
    barrier, box, results, asked = threading.Barrier(size), {}, [None] * size, []

    def work(rank: int) -> None:
        def shard(index: int) -> str:
            asked.append(index)
            assert shards * rank // size <= index < shards * (rank + 1) // size
            return str(index)

        world = Threads(rank, size, barrier, box)
        results[rank] = tree_reduce(world, shards, shard, lambda a, b: f"({a} {b})")

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert results[1:] == [None] * (size - 1)
    return results[0], sorted(asked)


@settings(max_examples=40)
@given(st.integers(0, 70), st.integers(2, 7))
def test_any_number_of_processes_merges_along_the_same_tree(shards, size):
    one, _ = reduced(shards, 1)
    many, asked = reduced(shards, size)
    assert one == many
    assert asked == list(range(shards))
    assert (one is None) == (shards == 0)
