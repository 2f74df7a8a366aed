"""Filtering a stream while the model trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from saft_hf.decide import Decision, OnError, decide, row_digest
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.render import Columns
from saft_hf.scorer import PROBABILITY, SCORE, STATUS
from saft_hf.scorer.inputs import first_of, limits_of

BATCH_ROWS = 16
"""Rows that are scored together: few, since SFTTrainer looks at the first row several times before it trains."""

Batch = Mapping[str, Sequence[Any]]
ScoreBatch = Callable[[Batch], Mapping[str, Any]]


class StreamFilter:
    """Says of each row of a batch whether to train on it, for `IterableDataset.filter(batched=True)`, and counts.

    Args:
        score: batch -> `saft_score` and `saft_status`.
        threshold: rows above it are left out.
        on_error: rows that cannot be scored: `exclude`, `keep` or `raise`.
        of_probe: whether the threshold is a probe's own.
    """

    def __init__(self, score: ScoreBatch, threshold: float, on_error: OnError, *, of_probe: bool = False) -> None:
        self._score = score
        self._of_probe = of_probe
        self._threshold = threshold
        self.on_error = on_error
        self._first: tuple[str, list[bool], dict[str, int]] | None = None
        self._begin = ""
        self._training = False
        self._counts = dict.fromkeys((word.value for word in Decision), 0)

    def __call__(self, batch: Batch) -> list[bool]:
        """Decide a batch. The stream's first one is decided once, however often SFTTrainer looks at it."""
        batch = Columns(batch)
        # Once training has begun, only its first batch is named: that tells whether processes read the same rows.
        name = "" if self._training and self._begin else row_digest(batch)
        if self._first is not None and self._first[0] == name:
            _, kept, counts = self._first
        else:
            scored = self._score(batch)
            scores = np.asarray(scored[SCORE], dtype=np.float32)
            limits = limits_of(self._threshold, scores, scored.get(PROBABILITY), of_probe=self._of_probe)
            decisions = decide(scores, scored[STATUS], limits, on_error=self.on_error)
            trained_on = set(decisions.train_rows().tolist())
            kept = [row in trained_on for row in range(len(decisions))]
            counts = decisions.counts() | decisions.reason_counts()[Decision.ERRORED]
            self._first = self._first or (name, kept, counts)
        self._begin = self._begin or name
        for word, count in counts.items():
            self._counts[word] = self._counts.get(word, 0) + count
        return kept

    def restart(self) -> None:
        """Forget the counts: what was looked at before training does not count."""
        self._begin, self._training = "", True
        self._counts = dict.fromkeys(self._counts, 0)  # of each decision, and of each status without a score

    def totals(self, world: World) -> dict[str, int]:
        """Rows of each decision, and of each status without a score, so far and of all processes together. Collective.

        Where each process reads the whole stream, to train on its part of it, a row counts once.
        """
        reports = world.gather((self._begin, self._counts))
        same = len({begin for begin, _ in reports}) == 1
        add: Callable[[list[int]], int] = max if same else sum
        words = dict.fromkeys(word for _, counts in reports for word in counts)
        return {word: add([counts.get(word, 0) for _, counts in reports]) for word in words}


def first_rows(stream: IterableDataset, count: int | None, world: World, name: str = "train_dataset") -> Dataset:
    """The first rows of a stream, those of the first process on every one.

    Args:
        stream: the rows.
        count: how many; None for all of them.
        world: the processes that work together.
        name: of the stream, for people.

    Raises:
        SAFTInputError: the stream is empty.
    """
    rows = Dataset.from_dict({})
    with world.sync_errors("reading the stream"):
        if world.is_main:
            rows = first_of(stream, count)
            if len(rows) == 0:
                raise SAFTInputError(f"`{name}` is an empty stream: there is no row to score.")
    return world.broadcast(rows)
