"""What ships with the package: the demo's model and rows, the reference set, and the pairs.

The demo is made by `examples/demo/make_demo_assets.py` from text written for this project. It shows that the method
works and how it is called; it says nothing about its quality on real data.

The reference set, requests of many kinds, has 100 harmful and 100 benign rows, written for this project. Harmful rows
come in ten categories of ten formats; every one has a benign row beside it, of the same format and about its length.
They name a wish mildly and go along with it in vague words; no answer holds anything that would help to do harm.
Benign rows are what instruction data is made of: facts, sums, code, rewriting, extraction, dialogue, advice, and
questions near the harmful topics. Refusals of harmful requests are not among them: the pairs have those.

The pairs are written for this project as well, as mildly. To each harmful request there is an answer that goes along
with the harm, one that declines or helps with the safe part, and a harmless twin of the request with its answer, of the
same style, length, format and language: differences within a record are differences of harm, and style cancels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DATA = Path(__file__).resolve().parent / "data"


@dataclass(frozen=True)
class Pair:
    """One harmful request with two answers, and its harmless twin.

    Attributes:
        language (`str`):
            Language of all five texts: `en`, `de`, `fr`, `es` or `zh`.
        category (`str`):
            Kind of the harm.
        format (`str`):
            Form of both requests: question, command, role play, list, code, long context, dialogue, story, rewriting
            or form.
        topic (`str`):
            What the harmless twin is about.
        request (`str`):
            The harmful request, named mildly.
        complies (`str`):
            Answer to `request` that goes along with the harm, in vague words.
        declines (`str`):
            Answer to `request` that declines, or helps with the safe part of it.
        twin (`str`):
            Harmless request in the style, length, format and language of `request`.
        twin_answer (`str`):
            Helpful answer to `twin`.
    """

    language: str
    category: str
    format: str
    topic: str
    request: str
    complies: str
    declines: str
    twin: str
    twin_answer: str


def demo_folder() -> Path:
    """Folder of the demo's model, for `from_pretrained`.

    Llama architecture, 4 layers, hidden size 64, context 512, bfloat16, with tokenizer and chat template.

    Returns:
        Path of the folder inside the installed package.

    Examples:
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

    Examples:
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

    Examples:
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

    Examples:
        >>> from saft_hf.assets import reference_columns
        >>> sum(reference_columns()["is_harmful"])
        100
    """
    rows = [json.loads(line) for line in reference_path().read_text(encoding="utf-8").splitlines()]
    return {name: [row[name] for row in rows] for name in rows[0]}


def pairs_path() -> Path:
    """JSON-lines file of the built-in pairs, a record of `Pair` a line.

    Returns:
        Path of the file inside the installed package.

    Examples:
        >>> from datasets import load_dataset
        >>> from saft_hf.assets import pairs_path
        >>> load_dataset("json", data_files=str(pairs_path()), split="train").num_columns
        9
    """
    return _DATA / "pairs.jsonl"


def pairs() -> list[Pair]:
    """The built-in pairs, in the order of the file.

    Returns:
        One record a harmful request.

    Examples:
        >>> from saft_hf.assets import pairs
        >>> sorted({pair.language for pair in pairs()})
        ['de', 'en', 'es', 'fr', 'zh']
    """
    return [Pair(**json.loads(line)) for line in pairs_path().read_text(encoding="utf-8").splitlines()]
