"""A new method is a class and a line; a new readout is an entry: both go the whole way, with nothing else told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from scorer_kit import plain_vectors

from saft_hf import SAFTScorer
from saft_hf.render import READOUTS, START, Readout
from saft_hf.render.readouts import OneToken
from saft_hf.score import LinearScore
from saft_hf.scorer.methods import METHODS, FitSpec, Method, MethodFit
from saft_hf.scorer.pool import Labelled, Pool

ROWS = 120


class Norm(Method):
    """Toy: the sum over the entries of a vector, measured from the pool's mean; the highest fifth is removed."""

    name = "toy_sum"
    sources = ("toy_quantile",)

    def fit(self, spec: FitSpec, pool: Pool, labelled: Labelled | None) -> MethodFit:
        feature = pool.features.names[0]
        mean = pool.subspace(feature, 1).mean
        score = LinearScore((feature,), mean[None], np.ones((1, mean.size)))
        scores = pool.scores(score)
        return MethodFit(
            score=score, scores=scores, threshold=float(np.quantile(scores, 0.8)), threshold_from="toy_quantile"
        )


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "toy_sum", Norm())
    toy = Readout(
        "response_first",
        note="`response_first` is a toy.",
        sees_response=True,
        needs_boundary=True,
        pooling=OneToken(lambda spans: spans[-1][0]),
    )
    monkeypatch.setitem(READOUTS, "response_first", toy)


@pytest.mark.usefixtures("toys")
def test_a_toy_method_and_a_toy_readout_go_through_fit_map_filter_save_load_and_card(
    demo_model: str, demo_pool: Dataset, tmp_path: Path
) -> None:
    rows = demo_pool.select(range(ROWS))
    scorer = SAFTScorer(demo_model, method="toy_sum", readout="response_first", layer=2, cache_dir=tmp_path / "cache")
    scorer.fit(rows)
    assert (scorer.method_, scorer.readouts_, scorer.layers_) == ("toy_sum", ("response_first",), (2,))
    # The first token of the response is one behind the last token of the prompt.
    start = plain_vectors(rows, 2, "response_start")
    result = scorer.filter(rows)
    mapped = np.asarray(rows.map(scorer, batched=True)["saft_score"], dtype=np.float32)
    assert np.array_equal(mapped, result.scores)
    assert not np.allclose(mapped, (start - start.mean(axis=0)).sum(axis=1), atol=1e-3)
    assert abs(len(result.removed) - ROWS / 5) <= 2
    scorer.save_pretrained(tmp_path / "saved")
    again = SAFTScorer.from_pretrained(tmp_path / "saved", cache_dir=tmp_path / "cache")
    assert np.array_equal(again.filter(rows).scores, result.scores)
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "`toy_sum`" in card
    assert "`response_first`" in card
    assert "`response_first` is a toy." in result.summary.notes


def test_every_readout_is_the_plain_one(demo_model: str, demo_pool: Dataset, store_dir: Path) -> None:
    rows = demo_pool.select(range(40))
    for readout in READOUTS:
        scorer = SAFTScorer(
            demo_model, method="saft", readout=readout, layer=2, k=1, contamination=0.1, cache_dir=store_dir
        )
        scores = scorer.fit(rows).filter(rows).scores
        vectors = plain_vectors(rows, 2, readout)
        centred = vectors - vectors.mean(axis=0)
        direction = np.linalg.svd(centred, full_matrices=False)[2][0]
        plain = (centred @ direction) ** 2
        assert np.abs(scores - plain).max() <= 1e-5 * plain.max(), readout
    assert START in READOUTS
