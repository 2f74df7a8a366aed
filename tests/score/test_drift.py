"""The direction from declining to complying."""

from __future__ import annotations

import numpy as np
import pytest

from saft_hf.errors import SAFTInputError
from saft_hf.score.drift import learn_drift


def pairs(layers: dict[int, float], count: int = 50, seed: int = 0) -> tuple[dict[int, np.ndarray], ...]:
    rng = np.random.default_rng(seed)
    shift = np.eye(16)[5]
    requests = {layer: 3 * rng.standard_normal((count, 16)) for layer in layers}  # what both answers share
    return tuple(
        {layer: requests[layer] + sign * by * shift + rng.standard_normal((count, 16)) for layer, by in layers.items()}
        for sign in (1, -1)
    )


def test_the_layer_that_parts_unseen_pairs_is_taken() -> None:
    drift = learn_drift(*pairs({4: 0.0, 6: 4.0, 7: 1.0}))
    assert drift.layer == 6
    assert np.argmax(drift.direction) == 5
    assert np.linalg.norm(drift.direction) == pytest.approx(1)
    assert drift.auroc[4] < 0.65 < drift.auroc[7] < drift.auroc[6]
    rows = np.zeros((3, 16))
    rows[:, 5] = [0, -2, 2]
    assert np.argsort(drift(rows)).tolist() == [1, 0, 2]


def test_noise_is_told_from_a_direction_out_of_fold() -> None:
    # In more dimensions than pairs a direction always parts those that it was learned from.
    found = [learn_drift(*pairs({0: 0.0}, count=12, seed=seed)).auroc[0] for seed in range(40)]
    assert 0.4 < np.mean(found) < 0.6


def test_pairs_without_a_number_are_left_out() -> None:
    comply, decline = pairs({2: 2.0})
    comply[2][7], decline[2][31, 0] = np.nan, np.inf
    whole = [row for row in range(50) if row not in (7, 31)]
    expected = learn_drift({2: comply[2][whole]}, {2: decline[2][whole]})
    np.testing.assert_array_equal(learn_drift(comply, decline).direction, expected.direction)
    with pytest.raises(SAFTInputError, match="9 pairs"):
        learn_drift({2: comply[2][8:17]}, {2: decline[2][8:17]})
