"""`reference`: a score and a threshold from labelled rows of other sources, where the pool has no labels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.assets import pairs, reference_columns
from saft_hf.embed import Extractor, finite_rows, rows_digest
from saft_hf.errors import SAFTError, SAFTInputError, SAFTUndecidedError
from saft_hf.render import Renderer
from saft_hf.score import PublishedScore
from saft_hf.score.direction import auroc
from saft_hf.score.mixture import FPR
from saft_hf.score.probe import ROWS
from saft_hf.score.reference import ReferenceScore, choose_reference, reference_threshold
from saft_hf.scorer.methods.base import FitSpec, Method, MethodFit, cut_without_labels
from saft_hf.scorer.pool import Labelled, Pool
from saft_hf.scorer.probing import PoolFit, Reference, apply_probe, learn_probe
from saft_hf.scorer.reference_rows import ReferenceRows
from saft_hf.summary import SourceInfo

logger = logging.getLogger(__name__)

_GROUPS = 10
_SEEN = 0.62
"""AUROC of the reference set on its own rows below which it says nothing: three standard errors above 0.5."""


class ReferenceSet(Method):
    """A score fixed before anybody looked at the pool: a probe, or the direction of a small set.

    With a probe the pool is explained as a mixture of the reference's sources. A set of too few rows for that, such as
    the built-in one, has an absolute threshold; the pool may only raise it, or show that no cut can be trusted.
    """

    name = "reference"
    uses_reference = True
    uses_aim = False
    sources = ("reference",)

    def fit(self, spec: FitSpec, pool: Pool, labelled: Labelled | None) -> MethodFit:
        """Learn from the reference set; a threshold or a share that was given decides in place of its threshold."""
        try:
            learned = learn(spec.reference, pool)
        except SAFTUndecidedError as error:  # scores there must be; `fit` says why no decision rests on them
            feature = pool.features.names[0]
            score = PublishedScore(feature, pool.subspace(feature, 1), 1)
            return MethodFit(score=score, scores=pool.scores(score), undecided=str(error))
        answer = (
            _by_probe(learned, spec, pool) if isinstance(learned, Reference) else _by_direction(learned, spec, pool)
        )
        if (given := cut_without_labels(spec, answer.scores)) is not None:
            return replace(answer, threshold=given.threshold, threshold_from=given.threshold_from, undecided=None)
        if answer.undecided is not None:
            return replace(answer, threshold=None, advice="About 100 labelled rows may help")
        return replace(answer, threshold_from="reference")


def _by_probe(reference: Reference, spec: FitSpec, pool: Pool) -> MethodFit:
    found, scores = explained(reference, pool, FPR if spec.aim is None or spec.aim.value is None else spec.aim.value)
    return MethodFit(
        score=reference.probe.score,
        scores=scores,
        threshold=found.threshold,
        undecided=found.undecided,
        probe=reference.probe,
        posterior=found.posterior,
        probabilities=found.probabilities,
        probe_metrics=reference.metrics,
        mixture=found.metrics,
        aim=None if spec.aim is None else str(spec.aim),
    )


def _by_direction(learned: ReferenceScore, spec: FitSpec, pool: Pool) -> MethodFit:
    if spec.aim is not None:
        raise SAFTInputError(
            f"`aim='{spec.aim}'` without labels needs a probe: give a `reference` of at least {ROWS} rows a class, "
            "or leave it out."
        )
    scores = pool.scores(learned.score)
    decision = reference_threshold(learned, scores)
    return MethodFit(
        score=learned.score,
        scores=scores,
        threshold=decision.threshold,
        undecided=decision.undecided,
        reference=decision.metrics,
    )


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
        "explaining the pool", lambda: apply_probe(reference, scores, read[:, 1] > np.float32(probe.limit), fpr)
    )
    return found, scores


def learn(reference: ReferenceRows | Reference | None, pool: Pool) -> Reference | ReferenceScore:
    """What a reference set teaches, read as the pool was read.

    Args:
        reference: its rows, or a probe that is fitted already; None for the set that ships with the package.
        pool: the embedded rows.

    Raises:
        SAFTInputError: the probe reads what the pool was not read at.
        SAFTUndecidedError: the set has too few rows, or its rows cannot be told apart.
    """
    if isinstance(reference, Reference):
        if missing := [name for name in reference.probe.whitening.features if name not in pool.features.names]:
            raise SAFTInputError(
                f"the fitted `reference` reads {missing[0]}, and the pool was read at {', '.join(pool.features.names)}:"
                " give `layer` and `readout` as they were when it was fitted, or leave them out. For a pool of plain "
                "text fit the reference with `readout='response_mean'`."
            )
        return reference
    extractor = pool.reader
    lay_out = partial(laid_out_like, pool.dataset, renderer=pool.renderer)
    if reference is not None and _are_enough(reference):
        return learn_probe(with_built_in(reference), extractor, lay_out, pool.embedded)
    return _learn_direction(reference or built_in(), extractor, lay_out)


def _are_enough(rows: ReferenceRows) -> bool:
    harmful = np.concatenate(rows.harmful)
    return bool(min(harmful.sum(), (~harmful).sum()) >= ROWS)


def check_rows(rows: ReferenceRows) -> None:
    """Refuse to fit a probe on too few rows.

    Raises:
        SAFTInputError: a class has too few.
    """
    if not _are_enough(rows):
        harmful = np.concatenate(rows.harmful)
        raise SAFTInputError(
            f"`reference`: a probe needs {ROWS} rows of each class; found {harmful.sum()} harmful and "
            f"{(~harmful).sum()} benign ones. With fewer, give them to `SAFTScorer(reference=...)` and fit on a pool."
        )


def _learn_direction(
    rows: ReferenceRows, extractor: Extractor, lay_out: Callable[[Dataset], Dataset]
) -> ReferenceScore:
    read = [extractor.embed(lay_out(part)) for part in rows.parts]
    # The start of the response alone: how answers are written differs more between sources than how requests are. For
    # plain text the first readout.
    first = extractor.features.readouts[0]
    features = [name for name in extractor.features.names if name.endswith(f".{first}")]
    states = {feature: np.concatenate([one.states(feature) for one in read]) for feature in features}
    usable = finite_rows(states)
    groups = np.concatenate([_groups(part) for part in rows.parts])
    harmful = np.concatenate(rows.harmful)
    vectors = {feature: found[usable] for feature, found in states.items()}
    return choose_reference(vectors, [(feature,) for feature in features], harmful[usable], groups[usable])


def _groups(part: Dataset) -> NDArray[Any]:
    """What belongs together: the column `category` where there is one, else ten parts in turn."""
    names = part["category"][:] if "category" in part.column_names else np.arange(len(part)) % _GROUPS
    return np.asarray([str(name) for name in names])


def built_in() -> ReferenceRows:
    """The set that ships with the package."""
    rows = Dataset.from_dict(reference_columns())
    harmful = np.asarray(rows["is_harmful"][:], dtype=np.bool_)
    rows = rows.remove_columns("is_harmful")
    info = SourceInfo(
        name="built-in",
        digest=rows_digest(rows),
        rows=len(rows),
        harmful=int(harmful.sum()),
        benign=int((~harmful).sum()),
    )
    return ReferenceRows((info,), (rows,), (harmful,))


def with_built_in(reference: ReferenceRows) -> ReferenceRows:
    """A reference with the harmless rows of the built-in pairs: safe answers, and requests of every format."""
    rows = [row for pair in pairs() for row in ((pair.request, pair.declines), (pair.twin, pair.twin_answer))]
    benign = Dataset.from_dict({"prompt": [prompt for prompt, _ in rows], "completion": [answer for _, answer in rows]})
    info = SourceInfo(name="built-in", digest=rows_digest(benign), rows=len(rows), harmful=0, benign=len(rows))
    return ReferenceRows(
        (*reference.sources, info),
        (*reference.parts, benign),
        (*reference.harmful, np.zeros(len(rows), dtype=np.bool_)),
    )


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
    assert isinstance(learned, ReferenceScore)  # noqa: S101 - the built-in set is too small for a probe
    score = learned.score
    values = labelled.compute(score.features, lambda vectors: score(vectors)[:, None], 1)[:, 0]
    harmful = labelled.harmful[~np.isnan(values)]
    if learned.auroc < _SEEN or harmful.all() or not harmful.any():
        return None
    return float(auroc(values[~np.isnan(values)].astype(np.float64), harmful))


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
