"""What a benchmark measures: a model, rows, a layer and a device; and how it is run by itself."""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from datasets import Dataset, load_dataset
from shapes import SHAPES, config_of, whole_model
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from saft_hf.assets import demo_folder, demo_rows_path
from saft_hf.embed.source import ModelSource

ROOT = Path(__file__).resolve().parents[2]
_SHARED = ROOT.parent / "shared"
_KINDS = {"json": "json", "jsonl": "json", "csv": "csv", "parquet": "parquet"}


@dataclass(frozen=True)
class Task:
    """What is measured, on what.

    Attributes:
        model: name, folder or one of `SHAPES`.
        dataset: a json, jsonl, csv or parquet file (also .gz), or an id on the Hub.
        layer: the layer that is read.
        device: such as "cpu" or "cuda".
        dtype: of the weights.
        rows: only the first so many rows; 0: all.
        token_budget: tokens in one batch; None for what the package takes.
        batches: which runs of neighbouring rows the plain way is timed on.
    """

    model: str
    dataset: str
    layer: int
    device: str
    dtype: str
    rows: int
    token_budget: int | None = None
    batches: tuple[int, ...] = ()

    @staticmethod
    def add_options(parser: argparse.ArgumentParser, rows: int) -> None:
        """The options of a task, with so many rows by default."""
        here = _SHARED.is_dir()
        model = _SHARED / "lab-lm" if here else demo_folder()
        data = _SHARED / "data" / "beavertails_pairs.jsonl.gz" if here else demo_rows_path()
        parser.add_argument("--model_name_or_path", default=str(model), help=f"or one of {', '.join(SHAPES)}")
        parser.add_argument("--dataset_name", default=str(data), help="json, jsonl, csv or parquet file, or a Hub id")
        parser.add_argument("--layer", type=int, help="default: half of the layers")
        parser.add_argument("--device", default="cpu")
        parser.add_argument("--dtype", default="float32")
        parser.add_argument("--rows", type=int, default=rows, help="only the first so many rows; 0: all")

    @classmethod
    def of(cls, options: argparse.Namespace, **more: Any) -> Self:
        """The task that was asked for."""
        model, layer = options.model_name_or_path, options.layer
        layer = config_of(model).num_hidden_layers // 2 if layer is None else layer
        return cls(model, options.dataset_name, layer, options.device, options.dtype, options.rows, **more)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's; a random one borrows one."""
        borrowed = _SHARED / "lab-lm" if _SHARED.is_dir() else demo_folder()
        return AutoTokenizer.from_pretrained(borrowed if self.model in SHAPES else self.model)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return getattr(torch, self.dtype)

    def source(self) -> ModelSource:
        """The model, to be read by the package: by name, a shape in place."""
        if self.model not in SHAPES:
            return ModelSource(self.model, options={"dtype": self.dtype})
        model = whole_model(self.model, self.device, self.torch_dtype)
        return ModelSource(model, processing_class=self.tokenizer)

    def read_rows(self) -> Dataset:
        """The rows."""
        path = Path(self.dataset)
        if path.is_file():
            kind = _KINDS[path.name.removesuffix(".gz").rsplit(".", 1)[1]]
            rows = load_dataset(kind, data_files=str(path), split="train")
        else:
            rows = load_dataset(self.dataset, split="train")
        return rows.select(range(min(self.rows, len(rows)))) if self.rows else rows


def alone(work: Any, *args: Any) -> Any:
    """Run in a fresh process, and give its answer."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()
