"""The probe: one linear score from many labelled rows of other sources, read with the user's own model.

Whitened principal components of the reference rows, and on them a logistic regression: classes weigh the same, and in
each a source weighs by the square root of its rows, so that no single one decides. Features and strength are chosen by
cross-validation over prompts; what the probe does on sources that it has not seen is measured beside it.

Few rows, such as the built-in ones, are parted best by what is theirs alone. Beside the regression, which ranks pools
whose requests are all alike, stands the plain difference of class means at the start of the response, which ranks pools
of harmful and everyday requests: neither does the other's work, and nothing is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import ThreadpoolController

from saft_hf.errors import SAFTInputError
from saft_hf.records import Between, Matching, Name, Share, from_plain, to_plain
from saft_hf.score.directed import LinearScore
from saft_hf.score.mixture import BINS, Densities
from saft_hf.score.subspace import subspace_of_rows

COMPONENTS = 64
"""Principal components of a feature that a probe reads: 32 lose on hard pools, 128 on pools of other kinds."""
ROWS = 200
"""Reference rows of each class below which there is no probe: a mixture of fewer says nothing."""
OUTSIDE = 0.01
"""Share of the reference rows that lie farther out than the limit beyond which a row is unlike all of them."""

_THREADS = ThreadpoolController()
"""Made once: it looks through all libraries that are loaded."""
_FOLDS = 5
_STRENGTHS = (0.001, 0.01, 0.1)
"""Inverse strength of the L2 penalty, weakest last."""
_STRENGTH_OF_FEW = 0.01
_AS_GOOD = 0.002
"""AUROC by which a candidate must beat an earlier one, which reads less or is held more tightly."""


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """Few coordinates of a row, of variance 1 over the reference rows.

    Attributes:
        features: names of the features that are read, in order.
        centres: the reference rows' mean at each, float64 [features, d].
        maps: what takes a centred vector to its coordinates, float64 [features, r, d].
    """

    features: tuple[str, ...]
    centres: NDArray[np.float64]
    maps: NDArray[np.float64]

    @classmethod
    def of(cls, sample: Mapping[str, ArrayLike]) -> Whitening:
        """From a sample of the reference rows, at each feature [n, d].

        Raises:
            SAFTInputError: fewer than two rows, or all of them equal.
        """
        found = [subspace_of_rows(rows, COMPONENTS) for rows in sample.values()]
        size = min(len(subspace.directions) for subspace in found)
        return cls(
            tuple(sample),
            np.stack([subspace.mean for subspace in found]),
            np.stack([s.directions[:size] / np.sqrt(s.energies[:size, None]) for s in found]),
        )

    @property
    def energies(self) -> NDArray[np.float64]:
        """Variance of the reference rows along each coordinate's direction, [features * r]."""
        return np.asarray(1 / np.square(self.maps).sum(axis=2)).ravel()

    @property
    def components(self) -> int:
        """Coordinates of one feature."""
        return int(self.maps.shape[1])

    def select(self, features: Sequence[str]) -> Whitening:
        """The same with some of the features only."""
        at = [self.features.index(name) for name in features]
        return Whitening(tuple(features), self.centres[at], self.maps[at])

    def columns(self, features: Sequence[str]) -> NDArray[np.intp]:
        """Which of the coordinates are those of some features."""
        at = np.array([self.features.index(name) for name in features])
        return np.asarray((at[:, None] * self.components + np.arange(self.components)).ravel())

    def __call__(self, vectors: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """Coordinates of rows, float64 [n, features * r], from vectors [n, d] at each feature."""
        rows = (np.asarray(vectors[name], dtype=np.float64) for name in self.features)
        # On one thread: more of them may add up in another order, and so may other numbers of processes.
        with _THREADS.limit(limits=1, user_api="blas"):
            return np.concatenate(
                [(x - c) @ m.T for x, c, m in zip(rows, self.centres, self.maps, strict=True)], axis=1
            )

    def distance(self, vectors: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
        """How far rows lie from the reference rows' mean: mean square of the coordinates, float32 [n]."""
        return distances(self(vectors))

    def score(self, weights: NDArray[np.float64]) -> LinearScore:
        """A direction in coordinates, [features * r], as a score of vectors."""
        parts = weights.reshape(len(self.features), 1, -1)
        return LinearScore(self.features, self.centres, np.ascontiguousarray((parts @ self.maps)[:, 0]))


def distances(coordinates: NDArray[np.floating]) -> NDArray[np.float32]:
    """Mean square of whitened coordinates, [n]: 1 on average over the reference rows."""
    return np.asarray(np.mean(np.square(coordinates), axis=1), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What a reference teaches.

    Attributes:
        whitening: the coordinates that it reads.
        score: the score: log-odds, up to a constant; for few rows with the plain difference added to it, each in units
            of the spread within a class.
        limit: distance beyond which a row is unlike the reference rows.
        densities: how each component, a source's harmful or benign rows, scores.
        components: their names, [s].
        strength: of the penalty that cross-validation chose.
        auroc: over prompts that the probe has not seen.
        held_out_auroc: over sources that it has not seen; of one that cannot be left out over unseen prompts.
    """

    whitening: Whitening
    score: LinearScore
    limit: float
    densities: Densities
    components: tuple[str, ...]
    strength: float
    auroc: float
    held_out_auroc: float

    def outside(self, vectors: Mapping[str, ArrayLike]) -> NDArray[np.bool_]:
        """Rows that are unlike all reference rows, bool [n]."""
        return np.asarray(self.whitening.distance(vectors) > np.float32(self.limit))

    def probabilities(
        self, posterior: NDArray[np.float64], scores: ArrayLike, vectors: Mapping[str, ArrayLike]
    ) -> NDArray[np.float32]:
        """Probability that each row is harmful, float32 [n]; NaN for a row that is unlike the reference rows.

        Args:
            posterior: of each bin of scores, in the pool that was explained.
            scores: of the rows, [n].
            vectors: of the rows.
        """
        likely = posterior[self.densities.bins(scores)]
        return np.where(self.outside(vectors), np.nan, likely).astype(np.float32)

    def unexplained(self, scores: ArrayLike, likely: ArrayLike) -> NDArray[np.bool_]:
        """Rows above nearly all benign rows of every source that are counted as benign all the same, bool [n].

        Args:
            scores: of the rows, [n].
            likely: their probabilities, [n].
        """
        return (np.asarray(scores) > self.densities.above_benign) & (np.asarray(likely) <= 0.5)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
        """Split into a JSON-ready dict and arrays; the score goes its own way."""
        figures = _Figures(
            features=self.whitening.features,
            limit=self.limit,
            components=self.components,
            strength=self.strength,
            auroc=self.auroc,
            held_out_auroc=self.held_out_auroc,
        )
        arrays = {
            "centres": self.whitening.centres,
            "maps": self.whitening.maps,
            "edges": self.densities.edges,
            "counts": self.densities.counts,
            "held_out": self.densities.held_out,
        }
        return to_plain(figures), arrays

    @classmethod
    def from_parts(cls, config: Any, tensors: Mapping[str, NDArray[Any]], score: LinearScore) -> Self:
        """Put together again what `to_parts` took apart.

        Raises:
            ValueError: a value is missing, unknown, or not what a probe can have.
        """
        figures = from_plain(_Figures, config, "probe")
        if unknown := sorted(set(tensors) - set(_ARRAYS)):
            raise ValueError(f"probe.{unknown[0]}: unknown")
        arrays = {}
        for name, dimensions in _ARRAYS.items():
            array = tensors.get(name)
            if array is None or array.dtype != np.float64 or array.ndim != dimensions:
                raise ValueError(f"probe.{name}: not float64 of {dimensions} dimensions")
            arrays[name] = array
        centres, maps = arrays["centres"], arrays["maps"]
        # What is explained by them is drawn again many times: they may not be of any size.
        if arrays["edges"].size >= BINS or len(figures.components) > _MOST_COMPONENTS:
            raise ValueError(f"probe.edges: {arrays['edges'].size}, or more than {_MOST_COMPONENTS} components")
        for name in ("counts", "held_out"):
            if (arrays[name] != np.floor(arrays[name])).any() or np.abs(arrays[name]).max(initial=0) > _MOST_ROWS:
                raise ValueError(f"probe.{name}: not numbers of rows")
        if figures.features != score.features or centres.shape != score.weights.shape:
            raise ValueError("probe.features: not those of the score, or vectors of another width")
        if maps.shape != (*centres.shape[:1], maps.shape[1], *centres.shape[1:]) or not 0 < maps.shape[1] <= COMPONENTS:
            raise ValueError(f"probe.maps: shape {list(maps.shape)}, which does not fit the centres")
        harmful = np.array([name.endswith(": harmful") for name in figures.components], dtype=np.bool_)
        if len(harmful) != len(arrays["counts"]) or harmful.all() or not harmful.any():
            raise ValueError(f"probe.components: not harmful and benign ones, {len(arrays['counts'])} in all")
        densities = Densities(harmful, arrays["edges"], arrays["counts"], arrays["held_out"])
        return cls(
            Whitening(figures.features, centres, maps),
            score,
            figures.limit,
            densities,
            figures.components,
            figures.strength,
            figures.auroc,
            figures.held_out_auroc,
        )


_ARRAYS = {"centres": 2, "maps": 3, "edges": 1, "counts": 2, "held_out": 2}
"""The arrays of a saved probe, and how many dimensions they have."""
_MOST_COMPONENTS = 400
_MOST_ROWS = 1e9


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """The part of a `Probe` that is JSON."""

    features: tuple[Name, ...]
    limit: Annotated[float, Between(0, 1e30)]
    components: tuple[Annotated[str, Matching(r"[\w ./,()+-]{1,96}: (harmful|benign)")], ...]
    strength: float
    auroc: Share
    held_out_auroc: Share


def candidates(stored: Sequence[str]) -> list[tuple[str, ...]]:
    """Sets of features to choose from, the smallest first.

    `response_mean` of the last layer that is read, all readouts there, all readouts of all layers.

    Args:
        stored: names of the features, such as `23.response_mean`.

    Examples:
        >>> candidates(["4.response_start", "4.response_mean", "6.response_start", "6.response_mean"])[:2]
        [('6.response_mean',), ('6.response_start', '6.response_mean')]
    """
    last = max((name.split(".")[0] for name in stored), key=int)
    top = tuple(name for name in stored if name.split(".")[0] == last)
    mean = tuple(name for name in top if name.endswith(".response_mean"))
    return list(dict.fromkeys(found for found in (mean, top, tuple(stored)) if found))


def fit_probe(
    whitening: Whitening,
    coordinates: NDArray[np.floating],
    harmful: NDArray[np.bool_],
    sources: Sequence[str],
    source: NDArray[np.integer],
    prompts: NDArray[np.integer],
    *,
    few: bool = False,
    seed: int = 0,
) -> Probe:
    """Learn a probe from reference rows.

    Args:
        whitening: of all features that were read.
        coordinates: of the rows in it, [m, q], finite.
        harmful: their labels, bool [m].
        sources: names of the sources.
        source: which of them each row is from, [m].
        prompts: one whole number for each row, [m]; rows of the same prompt have the same, and are held out together.
        few: whether they are too few to choose by: all features are read, and the plain difference stands beside.
        seed: of the folds: the same input gives the same bits.

    Raises:
        SAFTInputError: a class has too few rows, or shapes differ.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> harmful = np.arange(1000) % 2 == 0
        >>> x = rng.standard_normal((1000, 6)) + 2 * harmful[:, None]
        >>> whitening = Whitening.of({"8.response_mean": x})
        >>> at = whitening({"8.response_mean": x})
        >>> probe = fit_probe(whitening, at, harmful, ["a"], 0 * harmful, np.arange(1000))
        >>> probe.auroc > 0.99, probe.components, round(float(probe.outside({"8.response_mean": 9 + x}).mean()))
        (True, ('a: benign', 'a: harmful'), 1)
    """
    rows = np.asarray(coordinates, dtype=np.float64)
    if not len(rows) == len(harmful) == len(source) == len(prompts):
        raise SAFTInputError("a probe needs a label, a source and a prompt for each row")
    for name, own in (("harmful", harmful), ("benign", ~harmful)):
        if own.sum() < ROWS or np.unique(prompts[own]).size < ROWS / 10:
            raise SAFTInputError(
                f"a probe needs {ROWS} reference rows of each class, of {ROWS // 10} prompts; found {own.sum()} {name} "
                f"ones, of {np.unique(prompts[own]).size}"
            )
    folds = _folds(prompts, seed)
    plain = _plain(whitening) if few else None
    # On one process and one thread: what is learned must be the same bits on any machine of a launch.
    with _THREADS.limit(limits=1, user_api="blas"):
        best: tuple[float, tuple[str, ...], float, NDArray[np.float64]] | None = None
        weights = _weights(harmful, source)
        for features in [whitening.features] if few else candidates(whitening.features):
            columns = whitening.columns(features)
            for strength in [_STRENGTH_OF_FEW] if few else _STRENGTHS:
                learn = partial(_direction, strength=strength, plain=plain)
                scores = _unseen(rows[:, columns], harmful, source, folds, learn)
                area = float(roc_auc_score(harmful, scores, sample_weight=weights))
                if best is None or area > best[0] + _AS_GOOD:
                    best = area, features, strength, scores
        assert best is not None  # noqa: S101 - there is a candidate
        area, features, strength, scores = best
        chosen = rows[:, whitening.columns(features)]
        learn = partial(_direction, strength=strength, plain=plain)
        held_out = _without_source(chosen, harmful, source, prompts, scores, learn)
        direction = learn(chosen, harmful, source)
    pairs = [(at, bad) for at in range(len(sources)) for bad in (False, True) if (harmful[source == at] == bad).any()]
    component = np.empty(len(rows), dtype=np.intp)
    for number, (at, bad) in enumerate(pairs):
        component[(source == at) & (harmful == bad)] = number
    read = whitening.select(features)
    return Probe(
        whitening=read,
        score=read.score(direction),
        limit=float(np.quantile(distances(chosen), 1 - OUTSIDE)),
        densities=Densities.of(scores, held_out, component, np.array([bad for _, bad in pairs])),
        components=tuple(f"{sources[at]}: {'harmful' if bad else 'benign'}" for at, bad in pairs),
        strength=strength,
        auroc=area,
        held_out_auroc=float(roc_auc_score(harmful, held_out, sample_weight=weights)),
    )


def _folds(prompts: NDArray[np.integer], seed: int) -> NDArray[np.intp]:
    """The fold of each row, [m]: rows of one prompt are in one."""
    groups = np.unique(prompts, return_inverse=True)[1]
    fold = np.arange(int(groups.max()) + 1) % _FOLDS
    return np.asarray(np.random.default_rng(seed).permutation(fold)[groups])


def _weights(harmful: NDArray[np.bool_], source: NDArray[np.integer]) -> NDArray[np.float64]:
    """What each row weighs: both classes the same, and in each its sources by the square root of their rows."""
    weights = np.zeros(len(harmful))
    for bad in (True, False):
        for at in np.unique(source[harmful == bad]):
            own = (harmful == bad) & (source == at)
            weights[own] = own.sum() ** -0.5
        weights[harmful == bad] *= len(harmful) / 2 / weights[harmful == bad].sum()
    return weights


def _plain(whitening: Whitening) -> NDArray[np.float64] | None:
    """What makes of a difference in coordinates the plain one at the start of the response, [features * r].

    Of the last layer that is read, 0 elsewhere; None where rows have no start of the response.
    """
    last = next((name for name in reversed(whitening.features) if name.endswith(".response_start")), None)
    if last is None:
        return None
    scales = np.zeros(len(whitening.features) * whitening.components)
    own = whitening.columns([last])
    scales[own] = whitening.energies[own]
    return scales


_Learner = Callable[[NDArray[np.float64], NDArray[np.bool_], NDArray[np.integer]], NDArray[np.float64]]
"""Rows, their labels and sources -> a direction."""


def _direction(
    rows: NDArray[np.float64],
    harmful: NDArray[np.bool_],
    source: NDArray[np.integer],
    strength: float,
    plain: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    weights = _weights(harmful, source)
    fitted = LogisticRegression(C=strength, max_iter=1000).fit(rows, harmful, sample_weight=weights).coef_[0]
    if plain is None:
        return np.asarray(fitted)
    means = [np.average(rows[own], axis=0, weights=weights[own]) for own in (harmful, ~harmful)]
    parts = fitted, plain * (means[0] - means[1])
    return np.asarray(np.sum([part / _spread(rows @ part, harmful, weights) for part in parts], axis=0))


def _spread(scores: NDArray[np.float64], harmful: NDArray[np.bool_], weights: NDArray[np.float64]) -> float:
    """Standard deviation within a class."""
    squares = [
        np.average(np.square(scores[own] - np.average(scores[own], weights=weights[own])), weights=weights[own])
        for own in (harmful, ~harmful)
    ]
    return float(np.sqrt(max(sum(squares) / 2, np.finfo(np.float64).tiny)))


def _unseen(
    rows: NDArray[np.float64],
    harmful: NDArray[np.bool_],
    source: NDArray[np.integer],
    folds: NDArray[np.intp],
    learn: _Learner,
) -> NDArray[np.float64]:
    """Scores by directions that have not seen the prompt, [m]."""
    scores = np.zeros(len(rows))
    for own in (folds == fold for fold in np.unique(folds)):
        scores[own] = rows[own] @ learn(rows[~own], harmful[~own], source[~own])
    return scores


def _without_source(
    rows: NDArray[np.float64],
    harmful: NDArray[np.bool_],
    source: NDArray[np.integer],
    prompts: NDArray[np.integer],
    otherwise: NDArray[np.float64],
    learn: _Learner,
) -> NDArray[np.float64]:
    """Scores by directions that have seen neither the source nor its prompts, [m].

    `otherwise` where that leaves rows of one class only.
    """
    scores = otherwise.copy()
    for at in np.unique(source):
        own, learned = source == at, others(at, harmful, source, prompts)
        if learned.any():
            scores[own] = rows[own] @ learn(rows[learned], harmful[learned], source[learned])
    return scores


def others(
    at: int, harmful: NDArray[np.bool_], source: NDArray[np.integer], prompts: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Rows to learn from in place of a source, of other sources and prompts, bool [m]; none where one class lacks."""
    found = (source != at) & ~np.isin(prompts, prompts[source == at])
    both = harmful[found].any() and not harmful[found].all()
    return found if both else np.zeros_like(found)
