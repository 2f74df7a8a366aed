"""From the trainer's arguments to the rows that it trains on."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, IterableDataset
from torch import nn

from saft_hf.decide import decide, near_threshold, threshold_for_share
from saft_hf.distributed import World, describe
from saft_hf.embed.architecture import describe_model
from saft_hf.errors import SAFTError, SAFTInputError, SAFTUndecidedError
from saft_hf.result import FilterResult
from saft_hf.scorer import SCORE, STATUS, SAFTScorer
from saft_hf.scorer.artifact import load_artifact
from saft_hf.scorer.hub import fetched
from saft_hf.train.certifying import certify, check_certificate
from saft_hf.train.config import setting
from saft_hf.train.evaluating import score_eval
from saft_hf.train.inputs import loading_options, model_name, render_config, training_tokenizer, warn_of_added_tokens
from saft_hf.train.request import Filtered, Request, quantiles, without_scores
from saft_hf.train.stream import BATCH_ROWS, StreamFilter, first_rows

logger = logging.getLogger(__name__)

STREAM_FIT_ROWS = 1000
_IMAGES = "the rows have images, and SAFT scores text only"

_OF_THE_SCORER = ("layer", "readout", "method", "k", "threshold", "contamination")
_OF_THE_FIT = ("aim", "fit_rows")


def filter_rows(request: Request, world: World) -> Filtered:
    """Filter the rows that a trainer was given. Every process calls it, and gets the same rows.

    Where nothing was given to decide by and the rows cannot be scored, training goes on with all of them.

    Raises:
        SAFTInputError: data, labels or arguments are not what they must be, or do not go together.
        SAFTUndecidedError: no decision can honestly be taken.
    """
    begin = time.perf_counter()
    check_certificate(request)
    done = _unfiltered(request, _IMAGES) if _has_images(request) else _filtered(request, world)
    done.eval_dataset = request.eval_dataset
    score_eval(request, done, world)
    done.summary["saft_seconds"] = round(time.perf_counter() - begin, 3)
    return done


def _filtered(request: Request, world: World) -> Filtered:
    if request.decides or request.get("on_undecided") == "raise":
        return _by_scores(request, world)
    try:
        return _by_scores(request, world)
    except Exception as error:  # nothing was asked for: SFTTrainer gets what it was given, and we say what is wrong
        logger.debug("The rows could not be scored.", exc_info=True)
        return _unfiltered(request, f"the rows could not be scored: {_public(error, request.model)}")


def _by_scores(request: Request, world: World) -> Filtered:
    check_request(request)
    if request.get("trust_scores"):
        return _by_given_scores(request)
    return _stream(request, world) if isinstance(request.dataset, IterableDataset) else _dataset(request, world)


def _unfiltered(request: Request, why: str) -> Filtered:
    return Filtered(request.dataset, {"filtered": False, "why": why})


def _public(error: Exception, model: Any) -> str:
    """What a summary, which may be published, says of an error: only our own words, and no folder of this machine."""
    if not isinstance(error, SAFTError):
        return type(error).__name__
    name = model_name(model)
    return describe(error) if name is None else describe(error).replace(name, "the model")


def _has_images(request: Request) -> bool:
    """Whether the rows have images and may be trained on unfiltered.

    Raises:
        SAFTInputError: they have, and something was given to filter them by.
    """
    columns = request.dataset.column_names or list(next(iter(request.dataset), {}))
    if not {"image", "images"} & set(columns):
        return False
    if request.keeps_on_undecided:
        return True
    raise SAFTInputError(
        f"`train_dataset` has images (columns {columns}): SAFT scores text only. Train on every row with "
        "`saft_on_undecided='keep'`, or turn the filter off with `saft_enabled=False`."
    )


def check_request(request: Request) -> None:
    """Refuse what cannot be filtered, before anything is loaded.

    Raises:
        SAFTInputError: worker processes for a stream, or options that contradict each other.
    """
    workers = setting(request.args, "dataloader_num_workers")
    if isinstance(request.dataset, IterableDataset) and workers:
        raise SAFTInputError(
            f"`dataloader_num_workers`={workers}: a stream is filtered by a model in this process, which worker "
            "processes do not have. Set it to 0, or filter first (`saft-hf filter`)."
        )
    given = [name for name in (*_OF_THE_SCORER, *_OF_THE_FIT) if request.get(name) is not None]
    if request.scorer is not None and given:
        raise SAFTInputError(
            f"`saft_{given[0]}` and `saft_scorer` do not go together: the scorer brings its own. Give one of them."
        )


# -- datasets ----------------------------------------------------------------------------------------------------------


def _dataset(request: Request, world: World) -> Filtered:
    rows = without_scores(request.dataset)
    scorer = _fitted(request, rows, request.model, world)
    result = scorer.filter(rows, on_error=request.get("on_error"), on_undecided=_on_undecided(request))
    if request.fresh_labels is not None:
        result = certify(request, scorer, rows, result)
    return _of_result(result, scorer, result.summary["threshold"], rows)


def _on_undecided(request: Request) -> Literal["raise", "keep"] | None:
    """What was asked for; None where a scorer that was fitted before knows it."""
    return "keep" if request.keeps_on_undecided else request.get("on_undecided")


def _of_result(result: FilterResult, scorer: SAFTScorer | None, threshold: float | None, rows: Dataset) -> Filtered:
    kept = result.train_rows()
    if len(kept) == 0:
        raise SAFTUndecidedError(
            f"no row is left to train on: {result.decisions.reason_counts()}. Check the threshold and the statuses."
        )
    scores = result.scores[~np.isnan(result.scores)]
    result.summary |= {
        "filtered": threshold is not None,
        "threshold": threshold,
        "near_threshold": None if threshold is None else near_threshold(scores, threshold),
        "score_quantiles": quantiles(scores),
    }
    return Filtered(rows if len(kept) == len(rows) else kept, result.summary, result, scorer)


def _by_given_scores(request: Request) -> Filtered:
    if request.labelled is not None:
        raise SAFTInputError(
            "`saft_trust_scores=True` and `saft_labelled` do not go together: labels are not used with scores that are "
            "only trusted. Give `saft_threshold`, `saft_contamination` or `saft_scorer`."
        )
    scorer = request.scorer if isinstance(request.scorer, SAFTScorer) or request.scorer is None else None
    if request.scorer is not None and scorer is None:
        scorer = _load(request, None)
    columns = request.dataset.column_names or []
    if missing := [name for name in (SCORE, STATUS) if name not in columns]:
        raise SAFTInputError(
            f"`saft_trust_scores=True`, but `train_dataset` has no column {missing[0]!r} (found: {columns}). Score it "
            "first (`saft-hf score`, or `dataset.map(scorer, batched=True)`)."
        )
    threshold = request.get("threshold") if scorer is None else scorer.threshold_
    share = request.get("contamination")
    if isinstance(request.dataset, IterableDataset):
        if threshold is None:
            raise SAFTInputError("`saft_trust_scores=True` with a stream needs `saft_threshold` or `saft_scorer`.")
        return _filtered_stream(request, scorer, threshold, lambda batch: batch)
    scores = np.asarray(request.dataset[SCORE][:], dtype=np.float32)
    if threshold is None and share is not None:
        threshold = threshold_for_share(scores, share)
    if threshold is None:
        raise SAFTInputError(
            "`saft_trust_scores=True` needs `saft_threshold`, `saft_contamination` or a fitted `saft_scorer`."
        )
    statuses = list(request.dataset[STATUS])
    decisions = decide(scores, statuses, threshold, on_error=request.get("on_error"))
    rows = without_scores(request.dataset)
    result = FilterResult(rows, scores, statuses, decisions, {"threshold_from": "the data's own scores, trusted"})
    return _of_result(result, scorer, threshold, rows)


# -- streams -----------------------------------------------------------------------------------------------------------


def _stream(request: Request, world: World) -> Filtered:
    fit_rows = request.get("fit_rows") or STREAM_FIT_ROWS
    rows = without_scores(first_rows(request.dataset, fit_rows, world))
    # A model object is about to be trained: scores come from what it is now.
    model = copy.deepcopy(request.model) if isinstance(request.model, nn.Module) else request.model
    scorer = _fitted(request, rows, model, world)
    if scorer.threshold_ is not None:
        return _filtered_stream(request, scorer, scorer.threshold_, scorer)
    if not request.keeps_on_undecided:
        raise SAFTUndecidedError(
            "no row can be removed: the scorer has no threshold. Give labels, `saft_contamination` or "
            "`saft_threshold`; or keep every row with `saft_on_undecided='keep'`."
        )
    return Filtered(request.dataset, {**scorer.summary_, "filtered": False}, scorer=scorer)


def _filtered_stream(request: Request, scorer: SAFTScorer | None, threshold: float, score: Any) -> Filtered:
    kept = StreamFilter(score, threshold, request.get("on_error"))
    rows = request.dataset.filter(kept, batched=True, batch_size=BATCH_ROWS)
    summary = {**(scorer.summary_ if scorer else {}), "filtered": True, "stream": True, "threshold": threshold}
    return Filtered(without_scores(rows), summary, scorer=scorer, stream=kept)


# -- the scorer --------------------------------------------------------------------------------------------------------


def _fitted(request: Request, rows: Dataset, model: Any, world: World) -> SAFTScorer:
    """The scorer that was given, or one that is made for the model; fitted."""
    scorer = request.scorer
    if isinstance(scorer, str | Path):
        scorer = _load(request, model)
    elif scorer is None:
        scorer = _new(request, model, world)
    elif scorer.fitted_ is not None:
        scorer = _reading_as_trained(scorer, request)
    if scorer.fitted_ is None:
        return scorer.fit(
            rows,
            request.labelled,
            label_column=request.get("label_column"),
            harmful_value=request.get("harmful_value"),
            label_sampling=request.get("label_sampling"),
            aim=request.get("aim"),
            fit_rows=request.get("fit_rows"),
            on_undecided=_on_undecided(request) or "raise",
        )
    if request.labelled is not None:
        raise SAFTInputError(
            "`saft_labelled` and a fitted `saft_scorer` do not go together: its threshold is chosen already. Give one "
            "of them, or a `SAFTScorer` that is not fitted."
        )
    return scorer


def _new(request: Request, model: Any, world: World) -> SAFTScorer:
    tokenizer = training_tokenizer(model, request.args, request.processing_class)
    by_name = isinstance(model, str)
    options = loading_options(request.args, request.quantization_config, distributed=world.size > 1) if by_name else {}
    scorer = SAFTScorer(
        model,
        **{name: request.get(name) for name in _OF_THE_SCORER},
        **options,
        cache_dir=request.get("cache_dir"),
        processing_class=tokenizer,
        render=render_config(request.args),
        formatting_func=request.formatting_func,
    )
    known = {name: options[name] for name in ("revision", "trust_remote_code", "token") if name in options}
    warn_of_added_tokens(tokenizer, describe_model(model, **known).vocab_size)
    return scorer


def _load(request: Request, model: Any) -> SAFTScorer:
    """A scorer from its folder; rows are rendered as they are trained on where it reads the model that is trained."""
    assert isinstance(request.scorer, str | Path)  # noqa: S101 - for the type checker
    reads = load_artifact(fetched(request.scorer, token=setting(request.args, "hub_token")))[0].get("model")
    own = reads is None or reads == model_name(request.model)
    scorer = SAFTScorer.from_pretrained(
        request.scorer,
        model=model if own else None,
        cache_dir=request.get("cache_dir"),
        token=setting(request.args, "hub_token"),
        trust_remote_code=setting(request.args, "trust_remote_code"),
    )
    return _set_rendering(scorer, request, own)


def _reading_as_trained(scorer: SAFTScorer, request: Request) -> SAFTScorer:
    """The same for a scorer that was handed over; it stays as it is."""
    twin = copy.copy(scorer)
    twin.model = scorer.model  # a model object does not travel in a copy
    name = model_name(scorer.model)
    own = scorer.model is request.model or (name is not None and name == model_name(request.model))
    return _set_rendering(twin, request, own)


def _set_rendering(scorer: SAFTScorer, request: Request, own: bool) -> SAFTScorer:
    if own:
        scorer.processing_class = training_tokenizer(request.model, request.args, request.processing_class)
    scorer.render = render_config(request.args)
    scorer.formatting_func = request.formatting_func
    return scorer
