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
from saft_hf.score.directed import LinearScore
from saft_hf.score.direction import auroc
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
        score: the score. Its unit is the standard deviation of the reference rows within their class; 0 is the mean of
            the benign ones.
        threshold: absolute: above it lie at most `FPR` of the benign reference rows, scored out of fold.
        out_of_fold: scores of the reference rows by directions learned without their group, float64 [m].
        harmful: their labels, bool [m].
        auroc: out-of-fold AUROC on the reference rows. It is no evidence about the pool.
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
        raised: whether the pool has raised it.
        undecided: why no decision may rest on these scores, and what would help; None where one may.
        metrics: what was seen, whether it decides or not.
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
        vectors: for each feature to be read, the reference rows' vectors, [m, d], any float type, finite.
        harmful: their labels, bool [m], True where harmful.
        groups: what belongs together, [m], any sortable type: a harm category with the benign rows matched to it. No
            row is scored by a direction that saw its group.

    Returns:
        The score. The same input gives the same bits.

    Raises:
        SAFTInputError: shapes differ, a vector is not finite, or there is no feature.
        SAFTUndecidedError: a class has too few rows, in all or without some group, or no direction tells them apart.

    Examples:
        >>> x = np.random.default_rng(0).standard_normal((200, 8))
        >>> harmful = np.arange(200) % 2 == 0
        >>> x[harmful, 3] += 6
        >>> learned = learn_reference({"8.response_mean": x}, harmful, np.arange(200) // 20)
        >>> bool(learned.auroc > 0.99), bool(1 < learned.threshold < 4)
        (True, True)
    """
    labels, parts = np.asarray(harmful, dtype=np.bool_), np.asarray(groups)
    rows = {feature: np.asarray(own, dtype=np.float64) for feature, own in vectors.items()}
    shapes = {feature: own.shape for feature, own in rows.items()}
    if not rows:
        raise SAFTInputError("a reference score needs at least one feature: a layer and a readout")
    if labels.ndim != 1 or parts.shape != labels.shape:
        raise SAFTInputError(
            f"harmful and groups must have one entry for each row; found shapes {list(labels.shape)} and "
            f"{list(parts.shape)}"
        )
    width = next(iter(shapes.values()))[-1]
    if any(shape != (labels.size, width) for shape in shapes.values()):
        raise SAFTInputError(
            f"vectors of all features must have one width and one row for each of {labels.size} labels; found {shapes}"
        )
    for feature, own in rows.items():
        if not np.isfinite(own).all():
            raise SAFTInputError(f"vectors of feature {feature!r} must be finite; found NaN or infinity")
    bad, good = int(labels.sum()), int((~labels).sum())
    if min(bad, good) < MIN_OF_A_CLASS:
        raise SAFTUndecidedError(
            f"the reference set has {bad} harmful and {good} benign rows; a threshold needs {MIN_OF_A_CLASS} of each. "
            "Add rows, or use the built-in reference set"
        )
    scores = np.empty(labels.size)
    for group in np.unique(parts):
        own = parts == group
        if labels[~own].all() or not labels[~own].any():
            raise SAFTUndecidedError(
                f"without group {group!r} the reference set has rows of one class only, so its rows cannot be scored "
                "out of fold. Spread both classes over at least two groups"
            )
        score = _learn({feature: x[~own] for feature, x in rows.items()}, labels[~own])
        scores[own] = score({feature: x[own] for feature, x in rows.items()})
    return ReferenceScore(
        _learn(rows, labels), _benign_quantile(scores[~labels]), scores, labels, float(auroc(scores, labels))
    )


def choose_reference(
    vectors: Mapping[str, ArrayLike], candidates: Sequence[Sequence[str]], harmful: ArrayLike, groups: ArrayLike
) -> ReferenceScore:
    """Learn from several sets of features, and take the one that tells the reference rows apart best, out of fold.

    Args:
        vectors: the reference rows' vectors at all features, see `learn_reference`.
        candidates: sets of features, such as one feature a layer, at the response start: how a pool's answers are
            written differs more from those of the reference set than how its requests are.
        harmful: see `learn_reference`.
        groups: see `learn_reference`.

    Returns:
        The score of the highest out-of-fold AUROC; of equals, the first.

    Raises:
        SAFTInputError: there is no candidate, or see `learn_reference`.
        SAFTUndecidedError: see `learn_reference`.
    """
    if not candidates:
        raise SAFTInputError("candidates must hold at least one set of features; found none")
    learned = [
        learn_reference({feature: vectors[feature] for feature in features}, harmful, groups) for features in candidates
    ]
    return max(learned, key=lambda score: score.auroc)


def reference_threshold(reference: ReferenceScore, pool_scores: ArrayLike) -> ReferenceDecision:
    """Where to cut a pool, or why it cannot be told.

    At most `FPR` of the pool above the absolute threshold is what benign rows show: it is kept, whether some rows lie
    above or none. More rows must stand apart from the rest, see `find_gap`; the threshold is then the gap's position,
    where that is higher. Where scores run across the threshold without one, a cut would part like from like: undecided.

    Args:
        reference: what the reference set taught.
        pool_scores: the pool's scores by `reference.score`, [N]; rows without one (NaN) are left out.

    Returns:
        The decision. It does not depend on the order of the rows.

    Raises:
        SAFTInputError: the pool has no scores.
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
            f"{np.floor(1000 * reference.auroc) / 1000:.3f}, at least {MIN_AUROC} is needed"
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

    Of the rows beyond the position at least half must lie above the absolute threshold.

    Args:
        scores: sorted, [N].
        absolute: the threshold of the reference set.

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
    positions = edges[:-1] + step / 2
    # Rows within one kernel: what the error of counting is taken from.
    held = gaussian_filter1d(counts, _STEPS, mode="constant") * 2 * np.sqrt(np.pi) * _STEPS
    beyond = scores.size - np.searchsorted(scores, positions, "right")
    hazard = held / np.maximum(beyond, 1)
    peaks = _peaks(hazard)
    expected = hazard[peaks] * beyond
    flagged = scores.size - np.searchsorted(scores, np.maximum(positions, absolute), "right")
    depth = held / np.maximum(expected, 1e-12)
    clear = expected - held >= SIGMAS * np.sqrt(expected + expected**2 / np.maximum(held[peaks], 1))
    fit = clear & (depth <= DEPTH) & (beyond <= 2 * flagged)
    if not fit.any():
        return None
    at = int(np.argmin(np.where(fit, depth, np.inf)))
    return Gap(float(positions[at]), float(depth[at]))


def _peaks(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """For each position, where the highest value lies since the last one that was lower than here."""
    peaks = np.arange(values.size)
    lower: list[int] = []
    for at in range(values.size):
        while lower and values[lower[-1]] >= values[at]:
            peak = peaks[lower.pop()]
            if values[peak] >= values[peaks[at]]:
                peaks[at] = peak
        lower.append(at)
    return peaks


def _learn(rows: Mapping[str, NDArray[np.float64]], harmful: NDArray[np.bool_]) -> LinearScore:
    """Mean difference at each feature, from the benign mean; all in units of the spread within a class."""
    centres = {feature: x[~harmful].mean(axis=0) for feature, x in rows.items()}
    raw = {feature: x[harmful].mean(axis=0) - centres[feature] for feature, x in rows.items()}
    parts = {feature: (x - centres[feature]) @ raw[feature] for feature, x in rows.items()}
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
