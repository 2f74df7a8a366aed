"""What the commands share: arguments -> a fitted scorer, and what is said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from saft_hf.cli.arguments import Arguments, OutputArguments
from saft_hf.errors import SAFTInputError
from saft_hf.scorer import SAFTScorer

SCORER = "scorer"


def fitted_scorer(arguments: Arguments, pool: Dataset, labelled: Dataset | None) -> SAFTScorer:
    """Load the scorer that is named, or fit one.

    Raises:
        SAFTInputError: neither a scorer nor a model is named.
    """
    model, dataset, options, _ = arguments
    if options.scorer is not None:
        return SAFTScorer.from_pretrained(
            options.scorer,
            model=model.model_name_or_path,
            cache_dir=options.cache_dir,
            trust_remote_code=model.trust_remote_code,
        )
    if model.model_name_or_path is None:
        raise SAFTInputError("`--model_name_or_path` (to fit a scorer) or `--scorer` (to use a fitted one) is needed.")
    scorer = SAFTScorer(
        model.model_name_or_path,
        revision=model.model_revision,
        layer=options.layer,
        readout=options.readout,
        k=options.k,
        threshold=options.threshold,
        expected_share=options.expected_share,
        dtype=model.dtype,
        attn_implementation=model.attn_implementation,
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
        fit_rows=options.fit_rows,
        on_refusal=options.on_refusal,  # type: ignore[arg-type]
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


def print_table(rows: dict[str, Any]) -> None:
    """Print names and values in two columns."""
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")


def fit_lines(scorer: SAFTScorer) -> dict[str, Any]:
    """What a person wants to know of a scorer."""
    summary = scorer.summary_
    lines = {
        "layer, readout": f"{scorer.layers_[0]}, {scorer.readouts_[0]}",
        "k": scorer.k_,
        "threshold": "none"
        if scorer.threshold_ is None
        else f"{scorer.threshold_:.6g} (from {summary['threshold_from']})",
    }
    if summary["labels"]:
        lines["labels"] = summary["labels"]["says"]
    if summary["refusal"]:
        lines["cannot tell"] = summary["refusal"]
    return lines
