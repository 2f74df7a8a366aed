"""The batch plan: every usable row once, the same whatever the order or the number of processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saft_hf.embed.plan import Plan, find_keys, make_plan, token_budget_for


def keys_of(names: list[int]) -> np.ndarray:
    rows = [np.random.default_rng(name).integers(0, 256, 16, dtype=np.uint8) for name in names]
    return np.stack(rows) if rows else np.zeros((0, 16), dtype=np.uint8)


@st.composite
def pools(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = draw(st.lists(st.integers(0, 40), max_size=120))
    lengths = np.array([1 + (name * 37) % 90 for name in names], dtype=np.int32)
    usable = np.array(draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names))), dtype=bool)
    return keys_of(names), lengths, usable


def planned(pool: tuple[np.ndarray, np.ndarray, np.ndarray], budget: int = 128) -> Plan:
    return make_plan(*pool, token_budget=budget, bytes_per_row=64)


@given(pools())
def test_each_usable_row_stands_for_exactly_its_rendering(pool):
    keys, lengths, usable = pool
    plan = planned(pool)
    assert ((plan.row_to_unique >= 0) == usable).all()
    for row in np.flatnonzero(usable):
        unique = plan.row_to_unique[row]
        assert (plan.keys[unique] == keys[row]).all()
        assert plan.lengths[unique] == lengths[row]
    assert len({key.tobytes() for key in plan.keys}) == plan.num_unique
    assert plan.counts.sum() == usable.sum()
    assert (keys[plan.first_row] == plan.keys).all()


@given(pools(), st.integers(1, 200))
def test_batches_and_leaves_cover_all_in_order_within_the_budget(pool, budget):
    plan = planned(pool, budget)
    covered: list[int] = []
    for shard in range(plan.num_shards):
        for batch in plan.shard_batches(shard):
            assert batch.stop > batch.start
            tokens = (batch.stop - batch.start) * int(plan.lengths[batch].max())
            assert tokens <= budget or batch.stop - batch.start == 1
            covered += range(batch.start, batch.stop)
        where = plan.shard_slice(shard)
        assert covered[-1] == where.stop - 1
    assert covered == list(range(plan.num_unique))


@given(pools(), st.integers(1, 9))
def test_processes_share_the_leaves_without_gap_or_overlap(pool, size):
    plan = planned(pool)
    shares = [shard for rank in range(size) for shard in plan.shards_of(rank, size)]
    assert shares == list(range(plan.num_shards))


@given(pools(), st.randoms(use_true_random=False))
def test_row_order_changes_nothing_but_the_row_numbers(pool, random):
    order = list(range(len(pool[0])))
    random.shuffle(order)
    one, other = planned(pool), planned(tuple(part[order] for part in pool))
    assert one.digest == other.digest
    assert (one.batches == other.batches).all()
    assert (one.counts == other.counts).all()


@given(pools())
def test_the_digest_tells_other_content_apart(pool):
    keys, lengths, usable = pool
    if not usable.any():
        return
    changed = keys.copy()
    changed[np.flatnonzero(usable)] ^= 1
    assert planned(pool).digest != planned((changed, lengths, usable)).digest


def test_find_keys_agrees_with_a_dict():
    table, wanted = keys_of(list(range(50))), keys_of([3, 99, 49, 3])
    table[7, -3:] = 0  # trailing zeros must not be cut off
    wanted = np.concatenate([wanted, table[7:8]])
    where = {key.tobytes(): place for place, key in enumerate(table)}
    assert find_keys(table, wanted).tolist() == [where.get(key.tobytes(), -1) for key in wanted]
    assert find_keys(table[:0], wanted).tolist() == [-1] * len(wanted)


@pytest.mark.parametrize("spread", [0.5, 1.2])
def test_a_long_tail_of_lengths_wastes_under_five_percent(spread):
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5, spread, 8000), 3, 4096).astype(np.int32)
    keys = rng.integers(0, 256, (8000, 16), dtype=np.uint8)
    plan = make_plan(keys, lengths, np.ones(8000, bool), token_budget=8192, bytes_per_row=1024)
    assert plan.padding_share < 0.05


def test_the_token_budget_shrinks_only_where_activations_are_huge():
    assert token_budget_for(256, 688, 4) == 32768
    assert token_budget_for(4096, 11008, 2) == 8192
    assert token_budget_for(256, 688, 4, on_cpu=True) == 512
    assert token_budget_for(65536, 262144, 4) < 8192
