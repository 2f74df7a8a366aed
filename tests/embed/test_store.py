"""Shards: whole or not there, and never trusted when they are not what they should be."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from saft_hf.embed.store import Store, name_of

CELLS = ("2.response_start", "2.response_mean")


def filled(folder: Path, shards: int = 3, rows: int = 5, width: int = 4) -> tuple[Store, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (shards, rows, 16), dtype=np.uint8)
    vectors = rng.normal(size=(shards, len(CELLS), rows, width)).astype(np.float32)
    store = Store(folder, CELLS)
    for shard in range(shards):
        store.write(shard, keys[shard], dict(zip(CELLS, vectors[shard], strict=True)))
    return store, keys, vectors


def fresh(store: Store) -> Store:
    """The same folder seen by a process that has verified nothing yet."""
    return Store(store.folder, store.features)


def test_what_is_written_is_read_back(tmp_path):
    store, keys, vectors = filled(tmp_path)
    again = fresh(store)
    for shard in range(3):
        assert again.has(shard, keys[shard])
        for feature, expected in zip(CELLS, vectors[shard], strict=True):
            assert (again.read(shard, feature) == expected).all()
    assert not again.has(3, keys[0])


def test_lookup_finds_rows_of_any_leaf_in_any_order(tmp_path):
    store, keys, vectors = filled(tmp_path)
    wanted = np.concatenate([keys[2][3:4], np.full((1, 16), 7, np.uint8), keys[0][:2]])
    found, hit = fresh(store).lookup(wanted, CELLS[1], 4)
    assert hit.tolist() == [True, False, True, True]
    assert (found[hit] == np.stack([vectors[2, 1, 3], vectors[0, 1, 0], vectors[0, 1, 1]])).all()


def test_lookup_in_a_folder_that_is_not_there(tmp_path):
    _, hit = Store(tmp_path / "no", CELLS).lookup(np.zeros((2, 16), np.uint8), CELLS[0], 4)
    assert not hit.any()


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "garbage"])
def test_a_damaged_shard_is_not_used(tmp_path, damage):
    store, keys, _ = filled(tmp_path)
    path = store.path(1)
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[:-7]
    elif damage == "flip":
        content[-1] ^= 1
    elif damage == "empty":
        content = bytearray()
    else:
        content = bytearray(b"\xff" * len(content))
    path.write_bytes(bytes(content))
    again = fresh(store)
    assert not again.has(1, keys[1])
    assert again.has(0, keys[0])
    _, hit = fresh(store).lookup(np.concatenate([keys[0], keys[1]]), CELLS[0], 4)
    assert hit.tolist() == [True] * 5 + [False] * 5


def test_a_shard_of_other_rows_or_cells_is_not_used(tmp_path):
    store, keys, _ = filled(tmp_path)
    assert not fresh(store).has(0, keys[1])
    assert not fresh(store).has(0, keys[0][::-1])
    assert not fresh(store).has(0, keys[0][:3])
    assert not Store(store.folder, ("9.response_end",)).has(0, keys[0])


def test_a_full_disk_leaves_no_half_shard(tmp_path):
    store, keys, vectors = filled(tmp_path, shards=1)
    before = store.path(0).read_bytes()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A write fails half way, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="00000"):
            store.write(0, keys[0], dict.fromkeys(CELLS, vectors[0, 0] + 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.path(0).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["00000.safetensors"]


def test_names_depend_on_content_alone():
    assert name_of({"a": 1, "b": (2, 3)}) == name_of({"b": (2, 3), "a": 1})
    assert name_of({"a": 1}) != name_of({"a": 2})
