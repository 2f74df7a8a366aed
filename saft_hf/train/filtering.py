"""From the trainer's arguments to the rows that it trains on."""

from __future__ import annotations

import copy
import logging
import re
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from saft_hf.decide import decide, near_threshold, threshold_for_contamination
from saft_hf.demonstrations import demonstrations_for, interleaved
from saft_hf.distributed import World, describe
from saft_hf.embed import describe_model, model_name
from saft_hf.errors import SAFTError, SAFTInputError, SAFTUndecidedError
from saft_hf.render import Renderer
from saft_hf.result import FilterResult
from saft_hf.scorer import PROBABILITY, SCORE, STATUS, SAFTScorer, without_scores
from saft_hf.scorer.certifying import thresholds_by_row
from saft_hf.scorer.fitting import provenance_of, quantiles
from saft_hf.scorer.inputs import limits_of, placed, scores_in
from saft_hf.scorer.options import BY_NAME, OPTIONS
from saft_hf.summary import EvalCounts, Provenance, Summary
from saft_hf.train import inputs
from saft_hf.train.config import setting
from saft_hf.train.inputs import FilterArgs
from saft_hf.train.masking import with_masks
from saft_hf.train.record import Record
from saft_hf.train.stream import BATCH_ROWS, ScoreBatch, StreamFilter, first_rows

logger = logging.getLogger(__name__)

STREAM_FIT_ROWS = 1000
ONE_SET = "eval"
"""The name of an `eval_dataset` that was given alone, not in a dict."""

_PATH = re.compile(r"(?<![\w/])[~.]*/[^\s'\"`,;:)]+")

_SCORER_OPTIONS = [option.name for option in OPTIONS if option.in_trainer and option.use == "scorer"]
_FIT_OPTIONS = [option.name for option in OPTIONS if option.in_trainer and option.use == "fit"]


def filter_rows(args: FilterArgs, world: World) -> Record:
    """Filter the rows that a trainer was given. Every process calls it, and gets the same rows.

    Where nothing was given to decide by and the rows cannot be scored, training goes on with all of them.

    Raises:
        SAFTInputError: data, labels or arguments are not what they must be, or do not go together.
        SAFTUndecidedError: no decision can honestly be taken.
    """
    begin = time.perf_counter()
    inputs.check_args(args)
    asked = args.decides or args.get("on_undecided") == "raise"
    try:
        # An error that ends no process must be known to all: one that goes on alone leaves the others waiting.
        with nullcontext() if asked else world.sync_errors("scoring the rows"):
            record = decide_rows(args, world)
    except Exception as error:
        if asked:
            raise
        # Nothing was asked for: SFTTrainer gets what it was given, and we say what is wrong.
        logger.debug("The rows could not be scored.", exc_info=True)
        record = _unfiltered(args, f"the rows could not be scored: {_public(error, args.model)}")
    _act(args, record, world)
    record.eval_dataset, record.eval_results = filter_eval(args, record, world)
    evaluation = {name: _counts(result, args.get("eval")) for name, result in record.eval_results.items()}
    record.extend(evaluation=evaluation, seconds=round(time.perf_counter() - begin, 3))
    return record


def _act(args: FilterArgs, record: Record, world: World) -> None:
    """Mask in place of removing, and mix demonstrations in, where that is asked for."""
    rows, result = record.dataset, record.result
    with world.sync_errors("masking rows"):
        if args.get("action") == "mask" and result is not None and record.summary.filtered:
            tokenizer, how = inputs.training_tokenizer(args), inputs.render_config(args)
            rows = with_masks(result, Renderer(tokenizer, how, formatting_func=args.formatting_func))
    with world.sync_errors("mixing demonstrations in"):
        if args.demonstrations is not None:
            pool = rows if result is None else result.dataset
            kept = len(rows) if result is None else len(result.decisions.train_rows())
            shown, told = demonstrations_for(
                pool,
                kept,
                args.demonstrations,
                args.get("demonstrations_share"),
                text_field=setting(args.args, "dataset_text_field"),
                formatted=args.formatting_func is not None,
                token=setting(args.args, "hub_token"),
            )
            record.demonstrate(shown, told)
            rows = interleaved(rows, shown)
    record.dataset = rows


def decide_rows(args: FilterArgs, world: World) -> Record:
    """Score the rows to train on, and decide which of them are left out."""
    with world.sync_errors("looking at the rows"):
        inputs.check_workers(args)
        images = inputs.has_images(args)
    if images:  # and may keep them
        return _unfiltered(args, "the rows have images, and SAFT scores text only")
    if args.get("trust_scores"):
        return _by_trusted_scores(args, world)
    rows = args.train_dataset
    if args.streams:
        rows = first_rows(rows, args.get("fit_rows") or STREAM_FIT_ROWS, world)
    # One object for fit and filter: what fit rendered and scored is not rendered again.
    rows = without_scores(rows)
    scorer = _fitted(args, rows, world)
    if args.streams:
        return _by_stream(args, scorer)
    if args.fresh_labels is not None:
        return certify(args, scorer, rows)
    return _of_result(
        scorer.filter(rows, on_error=args.on_error, on_undecided=args.on_undecided, by=args.get("by")), scorer
    )


def _of_result(result: FilterResult, scorer: SAFTScorer | None, **more: Any) -> Record:
    kept = result.train_rows()
    if len(kept) == 0:
        raise SAFTUndecidedError(
            f"no row is left to train on: {result.decisions.reason_counts()}. Check the threshold and the statuses."
        )
    return Record(kept, result, scorer, **more)


def _unfiltered(args: FilterArgs, why: str) -> Record:
    return Record(args.train_dataset, Summary(undecided=why))


def _public(error: Exception, model: Any) -> str:
    """What a summary, which may be published, says of an error: only our own words, and no folder of this machine."""
    if not isinstance(error, SAFTError):
        return type(error).__name__
    text = describe(error)
    if type(error) is SAFTError:  # of another process: what stands behind the colon is what failed there, in any words
        text = ":".join(text.split(":")[:2])
    if (name := model_name(model)) is not None:
        text = text.replace(name, "the model")
    return _PATH.sub("a path", text)


# -- other ways to decide ----------------------------------------------------------------------------------------------


def _by_trusted_scores(args: FilterArgs, world: World) -> Record:
    """By the scores that the data brings; no model is loaded."""
    if args.labelled is not None:
        raise SAFTInputError(
            "`saft_trust_scores=True` and `saft_labelled` do not go together: labels are not used with scores that are "
            "only trusted. Give `saft_threshold`, `saft_contamination` or `saft_scorer`."
        )
    with world.sync_errors("loading the scorer"):
        scorer = _load(args.scorer, args) if isinstance(args.scorer, str | Path) else args.scorer
    # A probe's scores alone do not tell which rows are unlike its reference: they would be removed.
    of_probe = (PROBABILITY,) if scorer is not None and scorer.fit_ is not None and scorer.fit_.probe else ()
    columns = args.train_dataset.column_names or []
    if missing := [name for name in (SCORE, STATUS, *of_probe) if name not in columns]:
        raise SAFTInputError(
            f"`saft_trust_scores=True`, but `train_dataset` has no column {missing[0]!r} (found: {columns}). Score it "
            "first (`saft-hf score`, or `dataset.map(scorer, batched=True)`)."
        )
    threshold = args.get("threshold") if scorer is None else _one_threshold(scorer)
    if args.streams:
        if threshold is None:
            raise SAFTInputError("`saft_trust_scores=True` with a stream needs `saft_threshold` or `saft_scorer`.")
        return _of_stream(args, scorer, threshold, lambda batch: batch)
    scores, statuses, likely = scores_in(args.train_dataset)
    if threshold is None and args.get("contamination") is not None:
        threshold = threshold_for_contamination(placed(scores, likely), args.get("contamination"))
    if threshold is None:
        raise SAFTInputError(
            "`saft_trust_scores=True` needs `saft_threshold`, `saft_contamination` or a fitted `saft_scorer`."
        )
    limits = limits_of(threshold, scores, likely, of_probe=_is_of_probe(scorer))
    decisions = decide(scores, statuses, limits, on_error=args.on_error)
    summary = Summary(
        filtered=True,
        threshold=threshold,
        threshold_from="given",
        near_threshold=near_threshold(scores, threshold),
        score_quantiles=quantiles(scores),
        provenance=_provenance(args, scorer),
    )
    result = FilterResult(without_scores(args.train_dataset), scores, statuses, decisions, summary)
    if World().is_main:
        result.log_warnings()
    return _of_result(result, scorer)


def _by_stream(args: FilterArgs, scorer: SAFTScorer) -> Record:
    """By a scorer that was fitted, while the model trains."""
    threshold = _one_threshold(scorer)
    if threshold is None:
        if args.on_undecided != "keep":
            raise SAFTUndecidedError(
                "no row can be removed: the scorer has no threshold. Give labels, `saft_contamination` or "
                "`saft_threshold`; or keep every row with `saft_on_undecided='keep'`."
            )
        return Record(args.train_dataset, replace(scorer.summary_, filtered=False), scorer=scorer)
    fit = scorer.fit_
    if fit is not None and fit.how.labels_decide and len(fit.labelled.harmful) and World().is_main:
        logger.warning(
            "%d rows that people labelled are decided by their scores where they come up in the stream. Filter a "
            "dataset, or leave the rows that are labelled harmful out of the stream.",
            len(fit.labelled.harmful),
        )
    if scorer.model is args.model and not isinstance(args.model, str):
        # The object is about to be trained: rows are scored by what it is now.
        scorer = copy.copy(scorer)
        scorer.model = copy.deepcopy(args.model)
    return _of_stream(args, scorer, threshold, scorer)


def _one_threshold(scorer: SAFTScorer) -> float | None:
    """The threshold of a scorer, for what cannot tell strata apart.

    Raises:
        SAFTInputError: it has one for each stratum.
    """
    if scorer.fit_ is not None and scorer.fit_.thresholds:
        raise SAFTInputError(
            f"`saft_scorer` has a threshold for each stratum already, of column {scorer.fit_.stratify_by!r}, by a "
            "certificate: streams, trusted scores and fresh labels need one with one threshold. Filter with it first "
            "(`scorer.filter`), or give another."
        )
    return scorer.threshold_


def _is_of_probe(scorer: SAFTScorer | None) -> bool:
    return scorer is not None and scorer.fit_ is not None and scorer.fit_.threshold_from == "reference"


def _of_stream(args: FilterArgs, scorer: SAFTScorer | None, threshold: float, score: ScoreBatch) -> Record:
    stream = StreamFilter(score, threshold, args.on_error, of_probe=_is_of_probe(scorer))
    rows = args.train_dataset.filter(stream, batched=True, batch_size=BATCH_ROWS)
    known = scorer.summary_ if scorer else Summary(threshold_from="given")
    summary = replace(known, filtered=True, stream=True, threshold=threshold, provenance=_provenance(args, scorer))
    return Record(without_scores(rows), summary, scorer=scorer, stream=stream)


def _provenance(args: FilterArgs, scorer: SAFTScorer | None) -> Provenance:
    """Of rows that no scorer's own `filter` decides."""
    told = {option.name: args.get(option.name) for option in OPTIONS if option.in_trainer and option.travels}
    told |= {"on_error": args.on_error, "trust_scores": args.get("trust_scores") or None}
    return provenance_of(
        None if scorer is None else scorer.fit_, {name: value for name, value in told.items() if value is not None}
    )


# -- what fresh labels certify -----------------------------------------------------------------------------------------


def certify(args: FilterArgs, scorer: SAFTScorer, rows: Dataset) -> Record:
    """Keep, of the rows that the scorer keeps, the largest set that fresh labels certify.

    The share is a ceiling: no row that the scorer removes comes back, even where more could be certified. The sets that
    were tested are certified together, so the largest one within the scorer's threshold is certified too. Where that is
    below all of them, the scorer's rows stay, and the bound on them is what the labels say.

    Raises:
        SAFTInputError: the labels are not of rows of the dataset, or were used for fitting.
        SAFTUndecidedError: nothing can be certified, and `saft_on_undecided` is not `keep`.
    """
    ceiling = _one_threshold(scorer)
    certificate = scorer.certify(
        rows,
        args.fresh_labels,
        alpha=args.get("alpha"),
        delta=args.get("delta"),
        looks=args.get("looks"),
        label_column=args.get("label_column"),
        harmful_value=args.get("harmful_value"),
        on_error="keep" if args.on_error == "keep" else "exclude",
    )
    if not certificate.issued and args.get("on_undecided") != "keep":
        raise SAFTUndecidedError(
            f"{certificate.says()}\nDraw fresh labels; or train on the rows that the scorer keeps, uncertified, with "
            "`saft_on_undecided='keep'`."
        )
    within = [step for step in certificate.passed if ceiling is None or step.threshold <= ceiling]
    if not within:
        logger.warning("Nothing is certified about the rows that are trained on. %s", certificate.says())
        told = certificate.summary(trained_on=False)
        if certificate.issued:
            told = replace(told, text=f"The rows that are trained on are no certified set. {told.text}")
        result = scorer.filter(rows, on_error=args.on_error, on_undecided=args.on_undecided, by=args.get("by"))
        result.summary = replace(result.summary, certificate=told)
        return _of_result(result, scorer, certificate=certificate)
    # What is said is about the set that is trained on, not about a larger one that was certified too.
    trained = replace(certificate, steps=tuple(within))
    result = scorer.filter(rows, certificate=trained, on_error=args.on_error, on_undecided="keep", by=args.get("by"))
    whole = replace(trained.used(result.decisions), steps=certificate.steps)
    return _of_result(result, scorer, certificate=whole)


# -- the rows to evaluate on -------------------------------------------------------------------------------------------


def filter_eval(args: FilterArgs, record: Record, world: World) -> tuple[Any, dict[str, FilterResult]]:
    """Leave the rows to evaluate on alone, score them, or filter them, as `saft_eval` says.

    A stream is read once, whole, for it; it must end, and fit in memory.

    Returns:
        The rows in the form that they were given in, and for each set that was scored what its scores say.

    Raises:
        SAFTInputError: there is no scorer, or no row.
        SAFTUndecidedError: a set is to be filtered, and no row of it would be left.
    """
    mode, given = args.get("eval"), args.eval_dataset
    if mode == "leave" or given is None:
        return given, {}
    if record.scorer is None:
        why = "the data's own scores are trusted" if record.scored else record.summary.undecided
        raise SAFTInputError(
            f"`saft_eval={mode!r}` needs a scorer, and there is none: {why}. Give labels, a scorer or a share; or "
            "leave `saft_eval` out."
        )
    sets, results = dict(given) if isinstance(given, Mapping) else {ONE_SET: given}, {}
    for name, rows in sets.items():
        if not isinstance(rows, Dataset | IterableDataset):
            continue  # for SFTTrainer to refuse
        streams = isinstance(rows, IterableDataset)
        if streams:
            rows = first_rows(rows, None, world, f"eval_dataset ({name})")
        scores, statuses, likely = scores_in(record.scorer.score_dataset(rows))
        # The threshold of the training rows, which a certificate may have lowered.
        limits: Any = record.summary.threshold
        if limits is None and record.summary.filtered and (fit := record.scorer.fit_) is not None and fit.thresholds:
            limits = thresholds_by_row(fit, rows)
        if limits is not None:
            limits = limits_of(limits, scores, likely, of_probe=record.summary.threshold_from == "reference")
        decisions = decide(scores, statuses, limits, on_error=args.on_error)
        results[name] = result = FilterResult(without_scores(rows), scores, statuses, decisions, Summary())
        if mode == "filter":
            if world.is_main:
                result.log_warnings(f"rows of `eval_dataset` ({name})")
            kept = result.train_rows()
            if len(kept) == 0:
                raise SAFTUndecidedError(
                    f"no row of `eval_dataset` ({name}) would be left: {result.decisions.reason_counts()}. Score it "
                    "without filtering (`saft_eval='score'`)."
                )
            sets[name] = kept.to_iterable_dataset() if streams else kept
    form: Any = type(given)  # such as DatasetDict
    return form(sets) if isinstance(given, Mapping) else sets[ONE_SET], results


def _counts(result: FilterResult, mode: str) -> EvalCounts:
    counts, reasons = result.decisions.counts(), result.decisions.reason_counts()
    rows, scores = len(result.decisions), quantiles(result.scores)
    return EvalCounts(filtered=mode == "filter", rows=rows, **counts, reasons=reasons, score_quantiles=scores)


# -- the scorer --------------------------------------------------------------------------------------------------------


def _fitted(args: FilterArgs, rows: Dataset, world: World) -> SAFTScorer:
    """The scorer that was given, or one that is made for the model; fitted."""
    scorer = args.scorer
    with world.sync_errors("making the scorer"):
        if isinstance(scorer, str | Path):
            scorer = _load(scorer, args)
        elif scorer is None:
            scorer = _new(args, world)
        elif scorer.fit_ is not None:
            # The user's object stays as it is; a copy reads rows as they are trained on.
            name = model_name(scorer.model)
            same = scorer.model is args.model or (name is not None and name == model_name(args.model))
            scorer = _render_as_trained(copy.copy(scorer), args, same)
    if isinstance(args.scorer, SAFTScorer) and args.get("cache_dir") is not None:
        scorer.cache_dir = args.get("cache_dir")
    if scorer.fit_ is None:
        # Without labelled rows, what says how labels are read is about the fresh ones.
        told = {
            name: args.get(name) for name in _FIT_OPTIONS if args.labelled is not None or not BY_NAME[name].of_labels
        }
        return scorer.fit(rows, args.labelled, **told | {"on_undecided": args.on_undecided or "raise"})
    if args.labelled is not None:
        raise SAFTInputError(
            "`saft_labelled` and a fitted `saft_scorer` do not go together: its threshold is chosen already. Give one "
            "of them, or a `SAFTScorer` that is not fitted."
        )
    return scorer


def _new(args: FilterArgs, world: World) -> SAFTScorer:
    tokenizer = inputs.training_tokenizer(args)
    options: dict[str, Any] = {}
    if isinstance(args.model, str):
        options = inputs.loading_options(args, distributed=world.size > 1)
    known = {name: options[name] for name in ("revision", "trust_remote_code", "token") if name in options}
    inputs.warn_of_added_tokens(tokenizer, describe_model(args.model, **known).vocab_size)
    return SAFTScorer(
        args.model,
        **{name: args.get(name) for name in _SCORER_OPTIONS},
        **options,
        processing_class=tokenizer,
        render=inputs.render_config(args),
        formatting_func=args.formatting_func,
    )


def _load(name: str | Path, args: FilterArgs) -> SAFTScorer:
    load = partial(
        SAFTScorer.from_pretrained,
        name,
        cache_dir=args.get("cache_dir"),
        token=setting(args.args, "hub_token"),
        trust_remote_code=setting(args.args, "trust_remote_code"),
    )
    scorer = load(model=args.model, quantization_config=inputs.quantization(args))
    same = scorer._fitted.model in (None, model_name(args.model))
    if not same:  # it reads the one that it names
        scorer = load()
    return _render_as_trained(scorer, args, same)


def _render_as_trained(scorer: SAFTScorer, args: FilterArgs, same_model: bool) -> SAFTScorer:
    """Let a fitted scorer read rows as they will be trained on; another model's scorer keeps its own tokenizer."""
    if same_model:
        scorer.processing_class = inputs.training_tokenizer(args)
    scorer.render = inputs.render_config(args)
    scorer.formatting_func = args.formatting_func
    return scorer
