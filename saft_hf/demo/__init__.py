"""What `saft-hf demo` runs on without a download: a tiny trained language model and 600 labelled rows.

Both are made by `examples/demo/make_demo_assets.py` from text written for this project. They show that the
method works and how it is called; they say nothing about its quality on real data.
"""

from __future__ import annotations

from pathlib import Path

_ASSETS = Path(__file__).resolve().parent / "assets"


def demo_folder() -> Path:
    """Folder of the demo's model, for `from_pretrained`.

    Llama architecture, 4 layers, hidden size 64, context 512, bfloat16, with tokenizer and chat template.

    Returns:
        Path of the folder inside the installed package.

    Example:
        >>> from transformers import AutoModelForCausalLM
        >>> from saft_hf.demo import demo_folder
        >>> AutoModelForCausalLM.from_pretrained(demo_folder()).config.num_hidden_layers
        4
    """
    return _ASSETS / "model"


def demo_rows_path() -> Path:
    """JSON-lines file of 600 labelled conversations, 120 of them harmful.

    Columns: `messages` (list of `role`, `content`), `is_safe` (bool) and `category` (str). 24 safe rows are
    refusals of harmful requests, and 36 are harmless requests that hold alarming words.

    Returns:
        Path of the file inside the installed package.

    Example:
        >>> from datasets import load_dataset
        >>> from saft_hf.demo import demo_rows_path
        >>> len(load_dataset("json", data_files=str(demo_rows_path()), split="train"))
        600
    """
    return _ASSETS / "rows.jsonl"
