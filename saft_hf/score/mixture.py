"""What a pool is made of: its scores explained as a mixture of the reference's sources, with no label of the pool.

Every source of the reference, its harmful and its benign rows apart, has a histogram of out-of-fold scores. Expectation
maximisation gives each a weight in the pool (Saerens, Latinne and Decaestecker 2002, over sources in place of classes):
the harmful ones together are the harmful share, and a score has a probability of being harmful.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.isotonic import IsotonicRegression

from saft_hf.errors import SAFTInputError

BINS = 40
FPR = 0.05
"""Share of the harmless rows that may be expected to be lost."""
CONFIDENCE = 0.9
"""Of the interval of the harmful share."""
NOTHING = 0.02
"""An interval that begins below this share reaches 0: sources that a reference lacks are taken for as much harm."""
MISFIT = 0.25
"""Share of the pool's scores that the mixture may leave unexplained (total variation). Pools of known kinds leave up
to 0.12, kinds that the reference lacks 0.2 to 0.5."""

_PROBABLE = 0.5
_PSEUDO_ROWS = 3.0
"""How many rows of all sources together stand behind those of each: no bin is impossible."""
_RESAMPLES = 200
_ITERATIONS = 300
_ABOVE = 0.995


@dataclass(frozen=True, slots=True, eq=False)
class Densities:
    """How the reference's sources score.

    Attributes:
        harmful: which components are harmful, bool [s].
        edges: between the bins, ascending, float64 [b - 1].
        counts: rows in each bin, by scores of probes that have not seen their prompts, float64 [s, b].
        held_out: the same, by scores of probes that have not seen their source, float64 [s, b].

    Raises:
        SAFTInputError: shapes do not fit, a component has no row, or a class has no component.
    """

    harmful: NDArray[np.bool_]
    edges: NDArray[np.float64]
    counts: NDArray[np.float64]
    held_out: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = (self.harmful.size, self.edges.size + 1)
        if self.counts.shape != shape or self.held_out.shape != shape:
            raise SAFTInputError(
                f"counts must be {list(shape)}; found {list(self.counts.shape)} and {list(self.held_out.shape)}"
            )
        if not np.all(np.diff(self.edges) > 0) or not np.isfinite(self.edges).all():
            raise SAFTInputError("edges of bins must be finite and ascend")
        for counts in (self.counts, self.held_out):
            if not np.isfinite(counts).all() or (counts < 0).any() or not (counts.sum(axis=1) > 0).all():
                raise SAFTInputError("every component of a reference needs rows: counts that are finite, and not all 0")
        if self.harmful.all() or not self.harmful.any():
            raise SAFTInputError("a reference needs harmful and benign rows")

    @classmethod
    def of(
        cls, out_of_fold: ArrayLike, held_out: ArrayLike, components: ArrayLike, harmful: NDArray[np.bool_]
    ) -> Densities:
        """Count scores of reference rows.

        Args:
            out_of_fold: scores of probes that have not seen the row's prompt, [m].
            held_out: scores of probes that have not seen the row's source, [m].
            components: which component each row is of, whole numbers, [m].
            harmful: which of the components are harmful, [s].
        """
        scores, own = np.asarray(out_of_fold, dtype=np.float64), np.asarray(components)
        bad = harmful[own]
        # Both classes fill as much of the grid: where they part, bins are narrow.
        order, mass = np.argsort(scores, kind="stable"), np.where(bad, 1 / bad.sum(), 1 / (~bad).sum()) / 2
        edges = np.interp(np.arange(1, BINS) / BINS, np.cumsum(mass[order]), scores[order])
        edges = np.unique(edges.astype(np.float32)).astype(np.float64)  # one of them becomes a threshold of such scores

        def count(values: NDArray[np.float64]) -> NDArray[np.float64]:
            table = np.zeros((harmful.size, edges.size + 1))
            np.add.at(table, (own, np.searchsorted(edges, values, side="left")), 1.0)
            return table

        return cls(harmful, edges, count(scores), count(np.asarray(held_out, dtype=np.float64)))

    def bins(self, scores: ArrayLike) -> NDArray[np.intp]:
        """The bin of each score; an edge belongs to the bin below it, as a threshold keeps the scores that equal it."""
        return np.searchsorted(self.edges, np.asarray(scores, dtype=np.float64), side="left")

    def shares_above(self, threshold: float) -> NDArray[np.float64]:
        """Share of each component that a probe which has not seen its source scores above one of the edges, [s]."""
        above = int(self.bins(threshold)) + 1
        return np.asarray(self.held_out[:, above:].sum(axis=1) / self.held_out.sum(axis=1))

    def threshold(self, fpr: float) -> float:
        """The lowest edge above which at most this share of the benign rows of an unseen source lies, on average."""
        benign = self.held_out[~self.harmful]
        shares = 1 - np.cumsum(benign, axis=1)[:, :-1] / benign.sum(axis=1, keepdims=True)
        under = shares.mean(axis=0) <= fpr
        return float(self.edges[int(under.argmax()) if under.any() else -1])

    @property
    def posterior(self) -> NDArray[np.float64]:
        """Probability that a row is harmful, were rows made of the sources as the reference is, for each bin, [b]."""
        rows = self.counts.sum(axis=1)
        return _posterior(rows / rows.sum(), _smoothed(self.counts, self.counts), self.harmful)

    @property
    def above_benign(self) -> float:
        """The score that of no benign component more than one row in two hundred exceeds."""
        benign = self.counts[~self.harmful]
        below = np.cumsum(benign, axis=1) >= _ABOVE * benign.sum(axis=1, keepdims=True)
        last = int(below.argmax(axis=1).max())
        return float(self.edges[min(last, self.edges.size - 1)])


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """What a pool is made of.

    Attributes:
        weights: share of each component, float64 [s].
        share: harmful share.
        interval: of the harmful share, by resampling pool and reference.
        posterior: probability that a row is harmful, for each bin, ascending, float64 [b].
        threshold: rows with a score above it are removed; None where nothing is.
        misfit: share of the pool's scores that no mixture explains.
        recall: share of the harmful rows that the threshold is expected to remove.
        lost: share of the harmless rows that it is expected to remove.
        undecided: why no decision may rest on it; None where one may, or where the pool holds nothing harmful.
    """

    weights: NDArray[np.float64]
    share: float
    interval: tuple[float, float]
    posterior: NDArray[np.float64]
    threshold: float | None
    misfit: float
    recall: float
    lost: float
    undecided: str | None


def explain(densities: Densities, scores: ArrayLike, fpr: float = FPR, *, seed: int = 0) -> Mixture:
    """Explain a pool's scores by the sources of a reference, and choose a threshold.

    A row goes where its probability of being harmful is above 0.5, as far as the share of the harmless rows that this
    is expected to lose stays within `fpr`; none goes where the interval of the harmful share reaches 0.

    Args:
        densities: the reference's.
        scores: the pool's, finite, [n].
        fpr: between 0 and 1.
        seed: of the resampling: the same input gives the same bits.

    Raises:
        SAFTInputError: there is no score.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> own = np.repeat([0, 1], 500)
        >>> reference = Densities.of(*2 * [rng.normal(4.0 * own)], own, np.array([False, True]))
        >>> pool = np.concatenate([rng.normal(0, 1, 900), rng.normal(4, 1, 100)])
        >>> found = explain(reference, pool)
        >>> round(found.share, 1), 0.05 < found.interval[0], found.lost < 0.05
        (0.1, True, True)
    """
    bins = densities.bins(scores)
    if not bins.size:
        raise SAFTInputError("a mixture needs the scores of at least one row; found none")
    harmful, size = densities.harmful, densities.edges.size + 1
    observed = np.bincount(bins, minlength=size).astype(np.float64)
    components = _smoothed(densities.counts, densities.counts)
    weights = _weights(observed, components)
    rng = np.random.default_rng(seed)
    # The reference is a sample as the pool is one.
    rows = densities.counts.sum(axis=1)
    resampled = rng.multinomial(rows.astype(np.int64), densities.counts / rows[:, None], (_RESAMPLES, len(rows)))
    pools = rng.multinomial(bins.size, observed / bins.size, _RESAMPLES).astype(np.float64)
    shares = _weights(pools, _smoothed(resampled, densities.counts))[:, harmful].sum(axis=1)
    share = float(weights[harmful].sum())
    low, high = np.quantile(shares, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    interval = (min(float(low), share), max(float(high), share))
    of_pool = weights @ components
    posterior = _posterior(weights, components, harmful)
    misfit = float(np.abs(observed / bins.size - of_pool).sum() / 2)
    undecided = None
    if misfit > MISFIT:
        undecided = (
            f"no mixture of the reference's sources explains {misfit:.0%} of the pool's scores (at most {MISFIT:.0%} "
            "is allowed): this pool is unlike the reference"
        )
    harmless, bad = of_pool * (1 - posterior), of_pool * posterior
    first = size
    while (
        undecided is None
        and interval[0] > NOTHING
        and first > 1
        and posterior[first - 1] > _PROBABLE
        and harmless[first - 1 :].sum() <= fpr * harmless.sum()
    ):
        first -= 1
    if undecided is None and interval[0] > NOTHING and first == size:
        undecided = (
            f"{share:.0%} of the pool is estimated to be harmful, but no threshold removes rows that are more likely "
            f"harmful than not and is expected to lose at most {fpr:.2%} of the harmless ones"
        )
    return Mixture(
        weights=weights,
        share=share,
        interval=interval,
        posterior=posterior,
        threshold=float(densities.edges[first - 1]) if first < size else None,
        misfit=misfit,
        recall=float(bad[first:].sum() / max(bad.sum(), 1e-12)),
        lost=float(harmless[first:].sum() / max(harmless.sum(), 1e-12)),
        undecided=undecided,
    )


def _posterior(
    weights: NDArray[np.float64], components: NDArray[np.float64], harmful: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Probability that a row is harmful, for each bin, ascending, [b]."""
    of_pool, bins = weights @ components, np.arange(components.shape[1])
    posterior = (weights[harmful] @ components[harmful]) / of_pool
    ascending = IsotonicRegression(y_min=0, y_max=1).fit(bins, posterior, sample_weight=of_pool)
    return np.asarray(ascending.predict(bins))


def _smoothed(counts: NDArray[np.floating] | NDArray[np.int64], of_all: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distributions over the bins, [..., s, b], drawn a little to that of all sources together."""
    every = of_all.sum(axis=0) / of_all.sum()
    smoothed = counts + _PSEUDO_ROWS * (every + 1 / every.size) / 2
    return np.asarray(smoothed / smoothed.sum(axis=-1, keepdims=True))


def _weights(observed: NDArray[np.float64], components: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of the components that make what was observed most likely, [..., s], from [..., b] and [..., s, b]."""
    share = observed / observed.sum(axis=-1, keepdims=True)
    weights = np.full(components.shape[:-1], 1 / components.shape[-2])
    for _ in range(_ITERATIONS):
        explained = np.einsum("...s,...sb->...b", weights, components)
        weights = weights * np.einsum("...b,...sb->...s", share / explained, components)
    return weights
