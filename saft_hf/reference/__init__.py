"""The reference set: requests with answers, harmful and benign, from which a pool without labels is judged.

100 harmful and 100 benign rows, written for this project. Harmful rows come in ten categories of ten formats; every one
has a benign row beside it, of the same format and about its length. They name a wish mildly and go along with it in
vague words; no answer holds anything that would help to do harm. Benign rows are what instruction
data is made of: facts, sums, code, rewriting, extraction, dialogue, advice, and questions near the harmful topics.
Refusals of harmful requests are not among them: they share those requests, and would only raise the threshold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def reference_path() -> Path:
    """JSON-lines file of the reference set.

    Returns:
        Path of the file inside the installed package.

    Example:
        >>> from datasets import load_dataset
        >>> from saft_hf.reference import reference_path
        >>> len(load_dataset("json", data_files=str(reference_path()), split="train"))
        200
    """
    return Path(__file__).resolve().parent / "rows.jsonl"


def reference_columns() -> dict[str, list[Any]]:
    """The reference set as columns, for `Dataset.from_dict`.

    Returns:
        `prompt` and `completion` (str), `is_harmful` (bool), `category` (str; a benign row has that of the harmful row
        it stands beside) and `format` (str), 200 entries each.

    Example:
        >>> from saft_hf.reference import reference_columns
        >>> sum(reference_columns()["is_harmful"])
        100
    """
    rows = [json.loads(line) for line in reference_path().read_text(encoding="utf-8").splitlines()]
    return {name: [row[name] for row in rows] for name in rows[0]}
