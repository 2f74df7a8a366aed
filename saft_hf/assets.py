"""What ships with the package: the demo's model and rows, and the reference set.

The demo is made by `examples/demo/make_demo_assets.py` from text written for this project. It shows that the method
works and how it is called; it says nothing about its quality on real data.

The reference set has 100 harmful and 100 benign rows, written for this project. Harmful rows come in ten categories of
ten formats; every one has a benign row beside it, of the same format and about its length. They name a wish mildly and
go along with it in vague words; no answer holds anything that would help to do harm. Benign rows are what instruction
data is made of: facts, sums, code, rewriting, extraction, dialogue, advice, and questions near the harmful topics.
Refusals of harmful requests are not among them: they share those requests, and would only raise the threshold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_DATA = Path(__file__).resolve().parent / "data"


def demo_folder() -> Path:
    """Folder of the demo's model, for `from_pretrained`.

    Llama architecture, 4 layers, hidden size 64, context 512, bfloat16, with tokenizer and chat template.

    Returns:
        Path of the folder inside the installed package.

    Example:
        >>> from transformers import AutoModelForCausalLM
        >>> from saft_hf.assets import demo_folder
        >>> AutoModelForCausalLM.from_pretrained(demo_folder()).config.num_hidden_layers
        4
    """
    return _DATA / "demo" / "model"


def demo_rows_path() -> Path:
    """JSON-lines file of 600 labelled conversations, 120 of them harmful.

    Columns: `messages` (list of `role`, `content`), `is_safe` (bool) and `category` (str). 24 safe rows are
    refusals of harmful requests, and 36 are harmless requests that hold alarming words.

    Returns:
        Path of the file inside the installed package.

    Example:
        >>> from datasets import load_dataset
        >>> from saft_hf.assets import demo_rows_path
        >>> len(load_dataset("json", data_files=str(demo_rows_path()), split="train"))
        600
    """
    return _DATA / "demo" / "rows.jsonl"


def reference_path() -> Path:
    """JSON-lines file of the reference set.

    Returns:
        Path of the file inside the installed package.

    Example:
        >>> from datasets import load_dataset
        >>> from saft_hf.assets import reference_path
        >>> len(load_dataset("json", data_files=str(reference_path()), split="train"))
        200
    """
    return _DATA / "reference.jsonl"


def reference_columns() -> dict[str, list[Any]]:
    """The reference set as columns, for `Dataset.from_dict`.

    Returns:
        `prompt` and `completion` (str), `is_harmful` (bool), `category` (str; a benign row has that of the harmful row
        it stands beside) and `format` (str), 200 entries each.

    Example:
        >>> from saft_hf.assets import reference_columns
        >>> sum(reference_columns()["is_harmful"])
        100
    """
    rows = [json.loads(line) for line in reference_path().read_text(encoding="utf-8").splitlines()]
    return {name: [row[name] for row in rows] for name in rows[0]}
