"""The rows to evaluate on: left alone, or scored, or filtered, as `saft_eval` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from saft_hf.decide import decide
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.result import FilterResult
from saft_hf.scorer import SCORE, STATUS
from saft_hf.train.request import Filtered, Request, quantiles, without_scores
from saft_hf.train.stream import first_rows

ONE_SET = "eval"
"""The name of a set that was given alone, not in a dict."""


def score_eval(request: Request, done: Filtered, world: World) -> None:
    """Score the rows to evaluate on, by the scorer of the training rows; `done` gets what was found.

    A stream is read once, whole, for it; it must end, and fit in memory.

    Raises:
        SAFTInputError: there is no scorer, or no row.
        SAFTUndecidedError: a set is to be filtered, and no row of it would be left.
    """
    mode, given = request.get("eval"), request.eval_dataset
    if mode == "leave" or given is None:
        return
    if done.scorer is None:
        why = done.summary.get("why", "the data's own scores are trusted")
        raise SAFTInputError(
            f"`saft_eval={mode!r}` needs a scorer, and there is none: {why}. Give labels, a scorer or a share; or "
            "leave `saft_eval` out."
        )
    sets = dict(given) if isinstance(given, Mapping) else {ONE_SET: given}
    for name, rows in sets.items():
        if not isinstance(rows, Dataset | IterableDataset):
            continue  # for SFTTrainer to refuse
        result = done.eval_results[name] = _score(rows, name, done, request, world)
        if mode == "filter":
            sets[name] = _kept(rows, name, result)
    done.summary["eval"] = {name: _figures(result, mode) for name, result in done.eval_results.items()}
    form: Any = type(given)
    done.eval_dataset = form(sets) if isinstance(given, Mapping) else sets[ONE_SET]


def _score(rows: Any, name: str, done: Filtered, request: Request, world: World) -> FilterResult:
    assert done.scorer is not None  # noqa: S101 - checked before
    if isinstance(rows, IterableDataset):
        rows = first_rows(rows, None, world, f"eval_dataset ({name})")
    scored = done.scorer.score_dataset(rows)
    scores, statuses = np.asarray(scored[SCORE][:], dtype=np.float32), list(scored[STATUS])
    # The threshold of the training rows, which a certificate may have lowered.
    decisions = decide(scores, statuses, done.summary["threshold"], on_error=request.get("on_error"))
    return FilterResult(without_scores(rows), scores, statuses, decisions, {})


def _kept(rows: Any, name: str, result: FilterResult) -> Any:
    kept = result.train_rows()
    if len(kept) == 0:
        raise SAFTUndecidedError(
            f"no row of `eval_dataset` ({name}) would be left: {result.decisions.reason_counts()}. Score it without "
            "filtering (`saft_eval='score'`)."
        )
    return kept.to_iterable_dataset() if isinstance(rows, IterableDataset) else kept


def _figures(result: FilterResult, mode: str) -> dict[str, Any]:
    return {"filtered": mode == "filter", **result.summary, "score_quantiles": quantiles(result.scores)}
