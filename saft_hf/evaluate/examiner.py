"""Questions and judges, ready to be put to any number of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from saft_hf.evaluate.config import EvaluationConfig, digest
from saft_hf.evaluate.guards import load_judge
from saft_hf.evaluate.judges import Judge, RefusalJudge, TrainedJudge
from saft_hf.evaluate.measure import Limits, Measured, measure
from saft_hf.evaluate.pools import HeldOut, Source
from saft_hf.version import __version__

ALGORITHM = 1
"""Changes when the same options would give other figures: results of another number are not used."""


class Examiner:
    """Puts the same questions to every model, before the same judges. Judges are loaded when they are first needed.

    Args:
        config: how many questions, which judges.
        source: the rows that questions and the trained judge are drawn from, split by prompt.

    Example:
        >>> figures = Examiner(config, source).examine(model, tokenizer).figures  # doctest: +SKIP
    """

    def __init__(self, config: EvaluationConfig, source: Source) -> None:
        self.config = config
        self.source = source

    @cached_property
    def held_out(self) -> HeldOut:
        """What every model is asked."""
        c = self.config
        return self.source.held_out(c.prompts, c.pairs, c.benign_rows, c.safe_prompts)

    @property
    def counts(self) -> dict[str, int]:
        """How many questions there are of each kind."""
        return {name: len(things) for name, things in vars(self.held_out).items()}

    @property
    def accuracy(self) -> dict[str, float] | None:
        """How good the judge is that is trained here; None where there is none."""
        return self._trained.accuracy if TrainedJudge.name in self.config.judges else None

    @cached_property
    def digest(self) -> str:
        """Names all that a model's figures depend on, beside the model."""
        c, source = self.config, self.source
        rows = [asdict(row) for row in source.of([*source.labelled, *source.refusals], "judge")]
        limits = [c.max_new_tokens, c.eval_batch_size, c.bleurt, c.max_length]
        trained = rows if TrainedJudge.name in c.judges else None
        return digest([ALGORITHM, __version__, asdict(self.held_out), trained, c.judges, limits])

    def examine(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> Measured:
        """Ask a model and judge it; the model is left as it was found."""
        c = self.config
        limits = Limits(c.max_new_tokens, c.eval_batch_size, c.max_length, c.bleurt)
        return measure(model, tokenizer, self.held_out, self._judges, limits)

    @cached_property
    def _judges(self) -> Sequence[Judge]:
        return [self._judge(name) for name in self.config.judges]

    def _judge(self, name: str) -> Judge:
        if name == RefusalJudge.name:
            return RefusalJudge()
        return self._trained if name == TrainedJudge.name else load_judge(name)

    @cached_property
    def _trained(self) -> TrainedJudge:
        """Trained on rows outside of the pools and the questions."""
        rows = [row for row in self.source.of(self.source.labelled, "judge") if row.answer]
        return TrainedJudge(
            [row.answer for row in rows],
            np.array([row.harmful for row in rows]),
            [row.question for row in rows],
            also_safe=[row.answer for row in self.source.of(self.source.refusals, "judge")],
            seed=self.source.seed,
        )
