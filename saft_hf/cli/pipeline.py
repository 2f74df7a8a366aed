"""What the commands share: arguments -> a fitted scorer, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from saft_hf.cli.arguments import Arguments, OutputArguments
from saft_hf.cli.data import load_pool_and_labels, source_of
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.result import FilterResult
from saft_hf.scorer import SAFTScorer
from saft_hf.summary import Summary

SCORER = "scorer"


def fitted_scorer(arguments: Arguments, pool: Dataset, labelled: Dataset | None) -> SAFTScorer:
    """Load the scorer that is named, or fit one.

    Raises:
        SAFTInputError: neither a scorer nor a model is named.
    """
    model, dataset, options, _ = arguments
    if options.scorer is not None:
        scorer = SAFTScorer.from_pretrained(
            options.scorer,
            model=model.model_name_or_path,
            cache_dir=options.cache_dir,
            trust_remote_code=model.trust_remote_code,
        )
        if World().is_main:  # before it is loaded: a scorer from elsewhere names a model of its own
            print(f"The scorer in {options.scorer} reads the model {scorer.model}.")
        return scorer
    if model.model_name_or_path is None:
        raise SAFTInputError("`--model_name_or_path` (to fit a scorer) or `--scorer` (to use a fitted one) is needed.")
    scorer = SAFTScorer(
        model.model_name_or_path,
        revision=model.model_revision,
        layer=options.layer,
        readout=options.readout,
        method=options.method,
        k=options.k,
        threshold=options.threshold,
        contamination=options.contamination,
        dtype=model.dtype,
        attn_implementation=model.attn_implementation,
        vector_dtype=options.vector_dtype,
        max_length=options.max_length,
        cache_dir=options.cache_dir,
        trust_remote_code=model.trust_remote_code,
    )
    return scorer.fit(
        pool,
        labelled,
        label_column=dataset.label_column,
        harmful_value=dataset.harmful_value,
        label_sampling=dataset.label_sampling,  # type: ignore[arg-type] # fit says what it takes
        aim=options.aim,
        fit_rows=options.fit_rows,
        on_undecided=options.on_undecided,  # type: ignore[arg-type]
    )


def output_folder(arguments: OutputArguments) -> Path:
    """The folder for results, made now: a run should not end with nowhere to write.

    Raises:
        SAFTInputError: none is named, or the format is unknown.
        OSError: it cannot be made or written.
    """
    if arguments.output_dir is None:
        raise SAFTInputError("`--output_dir` is needed: where the dataset, the audit and the scorer go.")
    if arguments.output_format not in ("arrow", "parquet"):
        raise SAFTInputError(f"`--output_format` must be 'arrow' or 'parquet', not {arguments.output_format!r}.")
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def filter_and_save(arguments: Arguments) -> tuple[FilterResult, SAFTScorer, Dataset, Dataset | None]:
    """Load, fit, filter and save: result (kept rows, audit, summary) and scorer.

    Returns:
        Result, scorer, the pool and the labelled rows.
    """
    _, dataset, options, output = arguments
    folder = output_folder(output)
    world = World()
    pool, labelled = load_pool_and_labels(dataset)
    scorer = fitted_scorer(arguments, pool, labelled)
    result = scorer.filter(
        pool,
        on_error=options.on_error,  # type: ignore[arg-type] # filter says what it takes
        refusal_column=options.refusal_column,
    )
    known = result.summary.provenance
    if known is not None:
        revision, seed = dataset.dataset_revision, dataset.seed if dataset.labelled_rows else None
        known = replace(known, input=dataset.dataset_name, input_revision=revision, seed=seed)
    result.summary = replace(result.summary, source=source_of(dataset), provenance=known)
    with world.sync_errors("saving"):
        if world.is_main:
            result.save(folder, file_format=output.output_format)  # type: ignore[arg-type]
            scorer.save_pretrained(folder / SCORER)
    with world.sync_errors("pushing"):
        if world.is_main:
            result.summary = push_scorer(scorer, output, result.summary)
            if output.push_to_hub:
                pushed = result.push_to_hub(
                    output.push_to_hub,
                    split=dataset.dataset_train_split,
                    **hub_options(output),
                    include_indices=output.hub_include_indices,
                    include_removed=output.hub_include_removed,
                )
                print(f"Pushed to {pushed.pr_url or pushed}.")
    return result, scorer, pool, labelled


def push_scorer(scorer: SAFTScorer, output: OutputArguments, summary: Summary) -> Summary:
    """Push the scorer where that is asked for, and note in the summary where it is."""
    if not output.hub_scorer:
        return summary
    print(f"Pushed the scorer to {scorer.push_to_hub(output.hub_scorer, **hub_options(output))}.")
    return replace(summary, scorer_repo=output.hub_scorer)


def hub_options(output: OutputArguments) -> dict[str, Any]:
    """How to push, as `push_to_hub` of scorers and results takes it."""
    return {"private": output.hub_private, "revision": output.hub_revision, "create_pr": output.hub_create_pr}


def print_table(rows: dict[str, Any]) -> None:
    """Print names and values in two columns."""
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")


def fit_lines(scorer: SAFTScorer) -> dict[str, Any]:
    """What a person wants to know of a scorer."""
    summary = scorer.summary_
    fit = summary.fit
    threshold = "none" if summary.threshold is None else f"{summary.threshold:.6g} (from {summary.threshold_from})"
    lines: dict[str, Any] = {
        "method": summary.method,
        "layers": ", ".join(map(str, summary.layers)),
        "readouts": ", ".join(summary.readouts),
        **({} if summary.k is None else {"k": summary.k}),
        "threshold": threshold,
    }
    if fit and fit.labels:
        lines["labels"] = str(fit.labels)
    if fit and fit.test:
        lines["AUROC, out of fold"] = f"{fit.test.auroc:.3f} (p = {fit.test.p_value:.3g})"
    if summary.undecided:
        lines["cannot tell"] = summary.undecided
    return lines


def count_lines(result: FilterResult) -> dict[str, Any]:
    """How many rows were kept, removed and errored."""
    return dict(result.decisions.counts())
