"""Several looks, labels of the kept part alone, an alpha for each stratum: how often what is certified is false."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from test_walk_validity import DELTA, lower_95, pool, upper_95
from test_walk_validity import _quick as _quick

from saft_hf.decide import decide
from saft_hf.decide.certify import Certificate, FreshLabels
from saft_hf.scorer import certifying
from saft_hf.scorer.labels import LabelledRows, Suggested

DRAWS = 1000
ALPHA = 0.1


def is_false(bad: NDArray[np.bool_], threshold: float | None, inside: NDArray[np.bool_] | None = None) -> bool:
    """Whether a certificate is issued and more than alpha of its set is harmful; scores are row numbers."""
    if threshold is None:
        return False
    kept = (np.arange(bad.size) <= threshold) & (True if inside is None else inside)
    return Fraction(int(bad[kept].sum()), int(kept.sum())) > Fraction(str(ALPHA))


# -- several looks -------------------------------------------------------------------------------------------------

LOOKS = (80, 110, 140, 170, 200)


@pytest.mark.usefixtures("_quick")
def test_looks_at_growing_labels_exceed_delta_unless_it_is_split_and_fresh_labels_do_not() -> None:
    bad, rng = pool("first", ALPHA, stratified=False).bad, np.random.default_rng(0)
    scores = np.arange(bad.size, dtype=np.float64)
    errors = {"repeated": 0, "announced": 0, "fresh": 0}

    def certified(rows: NDArray[np.int64], looks: int = 1) -> float | None:
        return FreshLabels.of(scores, rows, bad[rows]).certify(alpha=ALPHA, delta=DELTA, looks=looks).threshold

    first_failed = 0
    for _ in range(DRAWS):
        order = rng.permutation(bad.size)
        errors["repeated"] += any(is_false(bad, certified(order[:n])) for n in LOOKS)
        errors["announced"] += any(is_false(bad, certified(order[:n], looks=len(LOOKS))) for n in LOOKS)
        if certified(order[: LOOKS[0]]) is None:  # then, with labels that are all drawn anew
            first_failed += 1
            errors["fresh"] += is_false(bad, certified(rng.permutation(bad.size)[: LOOKS[-1]]))
    assert lower_95(errors["repeated"], DRAWS) > DELTA
    assert upper_95(errors["announced"], DRAWS) <= 1.2 * DELTA
    assert errors["announced"] >= DELTA * DRAWS / 10  # it is issued at all
    assert upper_95(errors["fresh"], first_failed) <= 1.2 * DELTA


# -- labels of the kept part alone -----------------------------------------------------------------------------------

CUT = 199.0


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("labels", [60, 100])
def test_the_kept_set_is_certified_falsely_in_at_most_delta_of_the_draws(labels: int) -> None:
    rng, rows = np.random.default_rng(0), np.arange(400)
    bad = rows >= 200
    bad[rng.permutation(200)[: int(ALPHA * 200) + 1]] = True  # one more than may be
    false = 0
    for _ in range(DRAWS):
        drawn = rng.permutation(200)[:labels]
        fresh = FreshLabels.of(rows, drawn, bad[drawn], excluded=rows[rows > CUT])
        certificate = fresh.certify(alpha=ALPHA, delta=DELTA, threshold=CUT)
        assert len(certificate.steps) == 1
        false += is_false(bad, certificate.threshold)
    assert upper_95(false, DRAWS) <= 1.2 * DELTA
    assert false >= DELTA * DRAWS / 3


@pytest.mark.usefixtures("_quick")
def test_a_walk_over_labels_of_the_kept_part_alone_is_caught() -> None:
    rng, rows = np.random.default_rng(0), np.arange(400)
    bad = (rows >= 200) & (rows % 2 == 0)  # as labels of the kept part cannot tell
    drawn = rng.permutation(200)[:100]
    assert is_false(bad, FreshLabels.of(rows, drawn, bad[drawn]).certify(alpha=ALPHA, delta=DELTA).threshold)
    honest = FreshLabels.of(rows, drawn, bad[drawn], rows[rows > CUT]).certify(alpha=ALPHA, delta=DELTA, threshold=CUT)
    assert honest.threshold == CUT
    assert not is_false(bad, honest.threshold)


# -- an alpha for each stratum ---------------------------------------------------------------------------------------

SHARES = {"refusal": 0.25, "other": 0.1, "dialogue": 0.15}
SIZE = 600


def certify(
    scores: NDArray[np.float64], bad: NDArray[np.bool_], rows: NDArray[np.int64], strata: list[str], delta: float
) -> Certificate:
    identities = np.zeros((scores.size, 16), dtype=np.uint8)
    identities.view("<u4")[:, 0] = np.arange(scores.size)
    fit = SimpleNamespace(labelled=LabelledRows.none(), threshold=None, threshold_from="none")
    every = np.ones(rows.size, bool)
    return certifying.certify(
        fit,  # type: ignore[arg-type]
        scores.astype(np.float32),
        identities,
        identities[rows],
        Suggested(every, bad[rows], ~every, 0, None),
        (strata, [strata[row] for row in rows]),
        alpha=SHARES,
        delta=delta,
        looks=1,
        stratify_by="kind",
        threshold=None,
        keep_errored=False,
        decided=lambda at: decide(scores, ["ok"] * scores.size, at),
    )


@pytest.mark.usefixtures("_quick")
def test_strata_with_an_alpha_each_are_all_true_together() -> None:
    draws, rng = 500, np.random.default_rng(0)
    kinds = np.array([*SHARES])[np.arange(SIZE) % 3]
    bad = np.zeros(SIZE, bool)
    for kind, share in SHARES.items():  # from every row on, one more than may be
        left = np.floor(share * np.arange(1, 201) + 1e-9).astype(int) + 1
        bad[np.flatnonzero(kinds == kind)] = np.diff(left, prepend=0) > 0
    scores, false = np.arange(SIZE, dtype=np.float64), {1: 0, 3: 0}
    union = 0
    for _ in range(draws):
        rows = rng.permutation(SIZE)[:300]  # of all rows: within each stratum they are uniform all the same
        for split, count in false.items():
            found = certify(scores, bad, rows, kinds.tolist(), DELTA * 3 / split)
            wrong = False
            kept = np.zeros(SIZE, bool)
            for kind, part in found.parts.items():
                inside = (kinds == kind) & (np.arange(SIZE) <= (-1 if part.threshold is None else part.threshold))
                assert inside.sum() == part.kept
                wrong |= bad[inside].sum() > np.floor(SHARES[kind] * inside.sum() + 1e-9)
                kept |= inside
            false[split] = count + wrong
            if split == 3 and found.issued:
                union += bad[kept].sum() > found.alpha * kept.sum() + 1e-9
    assert upper_95(false[3], draws) <= 1.2 * DELTA
    assert upper_95(union, draws) <= 1.2 * DELTA
    assert false[3] >= DELTA * draws / 3
    assert lower_95(false[1], draws) > DELTA  # where each stratum has all of delta
