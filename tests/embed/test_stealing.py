"""Shards are dealt to whoever is ready: each once, nobody waits, and nothing of it stays."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saft_hf.distributed import World
from saft_hf.embed.stealing import steal_shards
from saft_hf.embed.store import Store


class Others(World):
    """A world in which this process is one of several, and the others report what they are told to."""

    def __init__(self, rank: int, reports: list[list[int]]) -> None:
        self._rank, self._reports = rank, reports

    rank = property(lambda self: self._rank)  # type: ignore[assignment]
    size = property(lambda self: len(self._reports))  # type: ignore[assignment]

    def gather(self, value: Any) -> list[Any]:
        return [value if rank == self._rank else report for rank, report in enumerate(self._reports)]

    def on_main(self, doing: str, function: Callable[[], Any]) -> Any:
        if self._rank == 0:
            self._said.append(function())
        return self._said[-1]

    _said: ClassVar[list[Any]] = []


def draw_in_turn(reports: list[list[int]], turns: list[int], folder: Path, *, shared: bool = True) -> list[list[int]]:
    """What each process takes where they ask in the order of `turns`, and then each for all that is left."""
    drawn: list[list[int]] = [[] for _ in reports]
    store = Store(folder, ("1.response_mean",))
    with patch.object(Store, "is_shared", lambda self, world, run: shared), ExitStack() as stack:
        hands = [stack.enter_context(steal_shards(mine, store, Others(r, reports))) for r, mine in enumerate(reports)]
        for rank in turns:
            drawn[rank % len(reports)] += islice(hands[rank % len(reports)], 1)
        for rank, hand in enumerate(hands):
            drawn[rank] += hand
    return drawn


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.lists(st.integers(0, 4), max_size=40))
def test_every_missing_leaf_is_dealt_once_in_whatever_order_the_processes_ask(
    counts: list[int], turns: list[int]
) -> None:
    bounds = [sum(counts[:rank]) for rank in range(len(counts) + 1)]
    reports = [list(range(low, high)) for low, high in pairwise(bounds)]
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw_in_turn(reports, turns, Path(folder))
        assert sorted(shard for own in drawn for shard in own) == list(range(bounds[-1]))
        assert not list(Path(folder).iterdir())


def test_claims_of_killed_runs_are_swept_away_and_nothing_else(tmp_path: Path) -> None:
    store, killed, draft = Store(tmp_path, ("1.response_mean",)), ".run.0123abcd.tmp", tmp_path / ".00003.x.tmp"
    draft.touch()
    (tmp_path / killed).touch()
    assert store.claim(3, killed)
    assert not store.claim(3, killed)
    with store.run(World()) as living:
        assert store.claim(3, living)
        claim = f"{living.removesuffix('.tmp')}-00003.tmp"
        assert {path.name for path in tmp_path.iterdir()} == {draft.name, living, claim}
        assert draw_in_turn([[3], [4]], [], tmp_path) == [[3, 4], []]  # another run, beside it
        assert {path.name for path in tmp_path.iterdir()} == {draft.name, living, claim}
    assert list(tmp_path.iterdir()) == [draft]


def test_a_leaf_that_another_run_has_filled_is_left_to_its_owner(tmp_path: Path) -> None:
    Store(tmp_path, ("1.response_mean",)).path(5).touch()
    assert draw_in_turn([[0], [4, 5, 6]], [0] * 9, tmp_path) == [[0, 6, 4], [5]]


def test_a_process_takes_its_own_leaves_in_order_and_then_the_others_from_the_end(tmp_path: Path) -> None:
    reports = [[0, 1], [2, 3, 4, 5], [6, 7]]
    assert draw_in_turn(reports, [0, 0, 0, 0, 1, 1, 0, 2, 2], tmp_path) == [[0, 1, 5, 4, 7], [2, 3], [6]]


@pytest.mark.parametrize("reports", [[[], [4, 5, 6, 7], [8]], [[], [], []]])
def test_a_process_that_misses_nothing_helps_only_where_all_see_the_same_files(
    reports: list[list[int]], tmp_path: Path
) -> None:
    assert draw_in_turn(reports, [0, 1, 2] * 4, tmp_path, shared=False) == reports
    assert [len(own) for own in draw_in_turn(reports, [0, 1, 2] * 4, tmp_path)] == (
        [2, 2, 1] if reports[1] else [0] * 3
    )
