"""All figures of one model: harmfulness, likelihood, utility, over-refusal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from saft_hf.evaluate.bootstrap import mean_interval
from saft_hf.evaluate.generate import Messages, generate_answers
from saft_hf.evaluate.judges import Judge, agreement, is_refusal
from saft_hf.evaluate.likelihood import answer_likelihoods, pair_margins
from saft_hf.evaluate.pools import HeldOut
from saft_hf.evaluate.utility import bleurt, rouge_l


@dataclass(frozen=True)
class Limits:
    """How much is generated, and how.

    Attributes:
        max_new_tokens: tokens of an answer, at most.
        batch_size: rows at a time.
        max_length: tokens of a row whose likelihood is taken.
        bleurt: folder of a BLEURT checkpoint, or None.
    """

    max_new_tokens: int = 48
    batch_size: int = 16
    max_length: int = 1024
    bleurt: str | None = None


@dataclass(frozen=True)
class Measured:
    """What a model did, prompt by prompt, and what it said.

    Attributes:
        figures: JSON-ready, without any text: `harmful` (judge -> verdicts), `margins`, `rouge_l`, `bleurt`, `nll` and
            `tokens` of the reference answers, `refused`, `seconds`. None stands for a missing value.
        texts: the answers to the harmful, the benign and the safe prompts.
    """

    figures: dict[str, Any]
    texts: dict[str, list[str]]


def measure(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    judges: Sequence[Judge],
    limits: Limits | None = None,
) -> Measured:
    """Ask a model and judge it.

    Args:
        model: a causal language model; left as it was found.
        tokenizer: with a chat template.
        held_out: what it is asked; a list that is empty gives no figures.
        judges: of the answers to the harmful prompts.
        limits: how much is generated.
    """
    limits, begin = limits or Limits(), time.perf_counter()

    def answers(prompts: list[Messages]) -> list[str]:
        return generate_answers(
            model, tokenizer, prompts, max_new_tokens=limits.max_new_tokens, batch_size=limits.batch_size
        )

    asked = [prompt[-1]["content"] for prompt in held_out.harmful]
    told = answers(held_out.harmful)
    helped = answers([row.prompt for row in held_out.benign])
    wary = answers(held_out.safe)
    sizes = {"batch_size": limits.batch_size, "max_length": limits.max_length}
    likely = answer_likelihoods(model, tokenizer, [row.messages for row in held_out.benign], **sizes)
    references = [row.answer for row in held_out.benign]
    figures = {
        "harmful": {judge.name: _plain(judge(asked, told)) for judge in judges},
        "margins": _plain(pair_margins(model, tokenizer, held_out.pairs, **sizes)),
        "rouge_l": [rouge_l(*pair) for pair in zip(references, helped, strict=True)],
        "bleurt": _plain(bleurt(references, helped, limits.bleurt)) if limits.bleurt else [],
        "nll": _plain(-likely.total),
        "tokens": likely.tokens.tolist(),
        "refused": [float(is_refusal(answer)) for answer in wary],
        "seconds": round(time.perf_counter() - begin, 1),
    }
    return Measured(figures, {"harmful": told, "benign": helped, "safe": wary})


def summarise(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and intervals of one model, or of the same arm at several seeds.

    Args:
        figures: of `measure`, one a seed, all on the same prompts.

    Returns:
        JSON-ready: `harmful` (judge -> interval), `agreement` (pair of judges -> `share`, `kappa`), `prefers_unsafe`
        (share of pairs), `margin` (nats a token), `rouge_l`, `bleurt`, `refused`: intervals or None where nothing was
        asked; `perplexity`, `log_perplexity` (nats a token).
    """
    judges = list(figures[0]["harmful"])
    by_judge = {name: verdict_table(figures, name) for name in judges}
    margins = _table(figures, lambda one: one["margins"])
    prefers = np.where(np.isnan(margins), np.nan, margins > 0)
    nll, tokens = _table(figures, lambda one: one["nll"]), _table(figures, lambda one: one["tokens"])
    tokens = np.where(np.isnan(nll), 0, tokens)
    level = float(np.nansum(nll) / tokens.sum()) if tokens.sum() else None
    return {
        "harmful": {name: _interval(table) for name, table in by_judge.items()},
        "agreement": agreement({name: table.ravel() for name, table in by_judge.items()}),
        "prefers_unsafe": _interval(prefers),
        "margin": _interval(margins),
        **{
            name: _interval(_table(figures, lambda one, name=name: one[name]))
            for name in ("rouge_l", "bleurt", "refused")
        },
        "log_perplexity": level,
        "perplexity": None if level is None else float(np.exp(level)),
    }


def verdict_table(figures: Sequence[dict[str, Any]], judge: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What a judge says of each answer, [seeds, prompts]: 1 = harmful, NaN = no verdict."""
    return _table(figures, lambda one: one["harmful"][judge])


def _table(figures: Sequence[dict[str, Any]], pick: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([[np.nan if value is None else value for value in pick(one)] for one in figures], dtype=np.float64)


def _interval(table: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float | None] | None:
    if table.size == 0 or np.isnan(table).all():
        return None
    return asdict(mean_interval(table))


def _plain(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float | None]:
    """JSON has no NaN."""
    return [None if np.isnan(value) else round(float(value), 6) for value in values]
