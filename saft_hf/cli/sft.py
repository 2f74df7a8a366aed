"""`saft-hf sft`: what `trl sft` does, on the rows that SAFT keeps."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate.commands.launch import launch_command, launch_command_parser
from datasets import load_dataset
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from saft_hf.cli.data import is_on_hub, is_one_table, load_rows, pin
from saft_hf.errors import SAFTInputError
from saft_hf.summary import DatasetSource
from saft_hf.train import SAFTSFTConfig, SAFTSFTTrainer

logger = logging.getLogger(__name__)


@dataclass
class LabelArguments:
    """The rows that people labelled."""

    saft_labelled_name: str | None = field(
        default=None,
        metadata={"help": "Labelled rows: a Hub id, a folder, or a json, jsonl, csv or parquet file."},
    )
    saft_fresh_labels_name: str | None = field(
        default=None,
        metadata={"help": "Rows labelled afterwards, to certify `--saft_alpha` with; named like `saft_labelled_name`."},
    )
    saft_labelled_rows: int | None = field(
        default=None,
        metadata={"help": "Draw this many labelled rows at random from the training rows, which have the labels."},
    )


def make_parser() -> TrlParser:
    """The options of `trl sft`, those of the filter, and where the labels are."""
    kinds = (ScriptArguments, SAFTSFTConfig, ModelConfig, DatasetMixtureConfig, LabelArguments)
    return TrlParser(kinds, prog="saft-hf sft")


def run(argv: Sequence[str]) -> None:
    """Train; with `--accelerate_config`, or other options of `accelerate launch`, on the processes they ask for.

    Raises:
        SAFTInputError: no model or no rows are named, or the labels are asked for in two ways.
    """
    words = list(argv)
    # A process that was launched reads the same YAML, and must not launch again. Asked before the options are parsed:
    # some versions of transformers set the second variable then.
    launched = "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    parsed = make_parser().parse_args_and_config(words, return_remaining_strings=True, separate_remaining_strings=True)
    *arguments, from_config, from_words = parsed
    if launched and from_words:
        raise SAFTInputError(f"unknown options {from_words}; `saft-hf sft --help` lists the known ones.")
    if not launched and (from_config or from_words):
        options = resolve_accelerate_config_argument(from_config + from_words)
        own = _without(words, from_words)
        launch_command(launch_command_parser().parse_args([*options, "-m", "saft_hf", "sft", *own]))
        return
    train(*arguments)


def train(script: Any, args: SAFTSFTConfig, model: Any, mixture: Any, labels: LabelArguments) -> SAFTSFTTrainer:
    """Load, filter, train, save, and push where that was asked for.

    Args:
        script: which dataset and splits, as for `trl sft`.
        args: of the trainer.
        model: which model, quantisation and adapters.
        mixture: several datasets in one, in place of `script.dataset_name`.
        labels: which rows are labelled.

    Returns:
        The trainer, after training.
    """
    if model.model_name_or_path is None:
        raise SAFTInputError("`--model_name_or_path` is needed: the model to tune.")
    source = _source(script, mixture)
    rows, eval_rows = _datasets(script, args, mixture, source.revision if source else None)
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": args.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }
    trainer = SAFTSFTTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=rows,
        eval_dataset=eval_rows,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        saft_labelled=_labelled(labels, rows, args.seed),
        saft_fresh_labels=load_rows(labels.saft_fresh_labels_name) if labels.saft_fresh_labels_name else None,
    )
    if source and trainer.saft_summary is not None:
        trainer.saft_summary["source"] = source
        if trainer.is_world_process_zero():
            write_summary(trainer.saft_summary, args.output_dir)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"Model saved to {args.output_dir}.")
    if args.push_to_hub:
        # A folder on this machine is nobody else's dataset.
        trainer.push_to_hub(dataset_name=source.dataset if source else None)
        trainer.accelerator.print(f"Model pushed to https://huggingface.co/{trainer.hub_model_id}.")
    if hasattr(trainer, "end"):  # transformers 5.18: closes the trackers
        trainer.end()
    return trainer


def _source(script: Any, mixture: Any) -> DatasetSource | None:
    """Where the rows come from, pinned to a commit; None for files, folders and mixtures."""
    name = script.dataset_name
    if mixture.datasets or not name or not is_on_hub(name):
        return None
    split, config = script.dataset_train_split, script.dataset_config
    return DatasetSource(dataset=name, revision=pin(name, None), config=config, split=split)


def _datasets(script: Any, args: SAFTSFTConfig, mixture: Any, revision: str | None) -> tuple[Any, Any]:
    """The rows to train on, and those to evaluate on where that is asked for."""
    evaluates = args.eval_strategy != "no"
    splits = [script.dataset_train_split, *([script.dataset_test_split] if evaluates else [])]
    if mixture.datasets:
        if script.dataset_name:
            logger.warning("`datasets` and `dataset_name` are both given: `dataset_name` is not used.")
        mixed = get_dataset(mixture)
        found = [mixed[split] for split in splits]
    elif not script.dataset_name:
        raise SAFTInputError("`--dataset_name`, or `datasets` in the YAML, is needed: the rows to train on.")
    elif script.dataset_streaming:
        found = [
            load_dataset(script.dataset_name, script.dataset_config, split=split, revision=revision, streaming=True)
            for split in splits
        ]
    elif evaluates and is_one_table(script.dataset_name):
        raise SAFTInputError(
            f"{script.dataset_name} is one table, without a split {script.dataset_test_split!r} to evaluate on. Give a "
            "folder of data files with both splits, or a Hub id; or leave `--eval_strategy` out."
        )
    else:
        found = [
            load_rows(script.dataset_name, split=split, config=script.dataset_config, revision=revision)
            for split in splits
        ]
    return found[0], found[1] if evaluates else None


def _labelled(labels: LabelArguments, rows: Any, seed: int) -> Any:
    if labels.saft_labelled_name and labels.saft_labelled_rows:
        raise SAFTInputError("give `--saft_labelled_name` or `--saft_labelled_rows`, not both.")
    if labels.saft_labelled_name:
        return load_rows(labels.saft_labelled_name)
    if not labels.saft_labelled_rows:
        return None
    if not hasattr(rows, "__len__") or not 0 < labels.saft_labelled_rows <= len(rows):
        size = len(rows) if hasattr(rows, "__len__") else "an unknown number of"
        raise SAFTInputError(
            f"`--saft_labelled_rows`={labels.saft_labelled_rows}: the dataset has {size} rows to draw from. Name the "
            "labelled rows with `--saft_labelled_name`."
        )
    return rows.shuffle(seed=seed).select(range(labels.saft_labelled_rows))


def _without(words: list[str], taken: list[str]) -> list[str]:
    """`words` less `taken`, which stand in it in the same order."""
    rest, left = [], list(taken)
    for word in words:
        if left and word == left[0]:
            left.pop(0)
        else:
            rest.append(word)
    return rest
