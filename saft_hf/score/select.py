"""Choosing how to score, on the labels alone, and whether the choice can be told from chance.

Every candidate scores the labelled rows out of fold, on the same folds, which keep rows of one prompt together. What
is tested is the whole procedure: the labels are dealt out again many times, and each time *all* candidates are trained
and compared again. The best of many candidates looks good on noise as well; the permutations say how good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from saft_hf.errors import SAFTInputError
from saft_hf.score.crossfit import auroc, deal, make_folds, mean_differences, out_of_fold
from saft_hf.score.directed import SHRINKAGE, Frame
from saft_hf.score.moments import Moments

MIN_OF_A_CLASS = 5
"""Labels of each class below which nothing is chosen: with fewer, a threshold rests on one or two rows."""
MIN_TO_PICK = 10
"""Labels of each class below which the candidates are compared and tested, but none is picked over the default: of
five harmful rows, all may lie high by luck, and a difference of 0.01 in AUROC is a fraction of one row."""
SIGNIFICANCE = 0.02
"""Refuse above this p-value. Under 0.05, so that shuffled labels are refused in at least 95 % of any 200 draws, not
only on average."""
PERMUTATIONS = 499
MARGIN = 0.01
"""A simpler candidate wins only where it gives away less AUROC than this, and no more than one standard error."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to score.

    Attributes:
        name: For people and tables.
        parts: The features it reads, in the sets that `combine` adds up; one of one feature for the published score.
        complexity: How much the labels pick: nothing (0), k (1), which features (2, 3). Picking is what few labels do
            badly.
        k: Directions that the published score sums; None for a direction learned from the labels.
        shrinkage: Of a learned direction, see `metric`.
    """

    name: str
    parts: tuple[tuple[str, ...], ...]
    complexity: int
    k: int | None = None
    shrinkage: float = SHRINKAGE

    @property
    def features(self) -> tuple[str, ...]:
        """The features it reads."""
        return tuple(dict.fromkeys(feature for part in self.parts for feature in part))


@dataclass(frozen=True, slots=True)
class Compared:
    """How one candidate did.

    Attributes:
        candidate: The candidate.
        auroc: Out-of-fold AUROC, mean over the repeats; above 0.5 where harmful rows score higher.
        difference: AUROC of the winner less this one's.
        standard_error: Of that difference, paired (DeLong, DeLong and Clarke-Pearson 1988).
    """

    candidate: Candidate
    auroc: float
    difference: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Undecided:
    """Why no decision may rest on this choice.

    Attributes:
        reason: What was found, in words.
        more_labels: About how many more labels, drawn like these, would help; None where that is not foreseeable.
    """

    reason: str
    more_labels: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """What `choose` found.

    Attributes:
        winner: The candidate in use.
        compared: Every candidate, in the order given.
        out_of_fold: The winner's out-of-fold scores of the labelled rows, one line a repeat, float64 [repeats, m]. A
            learned direction's are in standard deviations of the pool's scores, as `LinearScore` gives them.
        p_value: Share of permutations in which the best candidate does at least as well as the best one here.
        permutations: How many there were; 0 where too few labels leave nothing to test.
        undecided: Why nothing may be decided; None where it may.
    """

    winner: Candidate
    compared: tuple[Compared, ...]
    out_of_fold: NDArray[np.float64]
    p_value: float
    permutations: int
    undecided: Undecided | None

    def figures(self) -> dict[str, Any]:
        """The comparison, JSON-ready, best candidate first."""
        ordered = sorted(self.compared, key=lambda row: row.difference)
        return {
            "winner": self.winner.name,
            "p_value": self.p_value,
            "permutations": self.permutations,
            "undecided": asdict(self.undecided) if self.undecided else None,
            "candidates": [
                {
                    "name": row.candidate.name,
                    "features": list(row.candidate.features),
                    "auroc": round(row.auroc, 4),
                    "difference": round(row.difference, 4),
                    "standard_error": round(row.standard_error, 4),
                }
                for row in ordered
            ],
        }


def default_candidates(
    layers: Mapping[str, int], published: str | None, ks: Sequence[int] = (1, 2, 3, 4)
) -> tuple[Candidate, ...]:
    """The candidates of `method="auto"`: published; all features, weighted or at once; one layer; one feature.

    Args:
        layers: For each feature its layer.
        published: The feature of the published score; None leaves it out.
        ks: Numbers of directions for it.

    Returns:
        The candidates, the published score first.

    Example:
        >>> found = default_candidates({"4.start": 4, "8.start": 8, "8.mean": 8}, "4.start", ks=(1,))
        >>> [candidate.name for candidate in found][:4]
        ['saft k=1 4.start', 'weighted', 'joint', 'directed 8.start+8.mean']
    """
    features = tuple(layers)
    by_layer = {layer: tuple(feature for feature in features if layers[feature] == layer) for layer in layers.values()}
    found = [] if published is None else [Candidate(f"saft k={k} {published}", ((published,),), 1, k=k) for k in ks]
    if len(features) > 1:
        found.append(Candidate("weighted", tuple((feature,) for feature in features), 0))
    if len(by_layer) > 1:
        found.append(Candidate("joint", (features,), 2))
    found += [Candidate(f"directed {'+'.join(some)}", (some,), 2) for some in by_layer.values() if len(some) > 1]
    found += [Candidate(f"directed {feature}", ((feature,),), 3) for feature in features]
    return tuple(found)


def choose(
    candidates: Sequence[Candidate],
    frame: Frame,
    pool: Moments,
    coordinates: ArrayLike,
    harmful: ArrayLike,
    groups: ArrayLike,
    published: Mapping[int, ArrayLike] | None = None,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Selection:
    """Compare candidates on labelled rows, and test the whole comparison against chance.

    The best out-of-fold AUROC wins, unless a simpler candidate is within one standard error *and* within 0.01.
    Permutations deal the labels out again among groups of equal size, so rows of one prompt stay together. Where the
    choice is refused, or a class has fewer than 10 labels, the first learned candidate stands in and nothing is picked.

    Args:
        candidates: What is compared, see `default_candidates`.
        frame: The features and their components.
        pool: Moments of the whole pool's coordinates in that frame, [q].
        coordinates: The labelled rows' coordinates, [m, q], finite.
        harmful: Their labels, bool [m], True where harmful.
        groups: One whole number for each labelled row; rows of the same prompt have the same, [m].
        published: For each k among the candidates the labelled rows' published scores, [m].
        permutations: How often the labels are dealt out again, 200 or more.
        seed: Of folds and permutations: the same input gives the same bits.

    Returns:
        The choice, with an `Undecided` where it may be chance or the labels are too few.

    Raises:
        SAFTInputError: Shapes differ, values are not finite, there is no candidate, or too few permutations.
    """
    rows, labels = np.asarray(coordinates, dtype=np.float64), np.asarray(harmful, dtype=np.bool_)
    prompts = np.unique(np.asarray(groups), return_inverse=True)[1]
    fixed = {k: np.asarray(scores, dtype=np.float64) for k, scores in (published or {}).items()}
    _check(candidates, frame, rows, labels, prompts, fixed, permutations)
    rng = np.random.default_rng(seed)
    # What stands in where nothing can be chosen. A direction needs both classes.
    learned = [at for at, candidate in enumerate(candidates) if candidate.k is None]
    default = learned[0] if learned and labels.any() and not labels.all() else 0
    few, folds = _too_few(labels), make_folds(labels, prompts, rng)
    if folds is None:
        nothing = tuple(Compared(candidate, 0.5, 0.0, 0.0) for candidate in candidates)
        few = few or Undecided("the labelled rows of one class share too few prompts to hold some of them out", None)
        return Selection(candidates[default], nothing, np.zeros((1, labels.size)), 1.0, 0, few)
    # The first order is the labels as they are.
    orders = np.concatenate([np.arange(labels.size)[None], deal(prompts, permutations, rng)])
    lessons = mean_differences(rows, labels, folds, orders)
    own, aurocs = [], np.empty((len(candidates), len(orders)))
    for at, candidate in enumerate(candidates):
        if candidate.k is not None:
            scores = fixed[candidate.k][orders][None]
        else:
            scores = out_of_fold(candidate.parts, candidate.shrinkage, frame, pool, rows, folds, orders, lessons)
        aurocs[at] = np.mean([auroc(repeat, labels) for repeat in scores], axis=0)
        own.append(scores[:, 0])
    highest = aurocs.max(axis=0)
    # The labels as they are count as one of the deals: the p-value is exact, and never 0.
    p_value = float(np.mean(highest >= highest[0] - 1e-12))
    undecided = few or _chance(highest, p_value, labels.size)
    placed = [_placements(scores, labels) for scores in own]
    scarce = min(int(labels.sum()), int((~labels).sum())) < MIN_TO_PICK
    best = default if undecided or scarce else _best(candidates, placed, aurocs[:, 0])
    compared = tuple(
        Compared(candidate, float(area), float(aurocs[best, 0] - area), _standard_error(placed[best], place))
        for candidate, area, place in zip(candidates, aurocs[:, 0], placed, strict=True)
    )
    return Selection(candidates[best], compared, own[best], p_value, permutations, undecided)


def _check(
    candidates: Sequence[Candidate],
    frame: Frame,
    rows: NDArray[np.float64],
    labels: NDArray[np.bool_],
    prompts: NDArray[np.intp],
    fixed: Mapping[int, NDArray[np.float64]],
    permutations: int,
) -> None:
    if not candidates:
        raise SAFTInputError("there is no candidate to choose from")
    if permutations < 200:
        raise SAFTInputError(f"permutations must be at least 200, so that 0.05 can be told apart; found {permutations}")
    m = labels.size
    if labels.shape != (m,) or rows.shape != (m, frame.size) or prompts.shape != (m,) or m == 0:
        raise SAFTInputError(
            f"for {m} labels, coordinates must be [{m}, {frame.size}] and groups [{m}]; found {list(rows.shape)} and "
            f"{list(prompts.shape)}"
        )
    if lacking := [c.k for c in candidates if c.k is not None and c.k not in fixed]:
        raise SAFTInputError(f"published scores for k={lacking[0]} are missing; found {sorted(fixed)}")
    for name, array in {"coordinates": rows, **{f"published scores, k={k}": fixed[k] for k in fixed}}.items():
        if len(array) != m or not np.isfinite(array).all():
            raise SAFTInputError(f"{name} must be finite, one row for each of {m} labels: leave unscored rows out")


class _Placements(NamedTuple):
    """For each row the share of the other class that it stands on the right side of."""

    harmful: NDArray[np.float64]
    benign: NDArray[np.float64]


def _placements(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> _Placements:
    wins = np.zeros((int(labels.sum()), int((~labels).sum())))
    for line in scores:
        wins += (np.sign(line[labels][:, None] - line[~labels]) + 1) / (2 * len(scores))
    return _Placements(wins.mean(axis=1), wins.mean(axis=0))


def _standard_error(a: _Placements, b: _Placements) -> float:
    variance = 0.0
    for one, other in ((a.harmful, b.harmful), (a.benign, b.benign)):
        if one.size > 1:
            variance += float(np.var(one - other, ddof=1)) / one.size
    return float(np.sqrt(variance))


def _best(candidates: Sequence[Candidate], placed: Sequence[_Placements], aurocs: NDArray[np.float64]) -> int:
    top = int(np.argmax(aurocs))

    def near(at: int) -> bool:
        given_away = aurocs[top] - aurocs[at]
        return bool(given_away < MARGIN and given_away <= _standard_error(placed[top], placed[at]))

    able = [at for at in range(len(candidates)) if at == top or near(at)]
    return min(able, key=lambda at: (candidates[at].complexity, -aurocs[at], at))


def _too_few(labels: NDArray[np.bool_]) -> Undecided | None:
    counts = {"harmful": int(labels.sum()), "benign": int((~labels).sum())}
    name = min(counts, key=lambda word: counts[word])
    if counts[name] >= MIN_OF_A_CLASS:
        return None
    # So many that about twice what is needed may be hoped for: a draw can be unlucky again.
    more = int(np.ceil(labels.size * (2 * MIN_OF_A_CLASS / counts[name] - 1))) if counts[name] else None
    return Undecided(
        f"{counts[name]} of {labels.size} labelled rows are {name}; at least {MIN_OF_A_CLASS} of each class are needed",
        more,
    )


def _chance(highest: NDArray[np.float64], p_value: float, m: int) -> Undecided | None:
    if p_value <= SIGNIFICANCE:
        return None
    null = highest[1:]
    centre, spread = float(null.mean()), float(null.std())
    # A signal of this size stands out of noise that shrinks as 1 / sqrt(m), four times in five.
    found = (highest[0] - centre) / spread if spread > 0 else 0.0
    needed = float(np.quantile((null - centre) / spread, 1 - SIGNIFICANCE)) + norm.ppf(0.8) if spread > 0 else np.inf
    more = int(np.ceil(m * ((needed / found) ** 2 - 1))) if found > 0.5 else None
    return Undecided(
        f"the best of all candidates has an out-of-fold AUROC of {highest[0]:.2f}, and labels dealt out at random do "
        f"as well with probability {p_value:.2f} (a choice is taken up to {SIGNIFICANCE})",
        more,
    )
