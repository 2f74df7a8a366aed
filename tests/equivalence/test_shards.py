"""Shards of a dataset, scored one by one with one fitted scorer, as a cluster would: the same scores as the whole."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, IterableDataset

from saft_hf import SAFTScorer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ray_map_batches.py"


@pytest.fixture(scope="module")
def halves(demo_pool: Dataset) -> tuple[Dataset, Dataset]:
    """Rows to fit on, and rows that the scorer has not seen."""
    return demo_pool.select(range(300)), demo_pool.select(range(300, 600))


@pytest.fixture(scope="module")
def saved(demo_model: str, halves: tuple[Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    scorer = SAFTScorer(demo_model, method="saft", layer=2, contamination=0.1, cache_dir=folder / "fit")
    scorer.fit(halves[0]).save_pretrained(folder / "scorer")
    return folder / "scorer"


def scores(rows: Any) -> np.ndarray:
    return np.asarray(rows["saft_score"], np.float32)


def test_shards_scored_independently_are_the_whole(
    saved: Path, halves: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    new = halves[1]
    whole = scores(SAFTScorer.from_pretrained(saved, cache_dir=tmp_path / "whole").score_dataset(new))
    parts = []
    for number in range(4):
        scorer = SAFTScorer.from_pretrained(saved, cache_dir=tmp_path / str(number))
        parts.append(scores(scorer.score_dataset(new.shard(4, number, contiguous=True))))
    together = np.concatenate(parts)
    assert np.isfinite(whole).all()
    assert np.abs(together - whole).max() <= 1e-5 * whole.max()


def test_a_stream_is_read_a_batch_at_a_time(saved: Path, halves: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    scorer = SAFTScorer.from_pretrained(saved, cache_dir=tmp_path)
    rows = halves[1].to_list()
    drawn, ahead = 0, []

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal drawn
        while True:
            yield rows[drawn % len(rows)]
            drawn += 1

    stream = IterableDataset.from_generator(endless).map(scorer, batched=True, batch_size=16)
    found = []
    for number, row in enumerate(islice(stream, 160)):
        ahead.append(drawn - number)
        found.append(row["saft_score"])
    assert 0 < max(ahead) <= 32
    whole = scores(SAFTScorer.from_pretrained(saved, cache_dir=tmp_path).score_dataset(halves[1]))
    assert np.abs(np.asarray(found) - whole[:160]).max() <= 1e-5 * whole.max()


def batches(rows: Dataset) -> dict[str, np.ndarray]:
    """As Ray Data hands rows over: a numpy array a column, of objects where it must be."""
    columns = {}
    for name in rows.column_names:
        values = rows[name][:]
        columns[name] = np.empty(len(values), object)
        columns[name][:] = [np.asarray(value, object) if isinstance(value, list) else value for value in values]
    return columns


def test_the_ray_callable_scores_numpy_batches(saved: Path, halves: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    new = halves[1].select(range(64))
    call = runpy.run_path(str(EXAMPLE))["Score"](str(saved))
    found = call(batches(new))
    assert set(found) == {*new.column_names, "saft_score", "saft_status"}
    whole = scores(SAFTScorer.from_pretrained(saved, cache_dir=tmp_path).score_dataset(new))
    assert np.abs(found["saft_score"] - whole).max() <= 1e-5 * whole.max()
    assert set(found["saft_status"]) == {"ok"}


@pytest.mark.timeout(240)
def test_ray_data_gives_the_scores_of_the_whole(saved: Path, halves: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        new = halves[1].select(range(100))
        score = runpy.run_path(str(EXAMPLE))["Score"]
        rows = ray.data.from_arrow(new.add_column("row", list(range(100))).data.table)
        done = rows.map_batches(score, fn_constructor_args=(str(saved),), concurrency=1, batch_size=32).take_all()
    finally:
        ray.shutdown()
    whole = scores(SAFTScorer.from_pretrained(saved, cache_dir=tmp_path).score_dataset(new))
    found = {row["row"]: row["saft_score"] for row in done}
    assert np.abs(np.array([found[i] for i in range(100)]) - whole).max() <= 1e-5 * whole.max()
