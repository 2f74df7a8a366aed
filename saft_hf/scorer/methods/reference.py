"""`reference`: a direction and a threshold from a reference set of rows, where the pool has no labels."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.assets import reference_columns
from saft_hf.embed import finite_rows
from saft_hf.errors import SAFTError, SAFTUndecidedError
from saft_hf.render import Renderer
from saft_hf.score import PublishedScore
from saft_hf.score.direction import auroc
from saft_hf.score.reference import ReferenceScore, choose_reference, reference_threshold
from saft_hf.scorer.methods.base import FitSpec, Method, MethodFit, cut_without_labels
from saft_hf.scorer.pool import Labelled, Pool
from saft_hf.scorer.reference_rows import ReferenceRows, read_reference

logger = logging.getLogger(__name__)

_GROUPS = 10
_SEEN = 0.62
"""AUROC of the reference set on its own rows below which it says nothing: three standard errors above 0.5."""


class ReferenceSet(Method):
    """An absolute threshold; the pool may only raise it, or show that no cut can be trusted."""

    name = "reference"
    uses_reference = True
    uses_aim = False
    sources = ("reference",)

    def readouts(self, boundary: bool) -> tuple[str, ...]:
        """`response_start`: how answers are written differs more between sources than how requests are."""
        return super().readouts(boundary)[:1]

    def fit(self, spec: FitSpec, pool: Pool, labelled: Labelled | None) -> MethodFit:
        """Learn from the reference set; a threshold or a share that was given decides in place of its threshold."""
        try:
            learned = learn(spec.reference, pool)
        except SAFTUndecidedError as error:  # scores there must be; `fit` says why no decision rests on them
            feature = pool.features.names[0]
            score = PublishedScore(feature, pool.subspace(feature, 1), 1)
            return MethodFit(score=score, scores=pool.scores(score), undecided=str(error))
        scores = pool.scores(learned.score)
        decision = reference_threshold(learned, scores)
        answer = MethodFit(score=learned.score, scores=scores, reference=decision.metrics)
        if (given := cut_without_labels(spec, scores)) is not None:
            return replace(answer, threshold=given.threshold, threshold_from=given.threshold_from)
        if decision.undecided is not None:
            return replace(answer, undecided=decision.undecided, advice="About 100 labelled rows may help")
        return replace(answer, threshold=decision.threshold, threshold_from="reference")


def learn(rows: ReferenceRows | None, pool: Pool) -> ReferenceScore:
    """What a reference set teaches, read as the pool was read.

    Args:
        rows: the reference set; None for the one that ships with the package.
        pool: the embedded rows.

    Raises:
        SAFTInputError: the set cannot be read.
        SAFTUndecidedError: it has too few rows, or its rows cannot be told apart.
    """
    if rows is None:
        read = read_reference(Dataset.from_dict(reference_columns()), pool.world)
        assert isinstance(read, ReferenceRows)  # noqa: S101 - rows are no saved scorer
        rows = read
    # What a `formatting_func` makes of the pool's columns says nothing of these.
    renderer = Renderer(pool.renderer.tokenizer, pool.renderer.config)
    # The start of the response alone, see `ReferenceSet.readouts`; the first readout of plain text.
    first = pool.features.readouts[0]
    features = [name for name in pool.features.names if name.endswith(f".{first}")]
    parts = [pool.embed_others(laid_out_like(pool.dataset, part, pool.renderer), renderer) for part in rows.parts]
    states = {feature: np.concatenate([part.states(feature) for part in parts]) for feature in features}
    usable = finite_rows(states)
    vectors = {feature: found[usable] for feature, found in states.items()}
    candidates = [(feature,) for feature in features]
    groups = np.concatenate([_groups(part) for part in rows.parts])
    return choose_reference(vectors, candidates, np.concatenate(rows.harmful)[usable], groups[usable])


def _groups(rows: Dataset) -> NDArray[np.str_]:
    """What belongs together: the column `category` where there is one, else ten parts in turn."""
    parts = rows["category"][:] if "category" in rows.column_names else range(len(rows))
    return np.array([each % _GROUPS if isinstance(each, int) else each for each in parts], dtype=np.str_)


def agreement(pool: Pool, labelled: Labelled) -> float | None:
    """AUROC of the built-in reference set's score on labelled rows: far below 0.5 where they are the wrong way round.

    Returns:
        The AUROC; None where the model does not tell the reference rows apart, or the labels are of one class.
    """
    learned = None
    # What is no error of ours on one process is one of ours on the others: none of them may go on alone.
    with pool.world.sync_errors("comparing labels with the reference set"):
        try:
            learned = learn(None, pool)
        except SAFTError as error:  # a check beside the fit, which can do without
            logger.info("The labels are not compared with the reference set: %s.", error)
    if learned is None:
        return None
    score = learned.score
    values = labelled.compute(score.features, lambda vectors: score(vectors)[:, None], 1)[:, 0]
    harmful = labelled.harmful[~np.isnan(values)]
    if learned.auroc < _SEEN or harmful.all() or not harmful.any():
        return None
    return float(auroc(values[~np.isnan(values)].astype(np.float64), harmful))


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
    if not {"prompt", "completion"} <= set(rows.column_names) or not isinstance(rows["prompt"][0], str):
        return rows
    columns, plain = set(pool.column_names), pool.with_format(None)
    pairs = list(zip(rows["prompt"][:], rows["completion"][:], strict=True))
    dialogues = bool({"messages", "conversations"} & columns) or (
        "prompt" in columns and isinstance(plain["prompt"][0], list)
    )
    if dialogues or ("input_ids" in columns and renderer.tokenizer.chat_template):
        words = ("user", "assistant")
        turns = [[{"role": r, "content": c} for r, c in zip(words, pair, strict=True)] for pair in pairs]
        return Dataset.from_dict({"messages": turns})
    if {"prompt", "completion"} <= columns and renderer.formatting_func is None:
        return rows
    return Dataset.from_dict({renderer.config.text_field: ["\n".join(pair) for pair in pairs]})
