"""The score that needs no labels of the pool: a direction and a threshold from a reference set.

Rows known to be harmful or benign, not from the pool, give at each feature the plain difference of class means. It is
not whitened: the reference set is not the pool, and what is fitted closely to the one does not carry over to the other.
Scale and threshold come from the reference set alone. The pool's scores may raise the threshold, to the gap below the
rows that stand apart, or show that no cut can be trusted; they never lower it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d

from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.score.crossfit import auroc
from saft_hf.score.directed import LinearScore
from saft_hf.summary import ReferenceMetrics

FPR = 0.02
"""Share of benign reference rows that the threshold may lose."""
MIN_OF_A_CLASS = 20
"""Reference rows of each class below which no threshold is taken from them."""
MIN_AUROC = 0.75
"""Out-of-fold AUROC on the reference rows themselves below which the model's states do not tell them apart."""
DEPTH = 0.8
"""In a gap, the hazard is at most this share of what it was below."""
SIGMAS = 3.0
"""How clearly it must have fallen, in standard errors of the counts."""

_STEPS = 8
"""Grid steps in one bandwidth."""


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceScore:
    """What a reference set teaches.

    Attributes:
        score: The score. Its unit is the standard deviation of the reference rows within their class; 0 is the mean of
            the benign ones.
        threshold: Absolute: above it lie at most `FPR` of the benign reference rows, scored out of fold.
        out_of_fold: Scores of the reference rows by directions learned without their group, float64 [m].
        harmful: Their labels, bool [m].
        auroc: Out-of-fold AUROC on the reference rows. It is no evidence about the pool.
    """

    score: LinearScore
    threshold: float
    out_of_fold: NDArray[np.float64]
    harmful: NDArray[np.bool_]
    auroc: float


@dataclass(frozen=True, slots=True)
class ReferenceDecision:
    """What the pool's scores make of the absolute threshold. Rows with a score above it are flagged.

    Attributes:
        threshold: tau; never below the absolute one.
        raised: Whether the pool has raised it.
        undecided: Why no decision may rest on these scores, with the figures and what would help; None where one may.
        metrics: the figures behind it.
    """

    threshold: float
    raised: bool
    undecided: str | None
    metrics: ReferenceMetrics


class Gap(NamedTuple):
    """Where a group of rows begins to stand apart from those below it."""

    position: float
    depth: float
    """Hazard there, beside the highest hazard below."""


def learn_reference(vectors: Mapping[str, ArrayLike], harmful: ArrayLike, groups: ArrayLike) -> ReferenceScore:
    """Learn a score and its absolute threshold from reference rows.

    Args:
        vectors: For each feature to be read, the reference rows' vectors, [m, d], any float type, finite.
        harmful: Their labels, bool [m], True where harmful.
        groups: What belongs together, [m], any sortable type: a harm category with the benign rows matched to it. No
            row is scored by a direction that saw its group.

    Returns:
        The score. The same input gives the same bits.

    Raises:
        SAFTInputError: Shapes differ, a vector is not finite, or there is no feature.
        SAFTUndecidedError: A class has too few rows, in all or without some group, or no direction tells them apart.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((200, 8))
        >>> harmful = np.arange(200) % 2 == 0
        >>> x[harmful, 3] += 6
        >>> found = learn_reference({"8.response_mean": x}, harmful, np.arange(200) // 20)
        >>> bool(found.auroc > 0.99), bool(1 < found.threshold < 4)
        (True, True)
    """
    labels, parts = np.asarray(harmful, dtype=np.bool_), np.asarray(groups)
    rows = {feature: np.asarray(found, dtype=np.float64) for feature, found in vectors.items()}
    if not rows:
        raise SAFTInputError("a reference score needs at least one feature: a layer and a readout")
    if labels.ndim != 1 or parts.shape != labels.shape:
        raise SAFTInputError(
            f"harmful and groups must have one entry for each row; found shapes {list(labels.shape)} and "
            f"{list(parts.shape)}"
        )
    for feature, found in rows.items():
        if found.ndim != 2 or len(found) != labels.size or not np.isfinite(found).all():
            raise SAFTInputError(
                f"vectors of feature {feature!r} must be finite, [{labels.size}, d], one row for each label; found "
                f"shape {list(found.shape)}" + (", with NaN or infinity" if found.ndim == 2 else "")
            )
    if len({found.shape for found in rows.values()}) > 1:
        raise SAFTInputError(
            "vectors of all features must have one width; found "
            + ", ".join(f"{feature}: {found.shape[1]}" for feature, found in rows.items())
        )
    few = min(int(labels.sum()), int((~labels).sum()))
    if few < MIN_OF_A_CLASS:
        raise SAFTUndecidedError(
            f"the reference set has {int(labels.sum())} harmful and {int((~labels).sum())} benign rows; a threshold "
            f"needs {MIN_OF_A_CLASS} of each. Add rows, or use the built-in reference set"
        )
    scores = np.empty(labels.size)
    for group in np.unique(parts):
        own = parts == group
        if labels[~own].all() or not labels[~own].any():
            raise SAFTUndecidedError(
                f"without group {group!r} the reference set has rows of one class only, so its rows cannot be scored "
                "out of fold. Spread both classes over at least two groups"
            )
        score = _learn({feature: found[~own] for feature, found in rows.items()}, labels[~own])
        scores[own] = score({feature: found[own] for feature, found in rows.items()})
    return ReferenceScore(
        _learn(rows, labels), _benign_quantile(scores[~labels]), scores, labels, float(auroc(scores, labels))
    )


def choose_reference(
    vectors: Mapping[str, ArrayLike], candidates: Sequence[Sequence[str]], harmful: ArrayLike, groups: ArrayLike
) -> ReferenceScore:
    """Learn from several sets of features, and take the one that tells the reference rows apart best, out of fold.

    Args:
        vectors: The reference rows' vectors at all features, see `learn_reference`.
        candidates: Sets of features, such as one feature a layer, at the response start: how a pool's answers are
            written differs more from those of the reference set than how its requests are.
        harmful: See `learn_reference`.
        groups: See `learn_reference`.

    Returns:
        The score of the highest out-of-fold AUROC; of equals, the first.

    Raises:
        SAFTInputError: There is no candidate, or see `learn_reference`.
        SAFTUndecidedError: See `learn_reference`.
    """
    if not candidates:
        raise SAFTInputError("candidates must hold at least one set of features; found none")
    learned = [
        learn_reference({feature: vectors[feature] for feature in features}, harmful, groups) for features in candidates
    ]
    return max(learned, key=lambda found: found.auroc)


def reference_threshold(reference: ReferenceScore, pool_scores: ArrayLike) -> ReferenceDecision:
    """Where to cut a pool, or why it cannot be told.

    At most `FPR` of the pool above the absolute threshold is what benign rows show: it stands as it is, whether
    some rows lie above or none. More rows must stand apart from the rest, see `find_gap`; the threshold is then the
    gap's place, where that is higher. Where scores run across the threshold without one, a cut would part like from
    like: undecided.

    Args:
        reference: What the reference set taught.
        pool_scores: The pool's scores by `reference.score`, [N]; rows without one (NaN) are left out.

    Returns:
        The decision. It does not depend on the order of the rows.

    Raises:
        SAFTInputError: The pool has no scores.
    """
    scores = np.asarray(pool_scores, dtype=np.float64).ravel()
    scores = np.sort(scores[~np.isnan(scores)])
    if not scores.size:
        raise SAFTInputError("pool_scores must hold at least one score that is not NaN; found none")
    absolute = reference.threshold
    above = float((scores > absolute).mean())
    metrics = ReferenceMetrics(
        rows=len(reference.out_of_fold),
        auroc=reference.auroc,
        absolute_threshold=absolute,
        share_above=above,
        share_flagged=above,
    )
    undecided, threshold = None, absolute
    if reference.auroc < MIN_AUROC:
        undecided = (
            "the model's states do not tell the reference rows themselves apart: out-of-fold AUROC "
            f"{reference.auroc:.3f}, at least {MIN_AUROC} is needed"
        )
    elif above > FPR:
        # Nothing stands apart from a minority.
        gap = find_gap(scores, absolute) if above <= 0.5 else None
        if gap is None:
            undecided = (
                f"{above:.1%} of the pool's rows score above the threshold of the reference set, but they do not stand "
                "apart from the rest as a minority with a gap below it: a cut would part like from like"
            )
        else:
            threshold = max(absolute, gap.position)
            flagged = float((scores > threshold).mean())
            metrics = replace(metrics, gap=gap.position, gap_depth=gap.depth, share_flagged=flagged)
    if undecided:
        undecided += ". Label about 100 rows drawn at random from the pool, or give a reference set closer to it"
    return ReferenceDecision(threshold, threshold > absolute, undecided, metrics)


def find_gap(scores: NDArray[np.float64], absolute: float) -> Gap | None:
    """Where a group that the reference set calls harmful begins to stand apart.

    In a pool of one kind the hazard, the share of the rows still above that the next step takes, rises with the score:
    so it is in every log-concave density, the normal, the skewed and the exponential ones among them (Barlow and
    Proschan 1965). Behind the tail of one kind the rows of another make it fall, long before they make a valley. A fall
    is measured from the highest hazard since it was last as low as here: where two benign kinds lie side by side, the
    tail of the wider one, on which the hazard rises, is no gap beside the narrower one's peak.

    Of the rows beyond the place at least half must lie above the absolute threshold.

    Args:
        scores: Sorted, [N].
        absolute: The threshold of the reference set.

    Returns:
        The gap where the hazard has fallen furthest, or None where no such group stands apart.
    """
    low, high = np.quantile(scores, (0.25, 0.75))
    # Bandwidth of the density: Silverman 1986, section 3.4.2.
    width = 0.9 * min(float(scores.std()), float(high - low) / 1.349) * scores.size**-0.2
    if not width > 0:
        return None
    # Far outliers would take all of the grid.
    first, last = max(scores[0], low - 10 * (high - low)), min(scores[-1], high + 10 * (high - low))
    step = width / _STEPS
    edges = np.arange(first - 3 * width, last + step, step)
    counts = np.histogram(scores, edges)[0].astype(np.float64)
    places = edges[:-1] + step / 2
    # Rows within one kernel: what the error of counting is taken from.
    held = gaussian_filter1d(counts, _STEPS, mode="constant") * 2 * np.sqrt(np.pi) * _STEPS
    beyond = scores.size - np.searchsorted(scores, places, "right")
    hazard = held / np.maximum(beyond, 1)
    peaks = _peaks(hazard)
    expected = hazard[peaks] * beyond
    flagged = scores.size - np.searchsorted(scores, np.maximum(places, absolute), "right")
    depth = held / np.maximum(expected, 1e-12)
    clear = expected - held >= SIGMAS * np.sqrt(expected + expected**2 / np.maximum(held[peaks], 1))
    fit = clear & (depth <= DEPTH) & (beyond <= 2 * flagged)
    if not fit.any():
        return None
    at = int(np.argmin(np.where(fit, depth, np.inf)))
    return Gap(float(places[at]), float(depth[at]))


def _peaks(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """For each place, where the highest value lies since the last one that was lower than here."""
    found = np.arange(values.size)
    lower: list[int] = []
    for at in range(values.size):
        while lower and values[lower[-1]] >= values[at]:
            peak = found[lower.pop()]
            if values[peak] >= values[found[at]]:
                found[at] = peak
        lower.append(at)
    return found


def _learn(rows: Mapping[str, NDArray[np.float64]], harmful: NDArray[np.bool_]) -> LinearScore:
    """Mean difference at each feature, from the benign mean; all in units of the spread within a class."""
    centres = {feature: found[~harmful].mean(axis=0) for feature, found in rows.items()}
    raw = {feature: found[harmful].mean(axis=0) - centres[feature] for feature, found in rows.items()}
    parts = {feature: (found - centres[feature]) @ raw[feature] for feature, found in rows.items()}
    spreads = {feature: _spread(part, harmful) for feature, part in parts.items()}
    total = np.sum([parts[feature] / spreads[feature] for feature in rows], axis=0)
    return LinearScore(
        tuple(rows),
        np.stack(list(centres.values())),
        np.stack([raw[feature] / spreads[feature] for feature in rows]) / _spread(total, harmful),
    )


def _spread(scores: NDArray[np.float64], harmful: NDArray[np.bool_]) -> float:
    variance = sum(np.square(scores[own] - scores[own].mean()).sum() for own in (harmful, ~harmful)) / (scores.size - 2)
    if not variance > 0:
        raise SAFTUndecidedError(
            "harmful and benign reference rows have the same mean vector at some feature, or all the same vectors: no "
            "direction tells them apart. Use another readout or reference set"
        )
    return float(np.sqrt(variance))


def _benign_quantile(benign: NDArray[np.float64]) -> float:
    """The lowest score of a benign row above which at most `FPR` of them lie."""
    return float(np.sort(benign)[benign.size - 1 - int(FPR * benign.size)])
