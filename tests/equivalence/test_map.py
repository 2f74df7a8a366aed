"""One score a row, whichever way it is asked for: map, stream, single rows, workers, two processes, resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from safetensors.numpy import load_file

from saft_hf import SAFTScorer
from saft_hf.assets import demo_folder, demo_rows_path
from saft_hf.embed import fill
from saft_hf.embed.backbone import Backbone

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared"


def scores_of(rows: Any) -> np.ndarray:
    return np.asarray(rows["saft_score"], dtype=np.float32)


def run(*words: object, **environment: str) -> str:
    """Run a Python script in a process of its own; its output."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def no_forward(monkeypatch: pytest.MonkeyPatch, scorer: SAFTScorer) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a row of the pool was embedded again")

    monkeypatch.setattr(Backbone, "read", refuse)
    monkeypatch.setattr(Backbone, "load", refuse)


@pytest.mark.smoke
@pytest.mark.usefixtures("no_forward")
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_map_after_fit_gives_the_bits_of_score_dataset_without_a_forward(
    scorer: SAFTScorer, demo_pool: Dataset, batch_size: int
) -> None:
    whole = scorer.score_dataset(demo_pool)
    mapped = demo_pool.map(scorer, batched=True, batch_size=batch_size, load_from_cache_file=False)
    assert np.array_equal(scores_of(mapped), scores_of(whole))
    assert mapped["saft_status"][:] == whole["saft_status"][:]
    assert mapped.column_names == whole.column_names
    assert mapped.features["saft_score"] == whole.features["saft_score"]


@pytest.mark.usefixtures("no_forward")
def test_streams_and_ranks_and_single_rows_of_the_pool_give_the_same_bits(
    scorer: SAFTScorer, demo_pool: Dataset
) -> None:
    rows = demo_pool.select(range(150))
    expected = scores_of(scorer.score_dataset(demo_pool))[:150]
    stream = Dataset.from_list(list(rows.to_iterable_dataset().map(scorer, batched=True, batch_size=16)))
    assert np.array_equal(scores_of(stream), expected)
    ranked = rows.map(scorer, batched=True, with_rank=True, load_from_cache_file=False)
    assert np.array_equal(scores_of(ranked), expected)
    single = [scorer({"messages": [messages]})["saft_score"][0] for messages in rows["messages"][:20]]
    assert np.array_equal(np.asarray(single, np.float32), expected[:20])
    with_copies = rows.select([3, 3, 7, 3]).map(scorer, batched=True, load_from_cache_file=False)
    assert np.array_equal(scores_of(with_copies), expected[[3, 3, 7, 3]])


def test_new_rows_one_by_one_equal_new_rows_together(demo_model: str, demo_pool: Dataset, tmp_path: Path) -> None:
    pool, new = demo_pool.select(range(200)), demo_pool.select(range(200, 280))
    for readout in ("response_start", "response_mean"):
        scorer = SAFTScorer(demo_model, method="saft", layer=3, readout=readout, k=2, cache_dir=tmp_path).fit(pool)
        one_by_one = [scorer({"messages": [messages]})["saft_score"][0] for messages in new["messages"]]
        together = scorer({"messages": new["messages"][:]})["saft_score"]
        streamed = scores_of(Dataset.from_list(list(new.to_iterable_dataset().map(scorer, batched=True, batch_size=9))))
        planned = scores_of(scorer.score_dataset(new))
        bound = 1e-5 * planned.max()
        assert planned.min() < planned.max()
        for other in (one_by_one, together, streamed):
            assert np.abs(np.asarray(other) - planned).max() <= bound


def contents(shards: list[Path]) -> dict[tuple[Path, str], bytes]:
    # Not the files' bytes: the order of a header's entries is drawn again for every file.
    return {(shard, name): array.tobytes() for shard in shards for name, array in load_file(shard).items()}


def damage(shard: Path, how: str) -> None:
    raw = shard.read_bytes()
    if how == "deleted":
        shard.unlink()
    elif how == "truncated":
        shard.write_bytes(raw[: len(raw) // 2])
    elif how == "emptied":
        shard.write_bytes(b"")
    else:
        flipped = bytearray(raw)
        flipped[len(raw) // 2] ^= 0x40  # within the vectors
        shard.write_bytes(bytes(flipped))


@pytest.mark.parametrize("how", ["deleted", "truncated", "emptied", "flipped"])
def test_a_damaged_store_is_mended_with_the_same_bits(
    demo_model: str, demo_pool: Dataset, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = demo_pool.select(range(200))
    rows, read_batch = [], fill.read_batch

    def counted(backbone: Any, renderings: Any, features: Any, prefix: Any) -> Any:
        rows.append(len(renderings))
        return read_batch(backbone, renderings, features, prefix)

    monkeypatch.setattr(fill, "read_batch", counted)

    def fitted() -> SAFTScorer:
        return SAFTScorer(demo_model, method="saft", layer=2, k=3, cache_dir=tmp_path).fit(pool)

    first = fitted()
    expected, whole, num_rows = scores_of(first.score_dataset(pool)), sorted(rows), sum(rows)
    assert num_rows == first.summary_.fit.pool.unique
    shards = sorted(tmp_path.rglob("*.safetensors"))
    kept = contents(shards)
    hurt = shards[1::3]

    for shard in hurt:
        damage(shard, how)
    rows.clear()
    mapped = pool.map(fitted(), batched=True, load_from_cache_file=False)
    assert np.array_equal(scores_of(mapped), expected)
    # What was lost is embedded again, in the same batches, and nothing else.
    assert 0 < sum(rows) < num_rows
    assert not [size for size in set(rows) if rows.count(size) > whole.count(size)]
    assert contents(sorted(tmp_path.rglob("*.safetensors"))) == kept

    # A map that meets a damaged shard reads those rows again, too: not the damaged vectors.
    reader = fitted()
    for shard in hurt:
        damage(shard, how)
    again = pool.map(reader, batched=True, load_from_cache_file=False)
    assert np.abs(scores_of(again) - expected).max() <= 1e-5 * expected.max()
    rows.clear()
    fitted()
    assert sum(rows) > 0


@pytest.mark.timeout(150)
def test_forked_workers_do_not_hang_and_give_the_same_scores(tmp_path: Path) -> None:
    run(HERE / "map_in_workers.py", tmp_path, OMP_NUM_THREADS="2")
    found = np.load(tmp_path / "scores.npz")
    assert np.array_equal(found["pool_forked"], found["pool"])
    assert np.array_equal(found["pool_ranked"], found["pool"])
    assert np.abs(found["new_forked"] - found["new"]).max() <= 1e-5 * found["new"].max()


@pytest.mark.timeout(150)
def test_a_second_map_in_a_new_process_hits_the_cache_of_the_first(tmp_path: Path) -> None:
    words = (HERE / "map_once.py", demo_rows_path(), tmp_path / "cache", tmp_path / "store")
    first, second = (json.loads(run(*words)) for _ in range(2))
    assert first["calls"] == 6
    assert second == {**first, "calls": 0}


@pytest.fixture(scope="module")
def both_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one process, and two together, have fitted, scored and filtered each task."""
    folder = tmp_path_factory.mktemp("runs")
    tasks: list[object] = [demo_folder(), 2, demo_rows_path(), 600]
    if SHARED.is_dir():
        tasks += [SHARED / "lab-lm", 4, SHARED / "data" / "beavertails_pairs.jsonl.gz", 1000]
    script = HERE / "fit_and_score.py"
    run(script, folder / "one", folder / "store1", *tasks)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, script]
    run(*launch, folder / "two", folder / "store2", *tasks, ACCELERATE_USE_CPU="true")
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [pytest.param(0, id="demo"), pytest.param(1, id="real")])
def test_two_processes_give_the_bits_of_one(both_runs: Path, number: int) -> None:
    if number and not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}")
    one = np.load(both_runs / "one" / f"rank0-{number}.npz")
    assert one["world"] == 1
    assert len(one["scores"]) == (600, 1000)[number]
    assert len(set(one["codes"].tolist())) > 1
    for rank in (0, 1):
        two = np.load(both_runs / "two" / f"rank{rank}-{number}.npz")
        assert two["world"] == 2
        for name in set(one.files) - {"world"}:
            assert np.array_equal(one[name], two[name], equal_nan=one[name].dtype.kind == "f"), (rank, name)
        for file in (both_runs / "one" / f"rank0-{number}").iterdir():
            same = (both_runs / "two" / f"rank{rank}-{number}" / file.name).read_bytes()
            assert same == file.read_bytes(), (rank, file.name)


@pytest.mark.usefixtures("no_forward")
def test_the_vectors_of_two_processes_lie_where_one_finds_them(both_runs: Path, demo_pool: Dataset) -> None:
    saved, store = both_runs / "two" / "rank1-0", both_runs / "store2" / "saft"
    loaded = SAFTScorer.from_pretrained(saved, cache_dir=store)
    mapped = demo_pool.map(loaded, batched=True, load_from_cache_file=False)
    assert np.array_equal(scores_of(mapped), np.load(both_runs / "two" / "rank0-0.npz")["scores"])
