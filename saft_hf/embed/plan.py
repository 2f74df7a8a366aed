"""Batches, planned once from content, the same for any number of processes.

Equal renderings are embedded once. Unique renderings are sorted by length and key and cut into batches by a budget.
Batches of long and of short rows are then spread evenly, so that neighbours cost the same whatever a token costs in a
long row, and cut into shards: the unit that a process takes, the store writes and the moments are summed in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from saft_hf.embed.prefix import is_worth_it

KEY_BYTES = 16
MIN_SHARDS, MAX_SHARDS = 64, 4096
SHARD_BYTES = 64 * 2**20
MAX_PADDING = 0.04
_FILLS_ACCELERATOR = 4096
_HELD_TOKENS = 4096
"""Tokens whose keys and values a batch may hold, at least: they take far less than what is computed from them."""


@dataclass(frozen=True)
class Plan:
    """Which unique renderings are embedded together, and which rows they stand for.

    Attributes:
        keys: `uint8 [U, 16]`, keys of the unique renderings; in each batch the longest first, ties by key.
        lengths: `int32 [U]`, tokens that the forward must be fed, after the prefix.
        counts: `int64 [U]`, how many rows share the rendering.
        first_row: `int64 [U]`, one row that has it.
        row_to_unique: `int64 [N]`, index into `keys`; -1 where a row has no rendering.
        batches: `int64 [B + 1]`, bounds of the batches in unique renderings.
        shards: `int64 [S + 1]`, bounds of the shards in batches.
        prefix: `int32 [P]`, tokens with which all of them start and which are read once; most often none.
        digest: names the plan: equal digests mean the same vectors in the same batches.
    """

    keys: NDArray[np.uint8]
    lengths: NDArray[np.int32]
    counts: NDArray[np.int64]
    first_row: NDArray[np.int64]
    row_to_unique: NDArray[np.int64]
    batches: NDArray[np.int64]
    shards: NDArray[np.int64]
    prefix: NDArray[np.int32]
    digest: str

    @property
    def num_unique(self) -> int:
        """How many different renderings there are."""
        return len(self.keys)

    @property
    def num_shards(self) -> int:
        """How many shards the plan has."""
        return len(self.shards) - 1

    @property
    def padding_share(self) -> float:
        """Share of the tokens in all batches that is padding."""
        padded = int((np.diff(self.batches) * self._widths).sum())
        return 1.0 - int(self.lengths.sum()) / padded if padded else 0.0

    @property
    def _widths(self) -> NDArray[np.int64]:
        """Longest rendering of each batch: its first, as lengths fall."""
        return self.lengths[self.batches[:-1]].astype(np.int64)

    def shard_batches(self, shard: int) -> list[slice]:
        """The batches of a shard, as slices of unique renderings."""
        bounds = self.batches[self.shards[shard] : self.shards[shard + 1] + 1]
        return [slice(a, b) for a, b in pairwise(bounds.tolist())]

    def shard_slice(self, shard: int) -> slice:
        """All unique renderings of a shard."""
        return slice(int(self.batches[self.shards[shard]]), int(self.batches[self.shards[shard + 1]]))

    def shard_keys(self, shard: int) -> NDArray[np.uint8]:
        """Keys of a shard's unique renderings, `uint8 [n, 16]`."""
        return self.keys[self.shard_slice(shard)]

    def shards_of(self, rank: int, size: int) -> range:
        """The shards that one of `size` processes takes: neighbours, so that moments merge in few pieces."""
        return range(self.num_shards * rank // size, self.num_shards * (rank + 1) // size)


def make_plan(
    keys: NDArray[np.uint8],
    lengths: NDArray[np.int32],
    usable: NDArray[np.bool_],
    *,
    token_budget: int,
    bytes_per_row: int,
    prefix: NDArray[np.int32] | None = None,
) -> Plan:
    """Plan the batches for N rows.

    Args:
        keys: `uint8 [N, 16]`, key of each row's rendering (anything where `usable` is False).
        lengths: `int32 [N]`, tokens that must be fed for the row.
        usable: `bool [N]`, whether the row has a rendering to embed.
        token_budget: tokens in one batch, padding included (a single longer rendering is a batch of its own).
        bytes_per_row: size of all the vectors of one rendering, so that a shard stays a small file.
        prefix: `int32 [P]`, tokens with which every usable row starts: they are read once where that saves time.
    """
    rows, is_first = _sorted_rows(keys, lengths, usable)
    first_row = rows[is_first]
    unique_lengths = lengths[first_row].astype(np.int32)
    if prefix is None or not is_worth_it(len(prefix), unique_lengths):
        prefix = np.zeros(0, dtype=np.int32)
    unique_lengths -= np.int32(len(prefix))
    batches = _cut_batches(unique_lengths, token_budget, len(prefix))
    batches, order = _spread(batches)
    first_row, unique_lengths = first_row[order], unique_lengths[order]
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    row_to_unique = np.full(len(keys), -1, dtype=np.int64)
    row_to_unique[rows] = position[np.cumsum(is_first) - 1]
    shards = _cut_shards(unique_lengths, batches, bytes_per_row)
    unique_keys = np.ascontiguousarray(keys[first_row])
    digest = hashlib.sha256(unique_keys.data)
    for part in (unique_lengths, batches, shards):
        digest.update(np.ascontiguousarray(part, dtype="<i8").data)
    digest.update(prefix.astype("<i4").tobytes())
    return Plan(
        keys=unique_keys,
        lengths=unique_lengths,
        counts=np.bincount(row_to_unique[rows], minlength=len(first_row)).astype(np.int64),
        first_row=first_row,
        row_to_unique=row_to_unique,
        batches=batches,
        shards=shards,
        prefix=prefix,
        digest=digest.hexdigest(),
    )


def token_budget_for(hidden_size: int, intermediate_size: int, dtype_bytes: int, *, on_cpu: bool = False) -> int:
    """Tokens in one batch, from the model's shape and dtype and the kind of device alone.

    On an accelerator as many as 1 GiB holds of the widest activations of one block (two of the feed-forward width, four
    of the hidden width), from 512 to 32,768: on an H100 a 7B model is as fast at 8,192 as beyond, and a 0.1B model
    three times as fast at 16,384 as at 4,096, since it waits for launches. On a CPU 512 are enough to keep it busy, and
    more fall out of its cache.
    """
    budget = 512 if on_cpu else 32768
    per_token = (2 * intermediate_size + 4 * hidden_size) * dtype_bytes
    while budget > 512 and budget * per_token > 2**30:
        budget //= 2
    return budget


def find_keys(table: NDArray[np.uint8], keys: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Position of each key in a table of different keys (both `uint8 [*, 16]`); -1 where it is not in it."""
    if len(table) == 0 or len(keys) == 0:
        return np.full(len(keys), -1, dtype=np.int64)
    ordered, wanted = _as_bytes(table), _as_bytes(keys)
    order = np.argsort(ordered, kind="stable")
    position = np.minimum(np.searchsorted(ordered, wanted, sorter=order), len(order) - 1)
    at = order[position]
    return np.where(ordered[at] == wanted, at, -1).astype(np.int64)


def _as_bytes(keys: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Keys as one sortable scalar each (all are 16 bytes long, so trailing zeros compare as they should)."""
    return np.ascontiguousarray(keys).view(f"S{KEY_BYTES}").reshape(-1)


def _sorted_rows(
    keys: NDArray[np.uint8], lengths: NDArray[np.int32], usable: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Usable rows by descending length, key and number, and whether each is the first of its key."""
    rows = np.flatnonzero(usable)
    halves = [half.astype(np.uint64) for half in np.ascontiguousarray(keys).view(">u8")[rows].T]
    order = np.lexsort((halves[1], halves[0], -lengths[rows]))  # stable: equal rows stay in the order of their numbers
    is_first = np.zeros(len(rows), dtype=np.bool_)
    is_first[:1] = True
    for half in halves:
        is_first[1:] |= half[order[1:]] != half[order[:-1]]
    return rows[order], is_first


def _cut_batches(lengths: NDArray[np.int32], token_budget: int, prefix: int) -> NDArray[np.int64]:
    """Cut descending lengths where the budget is full, or earlier where a batch of fair size would pad too much.

    Keys and values of a prefix of so many tokens stand before each row, and take memory too.
    """
    # An accelerator loses less by padding than by a batch that does not fill it.
    fair = token_budget // (4 if token_budget >= _FILLS_ACCELERATOR else 8)
    total = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    bounds = [0]
    while bounds[-1] < len(lengths):
        first = bounds[-1]
        width = max(1, int(lengths[first]))
        held = max(token_budget, _HELD_TOKENS) // (width + prefix)
        most = min(len(lengths) - first, max(1, min(token_budget // width, held)))
        padded = width * np.arange(1, most + 1)
        padding = 1 - (total[first + 1 : first + most + 1] - total[first]) / padded
        fits = np.flatnonzero((padded <= fair) | (padding <= MAX_PADDING))
        bounds.append(first + 1 + int(fits[-1]) if len(fits) else first + 1)
    return np.asarray(bounds, dtype=np.int64)


def _spread(batches: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Put batches (bounds, `int64 [B + 1]`) in an order of which every stretch has its part of early and late ones.

    Van der Corput's sequence: numbers in the order of their mirrored binary digits.

    Returns:
        Bounds of the batches in the new order, and where each rendering of it was.
    """
    sizes = np.diff(batches)
    numbers = np.arange(len(sizes))
    mirrored = np.zeros(len(sizes), dtype=np.int64)
    for bit in range(max(1, len(sizes)).bit_length()):
        mirrored = 2 * mirrored + ((numbers >> bit) & 1)
    chosen = np.argsort(mirrored)
    moved = sizes[chosen]
    bounds = np.concatenate([[0], np.cumsum(moved)]).astype(np.int64)
    order = np.arange(bounds[-1]) + np.repeat(batches[:-1][chosen] - bounds[:-1], moved)
    return bounds, order


def _cut_shards(lengths: NDArray[np.int32], batches: NDArray[np.int64], bytes_per_row: int) -> NDArray[np.int64]:
    """Cut the batches into shards of about equal cost."""
    num_batches = len(batches) - 1
    if num_batches == 0:
        return np.zeros(1, dtype=np.int64)
    by_size = 1 << max(0, (len(lengths) * bytes_per_row // SHARD_BYTES)).bit_length()
    wanted = min(num_batches, max(MIN_SHARDS, min(MAX_SHARDS, by_size)))
    cost = np.cumsum(np.diff(batches) * lengths[batches[:-1]].astype(np.int64))
    targets = cost[-1] * np.arange(1, wanted, dtype=np.int64) // wanted
    cuts = np.searchsorted(cost, targets, side="left") + 1
    return np.unique(np.concatenate([[0], np.minimum(cuts, num_batches), [num_batches]])).astype(np.int64)
