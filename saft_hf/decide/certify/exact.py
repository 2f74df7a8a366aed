"""Exact tests and limits for a number of harmful rows, from labels drawn uniformly without replacement.

One test serves certificates and estimates. The rows counted are one set, or fall into strata; in each, some rows were
labelled, drawn uniformly, and independently of the other strata. The null hypothesis: more than `limit` rows of all
are harmful.

One stratum: the hypergeometric tail at limit + 1 harmful rows; with more of them it only falls.

Several: for an allocation H of harmful rows to strata let P_g(H_g) be the tail of stratum g. At the true H they are
independent and P(P_g <= u) <= u, so the product Q of the G of them has P(Q <= q) <= F(q) = P(chi2_2G >= -2 ln q)
(Fisher). The true H is not known, but under the null it is one with sum H > limit. So F(max Q), the maximum over all
those H, is at least F(Q at the true H), and P(F(max Q) <= u) <= u. For the maximum, every P_g starts at 1 and falls,
so ln Q is a sum of falls; an allocation takes the first H_g falls of each stratum, and the sum over the limit + 1
smallest falls of all is at least that of any allocation (equal to the best, since the tails are log-concave in H_g).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincc
from scipy.stats import hypergeom

_STEPS = 200  # above so many harmful rows the strata's allocations are taken in steps, rounded to the safe side


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Rows of J nested sets, in each of G strata (G = 1 where there are none).

    Attributes:
        sizes: rows, int64 [J, G].
        labels: labelled ones among them, [J, G].
        harmful: harmful ones among those, [J, G].
    """

    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    harmful: NDArray[np.int64]

    def of(self, j: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Sizes, labels and harmful labels of set j, [G] each."""
        return self.sizes[j], self.labels[j], self.harmful[j]


def tail(harmful: ArrayLike, labels: ArrayLike, bad: ArrayLike, size: ArrayLike) -> NDArray[np.float64]:
    """Chance of at most `harmful` among `labels` rows drawn without replacement, where `bad` of `size` are harmful.

    Examples:
        >>> float(tail(0, 2, 1, 4))  # neither of two rows is the one harmful row of four
        0.5
    """
    return np.asarray(hypergeom.cdf(harmful, size, bad, labels), dtype=np.float64)


def share_test(limit: int, sizes: NDArray[np.int64], labels: NDArray[np.int64], harmful: NDArray[np.int64]) -> float:
    """p-value for "more than `limit` rows are harmful", small when that can be ruled out.

    Args:
        limit: harmful rows that are allowed in all. A negative one has the p-value 1.
        sizes: rows of each stratum, [G]; G = 1 where there are no strata.
        labels: labelled rows of each, [G].
        harmful: harmful ones among the labelled, [G].
    """
    if limit < 0:
        return 1.0
    if limit >= int(sizes.sum()) - int((labels - harmful).sum()):
        return 0.0
    if sizes.size == 1:
        return float(tail(harmful[0], labels[0], limit + 1, sizes[0]))
    # A stratum without labels has the tail 1 whatever it holds: harmful rows go there first, and it adds no factor.
    seen = labels > 0
    over = limit + 1 - int(sizes[~seen].sum())
    if over <= 0:
        return 1.0
    sizes, labels, harmful = sizes[seen], labels[seen], harmful[seen]
    step = -(-over // _STEPS)
    # Rounded down to whole steps, the rows of an allocation lose at most step - 1 a stratum.
    steps = -(-(over - sizes.size * (step - 1)) // step)
    strata = zip(sizes.tolist(), labels.tolist(), harmful.tolist(), strict=True)
    falls = np.concatenate([log_falls(size, n, x, step, min(steps, size // step)) for size, n, x in strata])
    if steps > falls.size:
        return 0.0
    log_q = -np.sort(-falls)[: max(steps, 0)].sum()
    return float(gammaincc(sizes.size, -log_q))


def log_falls(size: int, labels: int, harmful: int, step: int, steps: int) -> NDArray[np.float64]:
    """How much the logarithm of one stratum's tail changes with each `step` more harmful rows, [steps], all <= 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        falls = np.diff(np.log(tail(harmful, labels, step * np.arange(steps + 1), size)))
    # -inf less -inf: the tail was 0 before.
    return np.where(np.isnan(falls), -np.inf, np.minimum(falls, 0.0))


def upper_limit(delta: float, sizes: NDArray[np.int64], labels: NDArray[np.int64], harmful: NDArray[np.int64]) -> int:
    """The most harmful rows there can be, with confidence 1 - delta: the smallest limit that passes `share_test`.

    Examples:
        >>> upper_limit(0.1, np.array([100]), np.array([30]), np.array([0]))
        6
    """
    fails, passes = int(harmful.sum()) - 1, int(sizes.sum() - (labels - harmful).sum())
    while passes - fails > 1:
        middle = (fails + passes) // 2
        passed = share_test(middle, sizes, labels, harmful) <= delta
        fails, passes = (fails, middle) if passed else (middle, passes)
    return passes
