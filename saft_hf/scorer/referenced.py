"""`reference`: a direction and a threshold from a reference set of rows, where the pool has no labels."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.assets import reference_columns
from saft_hf.decide import read_labels, resolve_label_column, threshold_for_share
from saft_hf.embed.extract import Embedded, Extractor
from saft_hf.errors import SAFTUndecidedError
from saft_hf.render import Renderer
from saft_hf.score import PublishedScore
from saft_hf.score.reference import choose_reference, reference_threshold
from saft_hf.scorer.inputs import check_dataset
from saft_hf.scorer.pool import pool_scores, pool_subspace
from saft_hf.scorer.task import Found, Task

_GROUPS = 10
_NOTE = (
    "The direction comes from a reference set, not from labels of this data: how well the reference set is told apart "
    "says nothing about how well this data is."
)


@dataclass(frozen=True)
class Reference:
    """Rows known to be harmful or benign, from elsewhere.

    Attributes:
        rows: of any shape that SFTTrainer takes.
        harmful: `bool [m]`.
        groups: what belongs together, `[m]`: the column `category` where there is one, else ten parts in turn.
    """

    rows: Dataset
    harmful: NDArray[np.bool_]
    groups: NDArray[Any]

    @classmethod
    def of(cls, rows: Dataset | None) -> Reference:
        """Read a reference set; None is the one that ships with the package.

        Args:
            rows: with one label column that has a known name, such as `is_harmful`.

        Raises:
            SAFTInputError: it is no dataset, or its labels cannot be read.
        """
        if rows is None:
            rows = Dataset.from_dict(reference_columns())
        check_dataset(rows)
        column = resolve_label_column(rows.column_names)
        harmful = read_labels(rows[column][:], column)
        groups = rows["category"][:] if "category" in rows.column_names else np.arange(len(rows)) % _GROUPS
        return cls(rows, harmful, np.asarray(groups))


def laid_out_like(pool: Dataset, rows: Dataset, renderer: Renderer) -> Dataset:
    """A reference set of plain `prompt` and `completion` in the form of the pool's rows; any other is left as it is.

    Hidden states tell a chat template from plain text before they tell harm from good: both must be read alike.

    Args:
        pool: rows to score.
        rows: the reference set.
        renderer: renders the pool.

    Returns:
        Dialogues where the pool has dialogues, or tokens and the tokenizer a chat template; prompts and completions
        where the pool has those; else plain text.
    """
    if not {"prompt", "completion"} <= set(rows.column_names) or not isinstance(rows[0]["prompt"], str):
        return rows
    columns, first = set(pool.column_names), pool.with_format(None)[0]
    pairs = list(zip(rows["prompt"][:], rows["completion"][:], strict=True))
    dialogues = bool({"messages", "conversations"} & columns) or isinstance(first.get("prompt"), list)
    if dialogues or ("input_ids" in columns and renderer.tokenizer.chat_template):
        words = ("user", "assistant")
        turns = [[{"role": r, "content": c} for r, c in zip(words, pair, strict=True)] for pair in pairs]
        return Dataset.from_dict({"messages": turns})
    if {"prompt", "completion"} <= columns and renderer.formatting_func is None:
        return rows
    return Dataset.from_dict({renderer.config.text_field: ["\n".join(pair) for pair in pairs]})


def fit_reference(task: Task, reference: Reference, pool: Dataset, extractor: Extractor, embedded: Embedded) -> Found:
    """Learn a direction and an absolute threshold from the reference set; the pool may only raise the threshold.

    Args:
        task: what was asked for; a threshold or a share that was given decides in place of the reference set's.
        reference: the reference set.
        pool: the rows.
        extractor: embeds the reference set as the pool was embedded.
        embedded: the pool.

    Raises:
        SAFTInputError: no row can be used.
    """
    world, features = extractor.world, extractor.features.names
    reader = copy.copy(extractor)
    # What a `formatting_func` makes of the pool's columns says nothing of these.
    reader.renderer = Renderer(extractor.renderer.tokenizer, extractor.renderer.config)
    own = reader.embed(laid_out_like(pool, reference.rows, extractor.renderer))
    states = {feature: own.states(feature) for feature in features}
    usable = np.logical_and.reduce([np.isfinite(vectors).all(axis=1) for vectors in states.values()])
    vectors = {feature: found[usable] for feature, found in states.items()}
    try:
        candidates = [(feature,) for feature in features]
        learned = choose_reference(vectors, candidates, reference.harmful[usable], reference.groups[usable])
    except SAFTUndecidedError as error:  # scores there must be; `fit` says why no decision rests on them
        score = PublishedScore(task.published, pool_subspace(embedded, task.published, 1, world), 1)
        return Found(score, pool_scores(embedded, score), None, "none", undecided=str(error))
    scores = pool_scores(embedded, learned.score)
    decision = reference_threshold(learned, scores)
    figures = {"reference": {**decision.figures, "rows": int(usable.sum()), "raised": decision.raised, "note": _NOTE}}
    if task.threshold is not None:
        return Found(learned.score, scores, float(task.threshold), "given", figures)
    if task.contamination is not None:
        return Found(learned.score, scores, threshold_for_share(scores, task.contamination), "contamination", figures)
    if decision.undecided is not None:
        return Found(
            learned.score, scores, None, "none", figures, decision.undecided, "About 100 labelled rows may help"
        )
    return Found(learned.score, scores, decision.threshold, "reference", figures)
