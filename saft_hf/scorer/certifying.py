"""What fresh labels certify about the rows that a fitted scorer keeps."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.decide import Decisions
from saft_hf.decide.certify import Certificate, FreshLabels, RowsInUse
from saft_hf.decide.certify.shares import check_chance
from saft_hf.embed import find_keys
from saft_hf.errors import SAFTInputError, few
from saft_hf.scorer.fit import Fit
from saft_hf.scorer.inputs import values_of
from saft_hf.scorer.labels import Suggested


def certify(
    fit: Fit,
    scores: NDArray[np.float64],
    identities: NDArray[np.uint8],
    fresh_identities: NDArray[np.uint8],
    labels: Suggested,
    strata: tuple[list[str], list[str]] | None,
    *,
    alpha: float | Mapping[str, float],
    delta: float,
    looks: int,
    stratify_by: str | None,
    threshold: float | None,
    keep_errored: bool,
    decided: Callable[[float], Decisions],
) -> Certificate:
    """What fresh labels say of scored rows, see `SAFTScorer.certify`.

    Args:
        fit: of the scorer.
        scores: of all rows, `float64 [N]`, NaN where a row has none, -inf where every threshold keeps it.
        identities: digests of the tokens of all rows, `uint8 [N, 16]`.
        fresh_identities: those of the labelled rows, `uint8 [m, 16]`.
        labels: what people said of them.
        strata: a value for each of all rows and for each of the labelled ones.
        alpha: largest harmful share, of all rows or of each stratum.
        delta: chance that a certificate is issued and false.
        looks: how many looks were announced.
        stratify_by: the column of the strata.
        threshold: that is in use; None for that of the fit.
        keep_errored: whether rows without a score are trained on too; they count as harmful.
        decided: what a filter decides at a threshold.

    Raises:
        SAFTInputError: a label is of no row of the dataset, or of one that the scorer was fitted on; it was drawn from
            the rows kept at another threshold; or a stratum has no alpha.
    """
    rows = match_rows(identities, fresh_identities, strata)
    counts = np.flatnonzero(labels.counts)
    if (overlap := counts[fit.labelled.used(fresh_identities[counts])]).size:
        raise SAFTInputError(
            f"{overlap.size} of {counts.size} fresh labels are of rows that the scorer was fitted on (rows "
            f"{few(overlap)} of fresh_labels), by their tokens: a certificate needs labels that chose nothing. Draw "
            "and label other rows, for example those that `suggest_labels` gives."
        )
    excluded = np.union1d(fit.labelled.used(identities), rows[labels.informative])
    own, rows, cut = scores, rows[counts], labels.up_to
    # A threshold that a certificate chose is no choice made before these labels, as far as we know.
    at = fit.threshold if threshold is None else threshold
    bounded = threshold is not None or cut is not None or fit.threshold_from != "certificate"
    if cut is not None:
        _check_cut(cut, at, own[rows])
        excluded = np.union1d(excluded, np.flatnonzero(own > cut))
    errored = np.isnan(scores) & keep_errored
    errored[excluded] = False
    fresh = FreshLabels.of(own, rows, labels.harmful, excluded, strata and strata[0])
    if isinstance(alpha, Mapping):
        assert strata is not None  # noqa: S101 - `check_alpha`
        stratum, parts = np.array(strata[0], dtype=object), {}
        population = ~np.isnan(own)
        population[excluded] = False
        for name, share in alpha.items():
            inside = stratum == name
            # Each has its part of the error: all of them hold together.
            level, bad = delta / len(alpha), int(errored[inside].sum())
            if not (inside & population).any():
                parts[name] = Certificate(share, level, 0, 0, 0, 0, 1, bad, (), None, looks=looks)
                continue
            own_rows = inside[rows]
            part = FreshLabels.of(
                own, rows[own_rows], labels.harmful[own_rows], np.union1d(excluded, np.flatnonzero(~inside))
            )
            parts[name] = part.certify(alpha=share, delta=level, errored_kept=bad, threshold=cut, looks=looks)
        certificate = Certificate.together(parts, str(stratify_by), delta, looks)
    else:
        certificate = fresh.certify(
            alpha=alpha, delta=delta, errored_kept=int(errored.sum()), threshold=cut, looks=looks
        )
    certificate = replace(
        certificate, drawn_from=cut, unanswered=labels.unanswered, informative=int(labels.informative.sum())
    )
    if at is None:
        return certificate
    decisions = decided(at)
    assert decisions.threshold is not None  # noqa: S101 - it was given one
    # A probe's own threshold keeps rows above it too: those that are as likely harmless.
    fresh = FreshLabels.of(
        np.where(own <= decisions.threshold, -np.inf, own), rows, labels.harmful, excluded, strata and strata[0]
    )
    counted = int(fresh.at(at).sizes.sum())
    if not counted:
        return certificate  # there is no row kept at a threshold in use
    certificate = replace(certificate, rows=RowsInUse.of(decisions, at, counted))
    if not bounded or not certificate.labels:
        return certificate  # there is no label to tell, or not of a threshold that labels chose
    return replace(
        certificate,
        in_use=fresh.bound(at, delta=delta / looks, errored_kept=int(errored.sum())),
        # Of the rows that are removed, labels drawn from the kept ones tell nothing.
        shares=None if cut is not None else fresh.shares(at, confidence=1 - 0.05 / looks),
    )


def _check_cut(cut: float, in_use: float | None, labelled: NDArray[np.float64]) -> None:
    """Refuse labels that were drawn from the rows kept at another threshold, or by other scores."""
    drawn = f"the fresh labels were drawn from the rows kept at threshold {cut!r} alone, by their `saft_purpose`"
    if in_use != cut:
        raise SAFTInputError(
            f"{drawn}, and the threshold in use is {in_use!r}: they tell of no other set. Certify with "
            f"`threshold={cut!r}`, or draw labels at the threshold in use."
        )
    if above := int((labelled > cut).sum()):
        raise SAFTInputError(
            f"{drawn}, and {above} of {labelled.size} have a score above it: they were drawn by another scorer, or "
            "from other rows. Draw labels with this one."
        )


def check_alpha(alpha: float | Mapping[Any, float], stratify_by: str | None) -> float | dict[str, float]:
    """The largest harmful share, of all rows or by the text of a stratum's value.

    Raises:
        SAFTInputError: shares of strata without a column that has them, or one out of range.
    """
    if not isinstance(alpha, Mapping):
        return alpha
    if stratify_by is None or not alpha:
        raise SAFTInputError(
            f"`alpha` has a share for each of {len(alpha)} strata: name the column that holds them, `stratify_by=`."
        )
    for name, share in alpha.items():
        check_chance(f"alpha of {name!r}", share)
    return {str(name): share for name, share in alpha.items()}


def certified_fit(fit: Fit, certificate: Certificate) -> Fit:
    """The fit with the certified threshold, or those of the strata, in place of its own.

    Raises:
        SAFTInputError: nothing is certified.
    """
    if not certificate.issued:
        raise SAFTInputError(f"nothing is certified, so there is no set to keep. {certificate.says()}")
    return replace(
        fit,
        threshold=certificate.threshold,
        threshold_from="certificate",
        undecided=None,
        stratify_by=certificate.stratify_by,
        thresholds={name: part.threshold for name, part in certificate.parts.items()},
        # What was expected of the former threshold is not true of this one.
        metrics=replace(fit.metrics, expected=None, pool=replace(fit.metrics.pool, flagged=None)),
    )


def digest_of(rows: str, scores: NDArray[np.float64], dataset: Dataset, stratify_by: str | None) -> str:
    """Names what a certificate is about: rows, by their digest, their scores, and strata that have an alpha each."""
    strata = None if stratify_by is None else _column(dataset, "dataset", stratify_by)
    return hashlib.sha256(repr((rows, strata)).encode() + scores.tobytes()).hexdigest()


def check_certificate(certificate: Certificate, dataset: str, decisions: Decisions) -> None:
    """Refuse a certificate of other rows, or of fewer.

    Args:
        certificate: whose set is kept.
        dataset: names the rows that are filtered, see `digest_of`.
        decisions: what it decides about them.

    Raises:
        SAFTInputError: it says nothing about these rows.
    """
    if certificate.dataset not in (None, dataset):
        raise SAFTInputError(
            "the certificate is about other rows than these, or about other scores of them: certify the rows that you "
            "filter, with this scorer. (`certified` makes a scorer with its threshold, for any rows; what is kept of "
            "them is then not certified.)"
        )
    if decisions.train_on_errored and len(decisions.errored) and not certificate.errored_kept:
        raise SAFTInputError(
            f"on_error='keep' would train on {len(decisions.errored)} rows without a score, which the certificate does "
            "not count: certify with on_error='keep' too."
        )


def thresholds_by_row(fit: Fit, dataset: Dataset) -> NDArray[np.float64]:
    """The threshold of each row's stratum, `float64 [N]`; -inf where none of it is kept.

    Raises:
        SAFTInputError: the column is missing, or holds a value that has no threshold.
    """
    values = _column(dataset, "dataset", str(fit.stratify_by))
    if unknown := sorted(set(values) - fit.thresholds.keys()):
        raise SAFTInputError(
            f"{len(unknown)} value(s) of column {fit.stratify_by!r} have no threshold ({few(unknown)}): the scorer "
            f"has one for each of {few(sorted(fit.thresholds))}. Give `threshold`, or certify these rows."
        )
    found = {name: -np.inf if at is None else at for name, at in fit.thresholds.items()}
    return np.array([found[value] for value in values], dtype=np.float64)


def match_rows(
    identities: NDArray[np.uint8],
    fresh: NDArray[np.uint8],
    strata: tuple[list[str], list[str]] | None = None,
) -> NDArray[np.int64]:
    """Find the rows that labels are of, by their tokens.

    Args:
        identities: digests of the tokens of all rows, `uint8 [N, 16]`.
        fresh: those of the labelled rows, `uint8 [m, 16]`; of equal ones, each takes another of the equal rows.
        strata: a value for each of all rows and for each of the labelled ones, which must be equal too.

    Returns:
        Index of a row for each label, `int64 [m]`, all different.

    Raises:
        SAFTInputError: there are not so many such rows.
    """
    table, wanted = np.unique(fresh, axis=0, return_inverse=True)
    position = find_keys(table, identities)
    everywhere, here = strata or ([""] * len(identities), [""] * len(fresh))
    open_rows: dict[tuple[int, str], list[int]] = defaultdict(list)
    for row in np.flatnonzero(position >= 0)[::-1].tolist():
        open_rows[int(position[row]), everywhere[row]].append(row)
    rows, foreign = np.full(len(fresh), -1, dtype=np.int64), []
    for label, key in enumerate(wanted.ravel().tolist()):
        equal = open_rows[key, here[label]]
        if equal:
            rows[label] = equal.pop()
        else:
            foreign.append(label)
    if foreign:
        where = " with the same value of stratify_by" if strata else ""
        raise SAFTInputError(
            f"{len(foreign)} of {len(fresh)} fresh labels are of no row of the dataset{where}, or of one that has a "
            f"label already (rows {few(foreign)} of fresh_labels): rows are recognised by their tokens. Fresh labels "
            "must be drawn without replacement from the dataset itself, and be rendered as it is."
        )
    return rows


def strata_of(
    dataset: Dataset, fresh: Dataset, column: str, alpha: float | Mapping[str, float]
) -> tuple[list[str], list[str]]:
    """The strata of all rows and of the labelled ones.

    Raises:
        SAFTInputError: one of them lacks the column, or `alpha` has other strata than the dataset.
    """
    everywhere = _column(dataset, "dataset", column)
    if isinstance(alpha, Mapping) and (found := set(everywhere)) != alpha.keys():
        raise SAFTInputError(
            f"`alpha` must have a share for each value of column {column!r} of `dataset`, which are "
            f"{few(sorted(found))}; it has them for {few(sorted(alpha))}."
        )
    return everywhere, _column(fresh, "fresh_labels", column)


def _column(dataset: Dataset, name: str, column: str) -> list[str]:
    return [str(value) for value in values_of(dataset, column, "stratify_by", f"`{name}`")]
