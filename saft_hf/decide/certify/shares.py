"""Estimates of a harmful share from labels, with exact intervals."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest

from saft_hf.decide.certify.exact import Counts, upper_limit
from saft_hf.errors import SAFTInputError
from saft_hf.summary import ShareEstimate


def clopper_pearson(harmful: int, labels: int, *, confidence: float = 0.95) -> ShareEstimate:
    """A share and its exact binomial interval, from labels drawn uniformly.

    Args:
        harmful: harmful rows among the labelled ones.
        labels: labelled rows, at least 1.
        confidence: of the interval, between 0 and 1.

    Returns:
        The estimate. Its coverage is at least `confidence`, whatever the share.

    Raises:
        SAFTInputError: the counts do not fit, or `confidence` is out of range.

    Source: Clopper and Pearson, *Biometrika* 26 (1934).

    Examples:
        >>> str(clopper_pearson(4, 100))
        '4.0% (1.1% to 9.9%, confidence 95%)'
    """
    check_chance("confidence", confidence)
    if not 0 <= harmful <= labels or labels < 1:
        raise SAFTInputError(f"harmful must lie between 0 and labels, labels be 1 or more; found {harmful} of {labels}")
    interval = binomtest(harmful, labels).proportion_ci(confidence, method="exact")
    return ShareEstimate(
        share=harmful / labels,
        low=float(interval.low),
        high=float(interval.high),
        confidence=confidence,
        labels=int(labels),
        harmful=int(harmful),
        rows=None,
        method="clopper-pearson",
    )


def exact_share(counts: Counts, j: int, confidence: float) -> ShareEstimate:
    """The harmful share of one set of known size, with an exact interval, each side at half the error."""
    sizes, labels, harmful = counts.of(j)
    rows, side = int(sizes.sum()), (1 - confidence) / 2
    rates = harmful / np.maximum(labels, 1)
    # A stratum without labels is taken at the rate of all others.
    rates[labels == 0] = np.average(rates, weights=sizes * (labels > 0))
    return ShareEstimate(
        share=float(rates @ sizes) / rows,
        low=(rows - upper_limit(side, sizes, labels, labels - harmful)) / rows,
        high=upper_limit(side, sizes, labels, harmful) / rows,
        confidence=confidence,
        labels=int(labels.sum()),
        harmful=int(harmful.sum()),
        rows=rows,
        method="hypergeometric" if sizes.size == 1 else "stratified",
    )


def check_chance(name: str, value: float) -> None:
    """Refuse a share or a chance that is not strictly between 0 and 1."""
    if not 0 < value < 1:
        raise SAFTInputError(f"{name} must be between 0 and 1, such as 0.1; found {value!r}")
