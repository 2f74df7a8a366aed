"""What fresh labels certify about the rows that are trained on, and which rows these are then."""

from __future__ import annotations

import logging
from dataclasses import replace

from datasets import Dataset, IterableDataset

from saft_hf.decide import OnError
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.result import FilterResult
from saft_hf.scorer import SAFTScorer
from saft_hf.train.request import Request

logger = logging.getLogger(__name__)


def check_certificate(request: Request) -> None:
    """Refuse what cannot be certified, before anything is loaded.

    Raises:
        SAFTInputError: labels without a share to certify or the other way round, a stream, or scores that are trusted.
    """
    fresh, alpha = request.fresh_labels, request.get("alpha")
    if (fresh is None) != (alpha is None):
        raise SAFTInputError(
            "`saft_fresh_labels` and `saft_alpha` go together: labels certify that at most that share of the rows is "
            f"harmful. Found `saft_alpha`={alpha}, fresh labels: {'none' if fresh is None else 'given'}."
        )
    if fresh is None:
        return
    if isinstance(request.dataset, IterableDataset) or request.get("trust_scores"):
        raise SAFTInputError(
            "`saft_fresh_labels` certify a dataset whose rows are scored here: not a stream, and not scores that are "
            "trusted (`saft_trust_scores`)."
        )


def certify(request: Request, scorer: SAFTScorer, rows: Dataset, result: FilterResult) -> FilterResult:
    """Keep, of the rows that the scorer keeps, the largest set that fresh labels certify.

    The share is a ceiling: no row that the scorer removes comes back, even where more could be certified. The sets that
    were tested are certified together, so the largest one within the scorer's threshold is certified too. Where that is
    below all of them, the scorer's rows stay, and the bound on them is what the labels say.

    Args:
        request: with `fresh_labels`.
        scorer: fitted.
        rows: that were filtered.
        result: what the scorer keeps and removes.

    Returns:
        The result at the certified threshold; its summary has the certificate.

    Raises:
        SAFTInputError: the labels are not of rows of the dataset, or were used for fitting.
        SAFTUndecidedError: nothing can be certified, and `saft_on_undecided` is not `keep`.
    """
    on_error = request.get("on_error")
    certificate = scorer.certify(
        rows,
        request.fresh_labels,
        alpha=request.get("alpha"),
        delta=request.get("delta"),
        label_column=request.get("label_column"),
        harmful_value=request.get("harmful_value"),
        on_error="keep" if on_error == "keep" else "exclude",
    )
    result.summary["certificate"] = {**certificate.as_dict(), "says": certificate.says()}
    own = result.summary["threshold"]
    if certificate.certified is None:
        if request.get("on_undecided") != "keep":
            raise SAFTUndecidedError(
                f"{certificate.says()} Label more rows; or train on the rows that the scorer keeps, uncertified, with "
                "`saft_on_undecided='keep'`."
            )
        logger.warning("Nothing is certified about the rows that are trained on. %s", certificate.says())
        return result
    passed = [step.threshold for step in certificate.steps if step.p_value <= certificate.delta]
    within = [threshold for threshold in passed if own is None or threshold <= own]
    told = result.summary["certificate"]
    told["trained_on"] = bool(within)
    if not within:
        told["says"] = f"The rows that are trained on are no certified set. {told['says']}"
        logger.warning("Nothing is certified about the rows that are trained on. %s", certificate.says())
        return result
    # What is said is about the set that is trained on, not about a larger one that was certified too.
    steps = tuple(step for step in certificate.steps if step.threshold <= max(within))
    told["says"] = replace(certificate, steps=steps).says()
    return _at(max(within), scorer, rows, result, on_error)


def _at(threshold: float, scorer: SAFTScorer, rows: Dataset, result: FilterResult, on_error: OnError) -> FilterResult:
    """The same rows, decided by another threshold; people's labels hold, also where nothing was decided."""
    fitted = scorer.fitted_
    assert fitted is not None  # noqa: S101 - it has scored the rows
    scorer.fitted_ = replace(fitted, threshold=float(threshold), undecided=None)
    try:
        found = scorer.filter(rows, on_error=on_error, on_undecided="keep")
    finally:
        scorer.fitted_ = fitted
    summary = {**result.summary, "threshold": threshold, "threshold_from": "certificate", "undecided": None}
    return FilterResult(rows, found.scores, found.statuses, found.decisions, summary)
