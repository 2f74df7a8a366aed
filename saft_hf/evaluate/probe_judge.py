"""A judge that reads answers with the model that was not tuned: the package's own probe, fitted on labelled rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from saft_hf.evaluate.config import EvaluationConfig
from saft_hf.evaluate.judges import JudgeAccuracy, Verdicts, rows_to_test
from saft_hf.evaluate.pools import Dialogue
from saft_hf.scorer import SAFTScorer
from saft_hf.scorer.inputs import SCORE
from saft_hf.scorer.reference_rows import ReferenceSource


class ProbeJudge:
    """The probe of the untuned model, read on a prompt and the answer of any other model.

    Args:
        config: the model, and where its vectors are kept.
        rows: labelled rows, to fit on and to be tested on. Where a class has few, the package's own join them.
        also_safe: further safe rows, such as refusals, to fit on; accuracy is not measured on them.
        seed: of the draw of the prompts that accuracy is measured on.

    Attributes:
        accuracy: on the held-out rows.

    Raises:
        SAFTInputError: one of the two classes is missing, in rows to fit on or held-out ones.
    """

    name = "probe"

    def __init__(
        self, config: EvaluationConfig, rows: Sequence[Dialogue], also_safe: Sequence[Dialogue] = (), *, seed: int = 0
    ) -> None:
        harmful = np.array([row.harmful for row in rows])
        test = rows_to_test([row.question for row in rows], harmful, seed)
        known = Dataset.from_list([{"messages": row.messages, "is_harmful": row.harmful} for row in rows])
        sources = [ReferenceSource(known.select(np.flatnonzero(~test)), name="labelled")]
        if also_safe:
            dataset = Dataset.from_list([{"messages": row.messages} for row in also_safe])
            sources.append(ReferenceSource(dataset, name="refusals", harmful=False))
        self._scorer = SAFTScorer(
            config.model_name_or_path or "",
            revision=config.model_revision,
            dtype=config.dtype,
            max_length=config.max_length,
            cache_dir=config.cache_dir,
        ).fit_reference(sources)
        fit = self._scorer.fit_
        assert fit is not None  # noqa: S101 - it was just fitted
        assert fit.probe is not None  # noqa: S101
        densities = fit.probe.densities
        # The edge that parts rows best which the probe had not seen; each class counts as one.
        good, bad = (densities.counts[densities.harmful == harm].sum(axis=0) for harm in (False, True))
        gap = np.cumsum(good / good.sum() - bad / bad.sum())[:-1]
        self._threshold = float(densities.edges[int(gap.argmax())])
        scores = self._scores(known.select(np.flatnonzero(test)))
        read = ~np.isnan(scores)
        self.accuracy = JudgeAccuracy.of(harmful[test][read], scores[read], self._threshold)

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> Verdicts:
        """Judge answers, each beside its prompt; NaN where there is nothing to read."""
        chats = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        scores = self._scores(Dataset.from_dict({"messages": chats}))
        return np.where(np.isnan(scores), np.nan, scores > self._threshold)

    def _scores(self, dialogues: Dataset) -> Verdicts:
        scored = self._scorer.score_dataset(dialogues.select_columns("messages"))
        return np.asarray(scored[SCORE][:], dtype=np.float64)
