"""`reference`: a score and a threshold from labelled rows of other sources, where the pool has no labels."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.assets import pairs, reference_columns
from saft_hf.embed import finite_rows, rows_digest
from saft_hf.errors import SAFTError, SAFTInputError, SAFTUndecidedError
from saft_hf.render import Renderer
from saft_hf.score import LinearScore, PublishedScore
from saft_hf.score.direction import auroc
from saft_hf.score.mixture import FPR
from saft_hf.score.probe import ROWS
from saft_hf.scorer.inputs import placed
from saft_hf.scorer.methods.base import FitSpec, Method, MethodFit, cut_without_labels
from saft_hf.scorer.pool import Labelled, Pool
from saft_hf.scorer.probing import PoolFit, Reference, apply_probe, learn_probe
from saft_hf.scorer.reference_rows import ReferenceRows
from saft_hf.summary import SourceInfo

logger = logging.getLogger(__name__)

_GROUPS = 10
_SEEN = 0.62
"""AUROC of the built-in requests among themselves below which they say nothing: three standard errors above 0.5."""


class ReferenceSet(Method):
    """A probe fixed before anybody looked at the pool, which explains it as a mixture of the reference's sources."""

    name = "reference"
    uses_reference = True
    uses_aim = False
    sources = ("reference",)

    def fit(self, spec: FitSpec, pool: Pool, labelled: Labelled | None) -> MethodFit:
        """Learn from the reference set; a threshold or a share that was given decides in place of the mixture."""
        try:
            learned = learn(spec.reference, pool)
        except SAFTUndecidedError as error:  # scores there must be; `fit` says why no decision rests on them
            feature = pool.features.names[0]
            score = PublishedScore(feature, pool.subspace(feature, 1), 1)
            return MethodFit(score=score, scores=pool.scores(score), undecided=str(error))
        fpr = FPR if spec.aim is None or spec.aim.value is None else spec.aim.value
        found, scores = explained(learned, pool, fpr)
        answer = MethodFit(
            score=learned.probe.score,
            scores=scores,
            threshold=found.threshold,
            threshold_from="reference",
            undecided=found.undecided,
            probe=learned.probe,
            posterior=found.posterior,
            probabilities=found.probabilities,
            probe_metrics=learned.metrics,
            mixture=found.metrics,
            aim=None if spec.aim is None else str(spec.aim),
        )
        if (given := cut_without_labels(spec, placed(scores, found.probabilities))) is not None:
            if found.undecided is not None:  # what the pool was said to be made of is not to be shown
                densities = learned.probe.densities
                likely = densities.posterior[densities.bins(scores)].astype(np.float32)
                likely[np.isnan(found.probabilities)] = np.nan
                answer = replace(answer, mixture=None, posterior=None, probabilities=likely)
            return replace(answer, threshold=given.threshold, threshold_from=given.threshold_from, undecided=None)
        if answer.undecided is not None:
            return replace(answer, threshold=None, threshold_from="none", advice="About 100 labelled rows may help")
        return answer


def explained(reference: Reference, pool: Pool, fpr: float) -> tuple[PoolFit, NDArray[np.float32]]:
    """What a probe says of a pool, and its scores. Collective."""
    probe = reference.probe
    read = pool.compute(
        probe.whitening.features,
        lambda vectors: np.stack([probe.score(vectors), probe.whitening.distance(vectors)], axis=1),
        2,
    )
    scores = np.ascontiguousarray(read[:, 0])
    found = pool.world.on_main(
        "explaining the pool", lambda: apply_probe(probe, scores, read[:, 1] > np.float32(probe.limit), fpr)
    )
    return found, scores


def learn(reference: ReferenceRows | Reference | None, pool: Pool) -> Reference:
    """What a reference set teaches, read as the pool was read.

    Args:
        reference: its rows, or a probe that is fitted already; None for the set that ships with the package.
        pool: the embedded rows.

    Raises:
        SAFTInputError: the probe reads what the pool was not read at.
        SAFTUndecidedError: too few rows can be read as the pool is.
    """
    if isinstance(reference, Reference):
        if missing := [name for name in reference.probe.whitening.features if name not in pool.features.names]:
            raise SAFTInputError(
                f"the fitted `reference` reads {missing[0]}, and the pool was read at {', '.join(pool.features.names)}:"
                " give `layer` and `readout` as they were when it was fitted, or leave them out. For a pool of plain "
                "text fit the reference with `readout='response_mean'`."
            )
        return reference
    lay_out = partial(laid_out_like, pool.dataset, renderer=pool.renderer)
    return learn_probe(with_built_in(reference), pool.reader, lay_out, pool.embedded)


def with_built_in(reference: ReferenceRows | None) -> ReferenceRows:
    """A reference with the built-in rows behind its own: the harmless ones, or all where its own are too few.

    Args:
        reference: that of the user; None where there is none.
    """
    sources, parts, labels = _built_in()
    own = reference or ReferenceRows((), (), ())
    harmful = np.concatenate([*own.harmful, np.empty(0, dtype=np.bool_)])
    few = bool(min(harmful.sum(), (~harmful).sum()) < ROWS)
    if not few:
        parts = [part.select(np.flatnonzero(~bad)) for part, bad in zip(parts, labels, strict=True)]
        labels = [bad[~bad] for bad in labels]
    infos = [
        SourceInfo(
            name=name,
            digest=rows_digest(part),
            rows=len(part),
            harmful=int(bad.sum()),
            benign=int((~bad).sum()),
        )
        for name, part, bad in zip(sources, parts, labels, strict=True)
    ]
    return ReferenceRows((*own.sources, *infos), (*own.parts, *parts), (*own.harmful, *labels), len(own.parts), few)


def _built_in() -> tuple[list[str], list[Dataset], list[NDArray[np.bool_]]]:
    """Names, rows and labels of the sources that ship with the package."""
    records = pairs()
    answers = [row for p in records for row in ((p.request, p.complies, True), (p.request, p.declines, False))]
    twins = [(pair.twin, pair.twin_answer, False) for pair in records]
    parts = [_requests(), _labelled(answers), _labelled(twins)]
    names = ["built-in requests", "built-in answers", "built-in twins"]
    return names, [rows for rows, _ in parts], [harmful for _, harmful in parts]


def _requests() -> tuple[Dataset, NDArray[np.bool_]]:
    """The built-in requests of both kinds, and which are harmful."""
    columns = reference_columns()
    return _labelled(list(zip(columns["prompt"], columns["completion"], columns["is_harmful"], strict=True)))


def _labelled(rows: list[tuple[str, str, bool]]) -> tuple[Dataset, NDArray[np.bool_]]:
    prompts, completions, harmful = zip(*rows, strict=True)
    return Dataset.from_dict({"prompt": prompts, "completion": completions}), np.array(harmful, dtype=np.bool_)


def agreement(pool: Pool, labelled: Labelled) -> float | None:
    """AUROC of the built-in requests' direction on labelled rows: far below 0.5 where they are the wrong way round.

    Returns:
        The AUROC; None where the model does not tell the requests apart, or the labels are of one class.
    """
    found: tuple[LinearScore, bool] | None = None
    # What is no error of ours on one process is one of ours on the others: none of them may go on alone.
    with pool.world.sync_errors("comparing labels with the built-in rows"):
        try:
            found = _plain_direction(pool)
        except SAFTError as error:  # a check beside the fit, which can do without
            logger.info("The labels are not compared with the built-in rows: %s.", error)
    if found is None:
        return None
    score, tells = found
    values = labelled.scores(score)
    harmful = labelled.harmful[~np.isnan(values)]
    if not tells or harmful.all() or not harmful.any():
        return None
    return float(auroc(values[~np.isnan(values)].astype(np.float64), harmful))


def _plain_direction(pool: Pool) -> tuple[LinearScore, bool] | None:
    """The difference of the built-in requests' class means as a score, and whether it parts them, out of fold.

    None where too few of them can be read.
    """
    feature = pool.features.names[0]
    requests, labels = _requests()
    vectors = pool.reader.embed(laid_out_like(pool.dataset, requests, pool.renderer)).states(feature)
    usable = finite_rows({feature: vectors})
    rows, harmful = vectors[usable].astype(np.float64), labels[usable]
    group = np.flatnonzero(usable) % _GROUPS
    counts = [int((bad & (group != at)).sum()) for bad in (harmful, ~harmful) for at in range(_GROUPS)]
    if min(counts) < 1:
        return None

    def difference(own: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.asarray(rows[own & harmful].mean(axis=0) - rows[own & ~harmful].mean(axis=0))

    unseen = np.empty(len(rows))
    for at in range(_GROUPS):
        unseen[group == at] = rows[group == at] @ difference(group != at)
    direction = difference(group >= 0)[None]
    return LinearScore((feature,), np.zeros_like(direction), direction), bool(auroc(unseen, harmful) >= _SEEN)


def as_dialogues(rows: Dataset, renderer: Renderer) -> Dataset:
    """Plain `prompt` and `completion` as dialogues, where the tokenizer has a chat template; other rows as they are."""
    turns = _turns(rows) if renderer.tokenizer.chat_template else None
    return rows if turns is None else Dataset.from_dict({"messages": turns})


def laid_out_like(pool: Dataset, rows: Dataset, renderer: Renderer) -> Dataset:
    """Reference rows of text in the form of the pool's rows.

    Hidden states tell a chat template from plain text before they tell harm from good: both must be read alike.

    Args:
        pool: rows to score.
        rows: the reference set.
        renderer: renders the pool.

    Returns:
        Dialogues where the pool has dialogues, or tokens and the tokenizer a chat template; prompts and completions
        where the pool has those; else plain text. Rows that are neither dialogues nor plain `prompt` and `completion`
        are left as they are.
    """
    turns = _turns(rows)
    if turns is None:
        return rows
    columns, plain = set(pool.column_names), pool.with_format(None)
    dialogues = bool({"messages", "conversations"} & columns) or (
        "prompt" in columns and isinstance(plain["prompt"][0], list)
    )
    if dialogues or ("input_ids" in columns and renderer.tokenizer.chat_template):
        return Dataset.from_dict({"messages": turns})
    texts = [[turn["content"] for turn in row] for row in turns]
    if {"prompt", "completion"} <= columns and renderer.formatting_func is None:
        pairs = [("\n".join(text[:-1]), text[-1]) for text in texts]
        return Dataset.from_dict({"prompt": [p for p, _ in pairs], "completion": [c for _, c in pairs]})
    return Dataset.from_dict({renderer.config.text_field: ["\n".join(text) for text in texts]})


def _turns(rows: Dataset) -> list[list[dict[str, str]]] | None:
    """The rows as dialogues of text; None where they are of another shape, such as tokens or with tools."""
    plain = rows.with_format(None)
    if {"prompt", "completion"} <= set(rows.column_names) and isinstance(plain["prompt"][0], str):
        pairs = zip(plain["prompt"][:], plain["completion"][:], strict=True)
        return [[{"role": "user", "content": p}, {"role": "assistant", "content": c}] for p, c in pairs]
    if "messages" not in rows.column_names or "tools" in rows.column_names:
        return None
    found = plain["messages"][:]
    text = all(
        row and all(set(turn) >= {"role", "content"} and isinstance(turn["content"], str) for turn in row)
        for row in found
    )
    return found if text else None
