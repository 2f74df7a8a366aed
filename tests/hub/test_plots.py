"""The picture says how many rows have which score, and nothing about a single row."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saft_hf.histogram import bar_edges
from saft_hf.hub.plots import score_histogram

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

SCORES = np.random.default_rng(0).chisquare(2, 500)


def test_it_is_a_picture_and_the_same_twice() -> None:
    picture = score_histogram(SCORES, 3.0)
    assert picture == score_histogram(list(SCORES), 3.0)
    assert picture != score_histogram(SCORES, 2.0)
    assert picture != score_histogram(SCORES, None)
    image = Image.open(io.BytesIO(picture))
    assert image.format == "PNG"
    assert not image.info.keys() - {"dpi"}  # no software, no date


def test_rows_without_a_score_are_not_in_it() -> None:
    assert score_histogram([*SCORES, np.nan, np.inf], 3.0) == score_histogram(SCORES, 3.0)
    assert score_histogram([np.nan], 3.0) is None
    assert score_histogram([], None) is None


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50),
    st.none() | st.floats(-1e6, 1e6, width=32),
)
def test_the_threshold_is_an_edge_of_the_bars(scores: list[float], threshold: float | None) -> None:
    values = np.asarray(scores, dtype=np.float64)
    edges = bar_edges(values, threshold)
    assert np.all(np.diff(edges) > 0)
    assert len(edges) <= 65
    if threshold is not None and values.min() <= threshold < values.max():
        assert threshold in edges
        assert edges[0] < threshold < edges[-1]


@settings(max_examples=5)
@given(st.sampled_from([[1.0], [2.0, 2.0], [0.0, 1e-30], [-5.0, 1e6], [0.0, np.float32(3e38)]]))
def test_odd_scores_are_drawn(scores: list[float]) -> None:
    for threshold in (None, scores[0], -1.0, 9.0):
        assert score_histogram(scores, threshold) is not None


def test_a_missing_picture_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as where it is not installed
    assert score_histogram(SCORES, 3.0) is None
    assert [record.message for record in caplog.records if "saft-hf[plots]" in record.message]
    caplog.clear()
    assert score_histogram([np.nan], 3.0) is None
    assert not caplog.records  # there would be no picture anyway
