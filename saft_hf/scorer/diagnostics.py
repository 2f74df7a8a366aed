"""What a filter does besides: what else its score follows, whom it hangs on, and what it costs safe refusals."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from saft_hf.decide import Decisions, flagged
from saft_hf.decide.certify import clopper_pearson
from saft_hf.decide.confounds import correlations, kept_share, leverage, text_features, value_names
from saft_hf.embed import Survey
from saft_hf.errors import SAFTInputError
from saft_hf.render.rows import CHAT_COLUMNS
from saft_hf.scorer.inputs import values_of
from saft_hf.summary import Confounds, FlaggedShare, GroupShare, Leverage, PoolCounts

_FAR = 1.5


def confounds_of(tokenizer: PreTrainedTokenizerBase, survey: Survey, scores: NDArray[np.float32]) -> Confounds:
    """What else a score follows, on the sample of renderings that the survey kept: nothing is rendered again.

    Args:
        tokenizer: turns answers into text again.
        survey: with a sample.
        scores: `float32 [N]`, NaN where a row has none.
    """
    rows = [row for row in survey.sample if not np.isnan(scores[row])]
    renderings = [survey.sample[row] for row in rows]
    answers = [np.concatenate([row.input_ids[a:b] for a, b in row.spans]) for row in renderings]
    texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    features = {f"response_{name}": values for name, values in text_features(texts).items()}
    features["prompt_tokens"] = np.array([row.spans[-1][0] for row in renderings], dtype=np.float64)
    features["response_tokens"] = np.array([answer.size for answer in answers], dtype=np.float64)
    return correlations(scores[rows].astype(np.float64), features)


def leverage_of(scores: NDArray[np.float32], survey: Survey, *, energies: bool) -> Leverage:
    """How much hangs on single rows.

    Args:
        scores: `float32 [N]`, NaN where a row has none.
        survey: tells which rows are copies.
        energies: whether scores are energies, as the published ones, or signed.
    """
    own = scores.astype(np.float64)
    return leverage(own if energies else (own - np.nanmean(own)) ** 2, survey.keys)


def flagged_share(scores: NDArray[np.floating], threshold: float | None, pool: PoolCounts) -> FlaggedShare | None:
    """How many rows are above the threshold, beside the rows of the fit: None without a score or a threshold.

    Two shares are far apart where the exact binomial intervals (99.9 %) of both are, and by a factor of 1.5 at least:
    with many rows a difference that means nothing is no chance either.

    Args:
        scores: `[N]`, NaN where a row has none, -inf where every threshold keeps it.
        threshold: of this run.
        pool: counts of the fit.
    """
    scored = int((~np.isnan(scores)).sum())
    if threshold is None or pool.flagged is None or not (scored and pool.scored):
        return None
    above = int(flagged(scores, threshold).sum())
    now, then = (
        clopper_pearson(above, scored, confidence=0.999),
        clopper_pearson(pool.flagged, pool.scored, confidence=0.999),
    )
    far = now.low > _FAR * then.high or then.low > _FAR * now.high
    warning = (
        f"{now.share:.1%} of {scored} rows are above the threshold {threshold:.6g}, and {then.share:.1%} of the "
        f"{pool.scored} rows that the scorer was fitted on were above its own: no figure of the fit tells what is "
        "removed here. Fit on these rows, or label some of them."
    )
    return FlaggedShare(share=now.share, of_fit=then.share, warnings=(warning,) if far else ())


def group_of(dataset: Dataset, column: str, decisions: Decisions) -> GroupShare:
    """How much is kept of the rows that a column of booleans marks.

    Raises:
        SAFTInputError: the column is missing or holds no booleans.
    """
    values = values_of(dataset, column, "refusal_column")
    if not all(value is None or value in (0, 1) for value in values):
        raise SAFTInputError(f"`refusal_column`={column!r} must hold booleans, or 0 and 1: convert it first.")
    member = np.array([bool(value) for value in values], dtype=np.bool_)
    return kept_share(column, decisions, member)


def groups_by(dataset: Dataset, column: str, text_field: str) -> NDArray[np.object_]:
    """The values that `by` tells apart, a name for each row, [N]. They stand in the summary, which others may see.

    Args:
        dataset: the rows.
        column: that names their groups.
        text_field: the column of plain text.

    Raises:
        SAFTInputError: the column is missing, is the text of the rows, or has values that are no groups.
    """
    names = value_names(column, values_of(dataset, column, "by"))
    if column in (*CHAT_COLUMNS, text_field):
        raise SAFTInputError(
            f"`by`={column!r} is the text of the rows, which a summary may not show: name a column that parts them "
            "into groups, such as a source or a language."
        )
    return names
