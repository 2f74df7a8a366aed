"""`saft-hf sft`: what `trl sft` does, on the rows that SAFT keeps."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from saft_hf.cli.arguments import Arguments, dataclass_of, parse_known, reject
from saft_hf.cli.data import labelled_of, labels_in
from saft_hf.cli.pipeline import check_pushes, columns_of, input_of
from saft_hf.columns import Layout
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.hub import Destination
from saft_hf.named import NamedDataset
from saft_hf.train import SAFTSFTConfig, SAFTSFTTrainer
from saft_hf.train.record import write_summary

logger = logging.getLogger(__name__)


KINDS = (ModelConfig, ScriptArguments, DatasetMixtureConfig, dataclass_of("sft"), SAFTSFTConfig)
"""The options of `trl sft`, those that all commands have for rows and labels, and those of the filter."""

GROUPS = {
    "model_name_or_path": "Model",
    "use_peft": "Adapter and quantisation",
    "dataset_name": "Rows",
    "datasets": "Several datasets",
    "prompt_column": "Columns and labels",
    next(each.name for each in fields(SAFTSFTConfig)): "Training",
    "saft_enabled": "Filter",
}
COMMON = (
    *("model_name_or_path", "use_peft", "dataset_name", "prompt_column", "response_column"),
    *("labelled_name", "labelled_rows", "fresh_labels", "output_dir", "num_train_epochs", "learning_rate"),
    *("saft_enabled", "saft_scorer", "saft_method", "saft_threshold", "saft_contamination", "saft_reference"),
    *("saft_aim", "saft_alpha"),
)


def run(argv: Sequence[str]) -> None:
    """Train; with `--accelerate_config`, or other options of `accelerate launch`, on the processes they ask for.

    Raises:
        SAFTInputError: no model or no rows are named, or the labels are asked for in two ways.
    """
    words = list(argv)
    # A process that was launched reads the same YAML, and must not launch again. Asked before the options are parsed:
    # some versions of transformers set the second variable then.
    launched = "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    # TRL's default is bfloat16, which transformers refuses where there is nothing but a CPU.
    defaults = {} if torch.accelerator.is_available() else {"bf16": False}
    *arguments, from_yaml, from_words = parse_known(KINDS, "sft", words, defaults)
    options = resolve_accelerate_config_argument(from_yaml + from_words)
    _, unknown = launch_command_parser().parse_known_args([*options, "saft_hf"])
    reject("sft", [word for word in unknown if word.startswith("--")], KINDS)
    if launched:  # options of the launcher stay in the YAML
        reject("sft", from_words, KINDS)
    elif options:
        left = list(from_words)  # stand in `words` in the same order
        own = [word for word in words if not (left and word == left[0] and [left.pop(0)])]
        launch_command(launch_command_parser().parse_args([*options, "-m", "saft_hf", "sft", *own]))
        return
    train(*arguments)


def train(model: Any, script: Any, mixture: Any, told: Arguments, args: SAFTSFTConfig) -> SAFTSFTTrainer:
    """Load, filter, train, save, and push where that was asked for.

    Args:
        model: which model, quantisation and adapters.
        script: which dataset and splits, as for `trl sft`.
        mixture: several datasets in one, in place of `script.dataset_name`.
        told: what columns are, and which rows are labelled.
        args: of the trainer.

    Returns:
        The trainer, after training.
    """
    if model.model_name_or_path is None:
        raise SAFTInputError("`--model_name_or_path` is needed: the model to tune.")
    if args.push_to_hub:
        check_pushes(_model_repository(args))
    columns = columns_of(told)
    named = _named(script, mixture, columns)
    source = named.source if named else None
    rows, eval_rows = _datasets(script, args, mixture, named, columns)
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
        saft_labelled=labelled_of(
            rows,
            told.labelled_name,
            told.labelled_rows,
            seed=args.seed,
            label_column=args.saft_label_column,
            columns=columns,
        ),
        saft_fresh_labels=labels_in(fresh, "train", columns, pool=rows, certify=True)
        if (fresh := told.fresh_labels)
        else None,
    )
    if named and (record := trainer._saft) is not None:
        record.extend(**input_of(record.summary, named, args.seed if told.labelled_rows else None))
        World().on_main("writing the summary", lambda: write_summary(record.summary, args.output_dir))
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


def _model_repository(args: SAFTSFTConfig) -> Destination:
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    return Destination(name, "model", args.hub_revision, args.hub_token, args.hub_private_repo)


def _named(script: Any, mixture: Any, columns: Layout) -> NamedDataset | None:
    """The rows to train on, pinned to a commit; None for a mixture."""
    if mixture.datasets:
        if script.dataset_name:
            logger.warning("`dataset_name` is not used beside several datasets of the YAML.")
        for each in mixture.datasets:
            NamedDataset(each.path)  # refuses URLs
        return None
    if not script.dataset_name:
        raise SAFTInputError("`--dataset_name`, or datasets in the YAML, are needed: the rows to train on.")
    where = script.dataset_name, script.dataset_train_split, script.dataset_config
    return NamedDataset(*where, columns=columns).pinned()


def _datasets(
    script: Any, args: SAFTSFTConfig, mixture: Any, named: NamedDataset | None, columns: Layout
) -> tuple[Any, Any]:
    """The rows to train on, and those to evaluate on where that is asked for."""
    evaluates = args.eval_strategy != "no"
    splits = [script.dataset_train_split, *([script.dataset_test_split] if evaluates else [])]
    if named is None:
        mixed = get_dataset(mixture)
        loaded = [columns.apply(mixed[split]) for split in splits]
    elif evaluates and named.is_one_table:
        raise SAFTInputError(
            f"{named.name} is one table, without a split {script.dataset_test_split!r} to evaluate on. Give a folder "
            "of data files with both splits, or a Hub id; or leave `--eval_strategy` out."
        )
    else:
        each = [replace(named, split=split) for split in splits]
        loaded = [one.stream() if script.dataset_streaming else one.load() for one in each]
    return loaded[0], loaded[1] if evaluates else None
