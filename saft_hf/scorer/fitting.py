"""A pool and labels -> what a scorer learns: embed once, let the method answer, refuse what cannot be told, sum up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.decide import Goal, ThresholdAim, flagged
from saft_hf.decide.certify import clopper_pearson
from saft_hf.embed import Extractor, Features, readouts_of
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.render import READOUTS
from saft_hf.scorer.fit import Fit
from saft_hf.scorer.inputs import check_choice, check_number, placed, why_unread
from saft_hf.scorer.labels import LabelledRows, LabelSet
from saft_hf.scorer.methods import METHODS, FitSpec, Method, MethodFit
from saft_hf.scorer.methods.reference import agreement
from saft_hf.scorer.options import BY_NAME
from saft_hf.scorer.pool import Labelled, Pool
from saft_hf.status import RowStatus
from saft_hf.summary import FitMetrics, LabelCounts, PoolCounts, Provenance
from saft_hf.version import versions

if TYPE_CHECKING:
    from saft_hf.scorer.scorer import SAFTScorer

_KEPT_AT_LEAST = 0.01
"""A threshold that keeps a smaller share of the pool is refused: it "works" only because nothing is trained."""

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


_WHOLE = ("layer", "k")


def choose_method(scorer: SAFTScorer, has_labels: bool, aim: str | None) -> Method:
    """The method of a fit: `auto` with labels and `reference` without, unless one is named.

    Options that no fit can follow are refused, before anything is loaded.

    Raises:
        SAFTInputError: an option has an unknown value, or options do not go together.
    """
    check_choice("method", scorer.method, (None, *METHODS))
    check_choice("readout", scorer.readout, (None, *READOUTS))
    for name in ("threshold", "contamination", *_WHOLE):
        check_number(name, getattr(scorer, name), whole=name in _WHOLE)
    if scorer.contamination is not None and not 0 < scorer.contamination < 1:
        raise SAFTInputError(f"`contamination` must be between 0 and 1, not {scorer.contamination}.")
    method = METHODS[scorer.method or ("auto" if has_labels else "reference")]
    if method.needs_labels and not has_labels:
        raise SAFTInputError(
            f"`method={method.name!r}` learns from labels: give `labelled`, about 100 rows that people labelled."
        )
    if scorer.threshold is not None and scorer.contamination is not None:
        raise SAFTInputError(
            f"`threshold`={scorer.threshold} decides alone, so `contamination`={scorer.contamination} has no use: "
            "leave one out."
        )
    if scorer.k is not None and not method.uses_k:
        raise SAFTInputError(
            f"`k`={scorer.k} belongs to the published score, which `method={method.name!r}` does not use. Leave it "
            "out, or say `method='saft'`."
        )
    if scorer.reference is not None and not method.uses_reference:
        raise SAFTInputError(
            f"`reference` is not used by `method={method.name!r}`: leave it out, or say `method='auto'` (with labels) "
            "or `method='reference'`."
        )
    if aim is None:
        return method
    if scorer.threshold is not None:
        raise SAFTInputError(
            f"`threshold`={scorer.threshold} decides alone, so `aim={aim!r}` has no use: leave one out."
        )
    goal = ThresholdAim.parse(aim)
    if method.name == "reference" and not has_labels and goal.goal is Goal.FPR and goal.confidence is None:
        if scorer.contamination is not None:
            raise SAFTInputError(
                f"`contamination`={scorer.contamination} decides alone, so `aim={aim!r}` has no use: leave one out."
            )
        return method  # the share that a probe may be expected to lose
    if not has_labels:
        raise SAFTInputError(
            f"`aim={aim!r}` chooses a threshold on labels: give `labelled`. Without labels `contamination` or "
            "`threshold` choose it, and with a reference `fpr=0.05`."
        )
    if not method.uses_aim:
        raise SAFTInputError(
            f"`aim={aim!r}` chooses a threshold on labels; that of `method={method.name!r}` comes from the reference "
            "set. Leave one of them out."
        )
    return method


def features_of(scorer: SAFTScorer, method: Method, num_layers: int, boundary: bool) -> Features:
    """What a fit reads in one pass; the first feature is the one of the published score."""
    layers = method.layers(num_layers) if scorer.layer is None else (scorer.layer,)
    readouts = method.readouts(boundary) if scorer.readout is None else (scorer.readout,)
    return Features(layers, readouts, scorer.vector_dtype)


def run(spec: FitSpec, method: Method, extractor: Extractor, dataset: Dataset) -> tuple[MethodFit, Pool, LabelledRows]:
    """Embed the pool and its labelled rows, and let the method answer. Collective.

    Returns:
        What the method answers, the embedded pool, and the labelled rows in digests.

    Raises:
        SAFTInputError: no row can be used, all rows are equal, or the labels cannot serve.
    """
    pool = Pool(extractor, dataset)
    for readout in pool.features.readouts:
        statuses = pool.embedded.survey.status_counts((readout,))
        if statuses[RowStatus.OK] == 0:
            why = why_unread(extractor.renderer, dataset, (readout,))
            raise SAFTInputError(f"no row of the pool can be read at `{readout}`: {dict(statuses)}. {why}")
    labelled = None if spec.labels is None else Labelled(extractor, pool, spec.labels)
    answer = method.fit(spec, pool, labelled)
    undecided = answer.undecided
    if undecided is None and answer.threshold is not None:
        scored = _placed(answer)
        undecided = degenerate(scored, answer.threshold, 0 if labelled is None else int(labelled.harmful.sum()))
    if labelled is None:
        return replace(answer, undecided=undecided), pool, LabelledRows.none()
    return replace(answer, undecided=undecided, reference_auroc=agreement(pool, labelled)), pool, labelled.rows()


def _placed(answer: MethodFit) -> NDArray[np.float64]:
    """Scores of the rows that have one, as thresholds see them."""
    return placed(answer.scores, answer.probabilities)[~np.isnan(answer.scores)]


def degenerate(scores: NDArray[np.floating], threshold: float, harmful: int) -> str | None:
    """Why a threshold must not be used: it removes nearly all, or nothing although labels say that there is harm."""
    removed = int(flagged(scores, threshold).sum())
    if len(scores) - removed <= _KEPT_AT_LEAST * len(scores):
        return f"the threshold {threshold:.6g} removes {removed} of the pool's {len(scores)} scored rows"
    if removed == 0 and harmful:
        return f"the threshold {threshold:.6g} removes no row, although {harmful} labelled rows are harmful"
    return None


def undecided_error(answer: MethodFit, labels: LabelSet | None) -> SAFTUndecidedError:
    """The error for a score that no decision may rest on."""
    advice = answer.advice or f"More labels than {0 if labels is None else len(labels.harmful)} may help"
    if answer.advice is None and answer.threshold_from == "given":
        advice = "Another `threshold` may help"
    return SAFTUndecidedError(
        f"SAFT cannot tell which rows are harmful: {answer.undecided}. Scores can still be taken; no decision is. "
        f"{advice}; so may another `layer` or `readout`, or a `contamination`. `on_undecided='keep'` keeps every row "
        "and records it."
    )


def final_statuses(scores: NDArray[np.float32], statuses: Sequence[RowStatus]) -> list[str]:
    """Statuses after the forward: a row that rendered well may still have a hidden state with NaN or infinity."""
    return [
        (RowStatus.NON_FINITE if status is RowStatus.OK and bad else status).value  # `str` would make a new one each
        for status, bad in zip(statuses, np.isnan(scores).tolist(), strict=True)
    ]


def quantiles(scores: NDArray[np.floating]) -> dict[str, float]:
    """Quantiles of the scores that exist, by name; none where no row has one."""
    scored = scores[~np.isnan(scores)]
    return {str(q): float(np.quantile(scored, q)) for q in _QUANTILES} if len(scored) else {}


def metrics_of(spec: FitSpec, pool: Pool, answer: MethodFit) -> FitMetrics:
    """Counts and figures of a fit. No clock and no path: a scorer is the same bytes in every process."""
    readouts = readouts_of(answer.score.features)
    statuses = pool.embedded.survey.status_counts(readouts)
    scored = _placed(answer)
    unscored = {status: count for status, count in sorted(statuses.items()) if status != RowStatus.OK}
    if lost := statuses[RowStatus.OK] - len(scored):
        unscored[str(RowStatus.NON_FINITE)] = lost
    labels = None
    if (given := spec.labels) is not None:
        labels = LabelCounts(
            rows=len(given.harmful),
            harmful=int(given.harmful.sum()),
            column=given.column,
            uniform=given.uniform,
            reference_auroc=answer.reference_auroc,
        )
    return FitMetrics(
        pool=PoolCounts(
            rows=len(answer.scores),
            scored=len(scored),
            unique=pool.num_unique,
            unscored=unscored,
            flagged=None if answer.threshold is None else int(flagged(scored, answer.threshold).sum()),
        ),
        score_quantiles=quantiles(answer.scores),
        padding_share=round(pool.embedded.plan.padding_share, 4),
        labels=labels,
        # Labels tell the share of the pool only where they were drawn uniformly from it.
        harmful_share=clopper_pearson(labels.harmful, labels.rows) if labels and labels.uniform else None,
        aim=answer.aim,
        contamination=spec.contamination,
        published=answer.published,
        test=answer.test,
        expected=answer.expected,
        probe=answer.probe_metrics,
        mixture=answer.mixture,
        notes=tuple(READOUTS[readout].note for readout in readouts),
    )


def provenance_of(fit: Fit | None, options: Mapping[str, Any]) -> Provenance:
    """What decisions can be made again from, as far as a scorer knows it.

    Args:
        fit: of the scorer; None where there is none.
        options: what was asked for, name -> value; defaults are left out.
    """
    told = {
        name: value if isinstance(value, str | int | float | bool) else str(value)
        for name, value in options.items()
        if name not in BY_NAME or value != BY_NAME[name].default
    }
    made = Provenance(created=datetime.now(UTC).isoformat(timespec="seconds"), options=told, versions=versions())
    if fit is None:
        return made
    return replace(made, model=fit.model, model_revision=fit.revision, model_fingerprint=fit.model_fingerprint)
