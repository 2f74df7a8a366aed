"""What a filter does besides: what else its score follows, whom it hangs on, and what it costs safe refusals."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.decide import Decisions
from saft_hf.decide.confounds import correlations, kept_share, leverage, text_features
from saft_hf.embed.survey import Survey
from saft_hf.errors import SAFTInputError
from saft_hf.render import Renderer

logger = logging.getLogger(__name__)

SAMPLE = 2000
"""Rows, drawn at random, that are rendered once more for their texts."""


def side_effects(
    renderer: Renderer,
    dataset: Dataset,
    scores: NDArray[np.float32],
    survey: Survey,
    decisions: Decisions,
    energies: bool,
    refusal_column: str | None = None,
) -> dict[str, Any]:
    """Measure them, and log a warning for each that is past its level.

    Args:
        renderer: rows -> tokens.
        dataset: the rows.
        scores: `float32 [N]`, NaN where a row has none.
        survey: what rendering said about each row.
        decisions: what becomes of each row.
        energies: whether scores are energies, as the published ones, or signed.
        refusal_column: the column of booleans that says which rows are safe refusals, or None.

    Returns:
        `confounds`, `leverage` and `kept_groups` (column -> figures), JSON-ready, the same on every process.

    Raises:
        SAFTInputError: `refusal_column` is missing or holds no booleans.
    """
    groups = {}
    if refusal_column is not None:
        kept = np.isin(np.arange(len(decisions)), decisions.train_rows())
        groups[refusal_column] = kept_share(refusal_column, kept, _members(dataset, refusal_column))
    scored = ~np.isnan(scores)
    own = scores.astype(np.float64)
    found = {
        "confounds": _confounds(renderer, dataset, own),
        "leverage": leverage(own if energies else (own - own[scored].mean()) ** 2, survey.keys),
    }
    for warning in [text for part in (*found.values(), *groups.values()) for text in part["warnings"]]:
        logger.warning("%s", warning)
    return {**found, "kept_groups": groups}


def _confounds(renderer: Renderer, dataset: Dataset, scores: NDArray[np.float64]) -> dict[str, Any]:
    scored = np.flatnonzero(~np.isnan(scores))
    rows = np.sort(np.random.default_rng(0).choice(scored, min(SAMPLE, scored.size), replace=False))
    renderings = renderer(dataset.with_format(None)[rows]) if rows.size else []
    answers = [np.concatenate([row.input_ids[a:b] for a, b in row.spans]) for row in renderings]
    texts = [renderer.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    features = {f"response_{name}": values for name, values in text_features(texts).items()}
    features["prompt_tokens"] = np.array([row.spans[-1][0] for row in renderings], dtype=np.float64)
    features["response_tokens"] = np.array([answer.size for answer in answers], dtype=np.float64)
    return correlations(scores[rows], features)


def _members(dataset: Dataset, column: str) -> NDArray[np.bool_]:
    """Which rows a column of booleans marks; null is no mark."""
    if column not in dataset.column_names:
        raise SAFTInputError(f"`refusal_column`={column!r} is no column of the dataset: {dataset.column_names}.")
    values = list(dataset.with_format(None)[column])
    if not all(value is None or value in (0, 1) for value in values):
        raise SAFTInputError(f"`refusal_column`={column!r} must hold booleans, or 0 and 1: convert it first.")
    return np.array([bool(value) for value in values], dtype=np.bool_)
