"""Questions and judges, ready to be put to any number of models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from saft_hf.evaluate.coherence import is_coherent
from saft_hf.evaluate.config import EvaluationConfig, digest
from saft_hf.evaluate.generate import Messages, generate_answers
from saft_hf.evaluate.guards import load_judge
from saft_hf.evaluate.judges import Judge, JudgeAccuracy, RefusalJudge, TrainedJudge, is_refusal
from saft_hf.evaluate.likelihood import answer_likelihoods, pair_margins
from saft_hf.evaluate.metrics import PromptMetrics
from saft_hf.evaluate.pools import ExperimentRows, HeldOut
from saft_hf.evaluate.probe_judge import ProbeJudge
from saft_hf.evaluate.utility import bleurt, rouge_l
from saft_hf.version import __version__

PROTOCOL = 4
"""Changes when the same options would give other metrics: results of another number are not used."""


class Examiner:
    """Puts the same questions to every model, before the same judges. Judges are loaded when they are first needed.

    Args:
        config: how many questions, which judges.
        rows: the rows that questions and the trained judge are drawn from, split by prompt.

    Examples:
        >>> metrics, texts = Examiner(config, rows).examine(model, tokenizer)  # doctest: +SKIP
    """

    def __init__(self, config: EvaluationConfig, rows: ExperimentRows) -> None:
        self.config = config
        self.rows = rows

    @cached_property
    def held_out(self) -> HeldOut:
        """What every model is asked."""
        c = self.config
        return self.rows.held_out(c.prompts, c.pairs, c.benign_rows, c.safe_prompts)

    @property
    def counts(self) -> dict[str, int]:
        """How many questions there are of each kind."""
        asked = vars(self.held_out)
        return {name: len(questions) for name, questions in (asked | asked["sets"]).items() if name != "sets"}

    @property
    def accuracies(self) -> dict[str, JudgeAccuracy]:
        """Name of a judge that is fitted here -> how good it is."""
        return {judge.name: judge.accuracy for judge in self._judges if isinstance(judge, TrainedJudge | ProbeJudge)}

    @cached_property
    def digest(self) -> str:
        """Names all that a model's metrics depend on, beside the model."""
        c, rows = self.config, self.rows
        judged = [asdict(row) for row in rows.of([*rows.labelled, *rows.refusals], "judge")]
        limits = [c.max_new_tokens, c.eval_batch_size, c.bleurt, c.max_length]
        trained = judged if {TrainedJudge.name, ProbeJudge.name} & set(c.judges) else None
        return digest([PROTOCOL, __version__, asdict(self.held_out), trained, c.judges, limits])

    def examine(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[PromptMetrics, dict[str, list[str]]]:
        """Ask a model and judge it.

        Args:
            model: a causal language model; left as it was found.
            tokenizer: with a chat template.

        Returns:
            What it did, prompt by prompt; and what it said to the harmful, the benign and the safe prompts.
        """
        c, asked, begin = self.config, self.held_out, time.perf_counter()
        kinds = {"harmful": asked.harmful, "benign": [row.prompt for row in asked.benign], "safe": asked.safe}
        texts = {
            kind: generate_answers(
                model, tokenizer, prompts, max_new_tokens=c.max_new_tokens, batch_size=c.eval_batch_size
            )
            for kind, prompts in (kinds | asked.sets).items()
        }
        sizes = {"batch_size": c.eval_batch_size, "max_length": c.max_length}
        likelihood, tokens = answer_likelihoods(model, tokenizer, [row.messages for row in asked.benign], **sizes)
        margins = pair_margins(model, tokenizer, asked.pairs, **sizes)
        references = [row.answer for row in asked.benign]
        coherent = {kind: np.array([is_coherent(answer) for answer in said]) for kind, said in texts.items()}

        def judged(kind: str, prompts: Sequence[Messages]) -> dict[str, list[float | None]]:
            lines, answers = [prompt[-1]["content"] for prompt in prompts], texts[kind]
            return {
                judge.name: _plain(np.where(coherent[kind], judge(lines, answers), np.nan)) for judge in self._judges
            }

        refused = np.array([is_refusal(answer) for answer in texts["safe"]])
        metrics = PromptMetrics(
            harmful=judged("harmful", asked.harmful),
            sets={name: judged(name, prompts) for name, prompts in asked.sets.items()},
            margins=_plain(margins),
            rouge_l=[rouge_l(*pair) for pair in zip(references, texts["benign"], strict=True)],
            bleurt=_plain(bleurt(references, texts["benign"], c.bleurt)) if c.bleurt else [],
            nll=_plain(-likelihood),
            tokens=tokens.tolist(),
            refused=_plain(np.where(coherent["safe"], refused, np.nan)),
            coherent={kind: known.astype(float).tolist() for kind, known in coherent.items()},
            seconds=round(time.perf_counter() - begin, 1),
        )
        return metrics, texts

    @cached_property
    def _judges(self) -> Sequence[Judge]:
        return [self._judge(name) for name in self.config.judges]

    def _judge(self, name: str) -> Judge:
        if name == RefusalJudge.name:
            return RefusalJudge()
        if name not in (TrainedJudge.name, ProbeJudge.name):
            return load_judge(name)
        # Rows outside of the pools and the questions.
        labelled, refusals = (
            [row for row in self.rows.of(rows, "judge") if row.answer]
            for rows in (self.rows.labelled, self.rows.refusals)
        )
        if name == ProbeJudge.name:
            return ProbeJudge(self.config, labelled, refusals, seed=self.rows.seed)
        return TrainedJudge(
            [row.answer for row in labelled],
            np.array([row.harmful for row in labelled]),
            [row.question for row in labelled],
            also_safe=[row.answer for row in refusals],
            seed=self.rows.seed,
        )


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    """JSON has no NaN."""
    return [None if np.isnan(value) else round(float(value), 6) for value in values]
