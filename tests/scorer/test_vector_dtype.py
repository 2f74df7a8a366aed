"""Vectors kept in half precision: half of the bytes, the same score wherever a row is scored, and no row lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from saft_hf import SAFTScorer
from saft_hf.assets import reference_columns
from saft_hf.errors import SAFTInputError


def scores(rows: Dataset) -> np.ndarray:
    return np.array(rows["saft_score"], dtype=np.float64)


@pytest.fixture(scope="module")
def half(demo_model: str, demo_pool: Dataset, demo_labelled: Dataset, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("half")
    scorer = SAFTScorer(demo_model, layer=2, method="saft", vector_dtype="float16", cache_dir=folder)
    return scorer.fit(demo_pool, demo_labelled)


def test_scores_are_those_of_single_precision_to_rounding(
    half: SAFTScorer, scorer: SAFTScorer, demo_pool: Dataset
) -> None:
    one, other = scores(half.score_dataset(demo_pool)), scores(scorer.score_dataset(demo_pool))
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-3 * other.max())


def test_the_store_takes_half_of_the_bytes(half: SAFTScorer, demo_pool: Dataset) -> None:
    files = list(half._cache_dir().rglob("[0-9]*.safetensors"))
    vectors = [load_file(path)["2.response_start"] for path in files]
    assert {found.dtype for found in vectors} == {np.dtype(np.float16)}
    # The rows of the reference set that labels are compared with stand beside the pool.
    assert sum(map(len, vectors)) <= len(demo_pool) + len(reference_columns()["prompt"])


def test_a_row_has_one_score_however_it_is_scored(half: SAFTScorer, demo_pool: Dataset, tmp_path: Path) -> None:
    whole = scores(half.score_dataset(demo_pool))
    assert np.array_equal(scores(demo_pool.map(half, batched=True, batch_size=7, load_from_cache_file=False)), whole)
    half.save_pretrained(tmp_path / "scorer")
    loaded = SAFTScorer.from_pretrained(tmp_path / "scorer", cache_dir=tmp_path / "store")
    assert loaded.vector_dtype == "float16"
    assert np.array_equal(scores(loaded.score_dataset(demo_pool)), whole)
    # New rows, without the store: rounded alike.
    few = demo_pool.select(range(5))
    fresh = SAFTScorer.from_pretrained(tmp_path / "scorer", cache_dir=tmp_path / "empty")
    found = scores(few.map(fresh, batched=True, load_from_cache_file=False))
    np.testing.assert_allclose(found, whole[:5], rtol=0, atol=2e-3 * whole.max())


def test_a_value_that_does_not_fit_gives_a_status(demo_model: str, demo_pool: Dataset, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(demo_model)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e9)
    options = {"processing_class": AutoTokenizer.from_pretrained(demo_model), "contamination": 0.1, "method": "saft"}
    scorer = SAFTScorer(model, layer=0, readout="response_mean", cache_dir=tmp_path, **options).fit(demo_pool)
    assert set(scorer.score_dataset(demo_pool)["saft_status"]) == {"ok"}
    with pytest.raises(SAFTInputError, match=r"overflows.*vector_dtype"):
        SAFTScorer(model, layer=0, readout="response_mean", cache_dir=tmp_path, vector_dtype="float16", **options).fit(
            demo_pool
        )


def test_another_dtype_is_refused(demo_model: str, demo_pool: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SAFTInputError, match=r"vector_dtype='int8'.*float32.*float16"):
        SAFTScorer(demo_model, vector_dtype="int8", cache_dir=tmp_path).fit(demo_pool)
