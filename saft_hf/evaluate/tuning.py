"""Tune a model on rows, with TRL."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from saft_hf.errors import SAFTInputError
from saft_hf.evaluate.config import EvaluationConfig, ExperimentConfig
from saft_hf.evaluate.pools import Dialogue
from saft_hf.evaluate.records import Training


@dataclass(frozen=True)
class Tuned:
    """A model after training, or as it was; in memory, on its device."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    training: Training = field(default_factory=Training)


def load(config: EvaluationConfig) -> Tuned:
    """The model as it is."""
    name = config.model_name_or_path
    model = AutoModelForCausalLM.from_pretrained(name, **_model_options(config))
    tokenizer = AutoTokenizer.from_pretrained(name, revision=config.model_revision)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Tuned(model, tokenizer)


@contextmanager
def tuned(config: ExperimentConfig, rows: list[Dialogue], seed: int, keep_in: Path | None) -> Iterator[Tuned]:
    """Train on rows; what the trainer writes is gone when the block ends.

    Args:
        config: model, options of SFTConfig and LoraConfig.
        rows: in the order of the pool.
        seed: of training.
        keep_in: folder to save the model in; None keeps none.

    Raises:
        SAFTInputError: there are no rows to train on, or an option of `training` or `lora` is unknown.
    """
    if not rows:
        raise SAFTInputError("no row is left to train on.")
    begin, gpu = time.perf_counter(), torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output_dir": folder,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": not gpu,
            "bf16": gpu,
            **config.training,
            "seed": seed,
            "model_init_kwargs": _model_options(config),
        }
        try:
            args = SFTConfig(**options)
            lora = LoraConfig(task_type="CAUSAL_LM", **config.lora) if config.lora else None
        except TypeError as error:
            raise SAFTInputError(
                f"`training` or `lora`: {error}. They take options of SFTConfig and LoraConfig."
            ) from error
        dataset = Dataset.from_list([{"messages": row.messages} for row in rows])
        trainer = SFTTrainer(config.model_name_or_path, args, train_dataset=dataset, peft_config=lora)
        outcome = trainer.train()
        if keep_in is not None:
            trainer.save_model(str(keep_in))
        seconds = round(time.perf_counter() - begin, 1)
        training = Training(outcome.global_step, round(outcome.training_loss, 5), seconds)
        yield Tuned(trainer.model, trainer.processing_class, training)


def _model_options(config: EvaluationConfig) -> dict[str, Any]:
    on_cpu = config.dtype == "auto" and not torch.cuda.is_available()
    return {"dtype": "float32" if on_cpu else config.dtype, "revision": config.model_revision}
