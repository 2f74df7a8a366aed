"""What the commands share: arguments -> a fitted scorer, and what is said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from saft_hf.cli.arguments import Arguments, OutputArguments
from saft_hf.cli.data import load_pool_and_labels, source_of
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.result import FilterResult
from saft_hf.scorer import SAFTScorer

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
    result.summary |= {"source": source_of(dataset)} if source_of(dataset) else {}
    with world.sync_errors("saving"):
        if world.is_main:
            result.save(folder, file_format=output.output_format)  # type: ignore[arg-type]
            scorer.save_pretrained(folder / SCORER)
    with world.sync_errors("pushing"):
        if world.is_main:
            push_scorer(scorer, output, result.summary)
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


def push_scorer(scorer: SAFTScorer, output: OutputArguments, summary: dict[str, Any]) -> None:
    """Push the scorer where that is asked for, and note in the summary where it is."""
    if output.hub_scorer:
        print(f"Pushed the scorer to {scorer.push_to_hub(output.hub_scorer, **hub_options(output))}.")
        summary["scorer_repo"] = output.hub_scorer


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
    lines = {
        "method": scorer.method_,
        "layers": ", ".join(map(str, scorer.layers_)),
        "readouts": ", ".join(scorer.readouts_),
        **({} if scorer.k_ is None else {"k": scorer.k_}),
        "threshold": "none"
        if scorer.threshold_ is None
        else f"{scorer.threshold_:.6g} (from {summary['threshold_from']})",
    }
    if summary["labels"]:
        lines["labels"] = summary["labels"]["says"]
    if selection := summary.get("selection"):
        best = selection["candidates"][0]
        lines["in use"] = f"{selection['winner']} (p = {selection['p_value']:.3g} for the whole choice)"
        lines["best AUROC, out of fold"] = f"{best['auroc']:.3f} ({best['name']})"
    if summary["undecided"]:
        lines["cannot tell"] = summary["undecided"]
    return lines


def count_lines(result: FilterResult) -> dict[str, Any]:
    """How many rows were kept, removed and errored."""
    return dict(result.decisions.counts())
