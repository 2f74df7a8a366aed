"""What else a score measures, what it costs a group, and whom it hangs on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom, binomtest, spearmanr

from saft_hf.decide import Decisions
from saft_hf.decide.confounds import (
    CHANCE,
    WARN_KEPT,
    correlations,
    kept_share,
    leverage,
    shares_by,
    text_features,
    value_names,
)
from saft_hf.errors import SAFTInputError


def decided(kept: Sequence[bool]) -> Decisions:
    """Rows that are kept or removed."""
    return Decisions(np.where(kept, 0, 1).astype(np.int8), ["score"] * len(kept))


@given(arrays(np.int64, (12, 2), elements=st.integers(0, 5)))
def test_the_correlation_is_spearmans_and_warns_past_its_level(values: np.ndarray) -> None:
    scores, feature = values.T.astype(np.float64)
    found = correlations([*scores, np.nan], {"tokens": [*feature, 99.0]})
    assert found.rows == 12
    rho = found.spearman["tokens"]
    if np.ptp(scores) == 0 or np.ptp(feature) == 0:
        assert rho is None
    else:
        assert rho == pytest.approx(spearmanr(scores, feature).statistic)
    assert len(found.warnings) == (rho is not None and abs(rho) > found.warn_above)


def test_a_correlation_of_either_sign_is_named() -> None:
    found = correlations(np.arange(150), {"up": np.arange(150), "down": -np.arange(150), "same": np.ones(150)})
    assert found.spearman == {"up": pytest.approx(1), "down": pytest.approx(-1), "same": None}
    assert ["rises with up" in found.warnings[0], "falls with down" in found.warnings[1]] == [True, True]
    assert len(found.warnings) == 2


def test_each_feature_sees_its_own_format_and_plain_words_have_none() -> None:
    texts = {
        "plain": "A walk by the river. It rained, and we went home.",
        "lists": "Bring these:\n- bread\n- salt\n1. a cup",
        "markdown": "# Title\n\nThe **second** part, see [here](there).",
        "code": "```\ndef f(x):\n    return x;\n```",
        "maths": "3 * (4 + 5) = 27, so x^2 = 729",
        "not_ascii": "\u041f\u0440\u043e\u0433\u0443\u043b\u043a\u0430 \u0443 \u0440\u0435\u043a\u0438",
    }
    found = text_features(list(texts.values()))
    for at, name in enumerate(texts):
        for feature in ("lists", "markdown", "code", "maths", "not_ascii"):
            if feature == name:
                assert found[feature].argmax() == at, feature
            if name == "plain":
                assert found[feature][at] == 0, feature
    assert found["characters"].tolist() == [len(text) for text in texts.values()]
    assert all(values.tolist() == [0] for values in text_features([""]).values())


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_kept_share_has_scipys_interval(rows: list[tuple[bool, bool]]) -> None:
    kept, member = zip(*rows, strict=True)
    found = kept_share("refusals", decided(kept), member)
    assert found.removed == sum(not a and b for a, b in rows)
    assert found.rows == sum(member)
    assert found.kept == sum(a and b for a, b in rows)
    if found.rows:
        interval = binomtest(found.kept, found.rows).proportion_ci(0.95, method="exact")
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        assert len(found.warnings) == (found.kept / found.rows < WARN_KEPT)
    else:
        assert found.share is None
        assert found.warnings == ()


CODES = st.sampled_from([0, 0, 0, 1, 2])
VALUES = st.sampled_from(["a", "b", "rare", None, 3, True, 0.5, ""])


@given(st.lists(st.tuples(CODES, VALUES), min_size=1, max_size=200), st.booleans())
def test_every_row_is_in_the_share_of_its_value_and_of_no_other(rows: list[tuple[int, Any]], keep: bool) -> None:
    codes, values = np.array([code for code, _ in rows], np.int8), [value for _, value in rows]
    decisions = Decisions(codes, ["x"] * len(rows), train_on_errored=keep)
    found = shares_by("source", value_names("source", values), decisions)
    assert sum(share.rows for share in found.values()) == len(rows)
    assert sum(share.removed for share in found.values()) == len(decisions.removed)
    assert sum(share.kept for share in found.values()) == len(decisions.train_rows())
    assert [share.rows for share in found.values()] == sorted((s.rows for s in found.values()), reverse=True)
    average = np.mean(codes == 1)
    for name, share in found.items():
        own = codes[[("(none)" if value is None else str(value)) == name for value in values]]
        assert (share.rows, share.removed) == (len(own), np.sum(own == 1))
        assert share.kept == np.sum((own == 0) | ((own == 2) & keep))
        likely = binomtest(share.removed, share.rows, average, alternative="greater").pvalue * len(found)
        assert bool(share.warnings) == (np.mean(own == 1) > 3 * average and likely < CHANCE)


def test_a_minority_that_loses_much_is_warned_of_and_chance_is_not() -> None:
    rng, false_alarms = np.random.default_rng(0), 0
    sources = np.repeat(["alpaca", "gsm8k", "dolly", "tiny"], [2000, 800, 150, 8]).astype(object)
    for _ in range(200):
        by_lot = Decisions((rng.random(len(sources)) < 0.044).astype(np.int8), ["x"] * len(sources))
        false_alarms += any(share.warnings for share in shares_by("source", sources, by_lot).values())
    assert false_alarms <= binom.ppf(0.999, 200, CHANCE)
    lost = rng.random(len(sources)) < np.where(sources == "dolly", 0.25, 0.03)
    found = shares_by("source", sources, Decisions(lost.astype(np.int8), ["x"] * len(sources)))
    assert [name for name, share in found.items() if share.warnings] == ["dolly"]
    assert f"{found['dolly'].removed / 150:.1%} of the 150 rows with source='dolly'" in found["dolly"].warnings[0]
    one = Decisions((np.arange(len(sources)) == len(sources) - 1).astype(np.int8), ["x"] * len(sources))
    assert not any(share.warnings for share in shares_by("source", sources, one).values())  # one row is no evidence


@pytest.mark.parametrize(
    "values",
    [[*map(str, range(101))] * 9, [*map(str, range(30)), *["0"] * 20], ["a text of a row " * 4], [["a"]], [{"a": 1}]],
)
def test_a_column_that_parts_no_groups_is_refused_and_not_shown(values: list[Any]) -> None:
    with pytest.raises(SAFTInputError, match="by='prompt'") as caught:
        value_names("prompt", values)
    assert "a text of a row" not in str(caught.value)


def test_one_giant_row_and_many_copies_are_told_and_an_even_pool_is_not() -> None:
    even = np.random.default_rng(0).chisquare(3, size=400)
    keys = np.arange(400, dtype=np.int64).view(np.uint8).reshape(400, 8)
    assert leverage(even, keys).warnings == ()
    giant = even.copy()
    giant[7] = 1e6
    found = leverage([*giant, np.nan], np.concatenate([keys, keys[:1]]))
    assert found.top_row_share > 0.99
    assert "One row carries" in found.warnings[0]
    copied, copies = even.copy(), keys.copy()
    copied[:100], copies[:100] = 9.0, keys[0]
    found = leverage(copied, copies)
    assert found.top_copies == 100
    assert found.top_copies_share == pytest.approx(900 / copied.sum())
    assert "100 copies" in found.warnings[0]
    assert leverage([np.nan, np.nan], ["a", "b"]).top_row_share == 0


def test_lengths_that_differ_are_errors() -> None:
    with pytest.raises(SAFTInputError, match="tokens must hold one number for each of 2 rows"):
        correlations([1.0, 2.0], {"tokens": [1]})
    with pytest.raises(SAFTInputError, match="member must hold one value for each of 2 rows"):
        kept_share("refusals", decided([True, False]), [True])
    with pytest.raises(SAFTInputError, match="keys must hold one value for each of 2 rows"):
        leverage([1.0, 2.0], ["a"])
