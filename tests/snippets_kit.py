"""Run the snippets of a page, in order, as a reader would: with small rows, and the demo's model by the names used."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import yaml

from saft_hf.assets import demo_folder, demo_rows_path
from saft_hf.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-0.6B")
ON_A_CPU = {"max_steps=2": "max_steps=2, use_cpu=True, bf16=False"}
"""TRL trains in bfloat16 by default, which it refuses on a CPU."""
ROWS = 300


def snippets(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block; a block without a language is no snippet."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def run_page(page: Path, names: dict[str, str] | None = None) -> None:
    """Run a page's snippets in the current folder, the Python ones in one namespace.

    Args:
        page: of Markdown.
        names: what in the text is replaced by what, beside the models.
    """
    _write_rows()
    replaced = {**dict.fromkeys(MODELS, str(demo_folder())), **ON_A_CPU, **(names or {})}
    space: dict[str, Any] = {}
    for language, text in snippets(page):
        for name, value in replaced.items():
            text = text.replace(name, value)
        if language == "python":
            with patch.object(datasets, "load_dataset", _load):
                exec(compile(text, str(page), "exec"), space)
        elif language == "bash":
            for line in text.splitlines():
                for command in line.split("&&"):
                    _run(shlex.split(command, comments=True), replaced)
        else:
            assert language in ("json", "bibtex", "yaml"), f"{page.name}: who runs a snippet of {language}?"


def _run(words: list[str], replaced: dict[str, str]) -> None:
    match words:
        case ["saft-hf", *rest] | ["accelerate", "launch", "-m", "saft_hf", *rest]:
            with suppress(SystemExit):  # argparse's --help
                assert main(_config(rest, replaced)) == 0, words
        case ["pip", "install", what]:
            assert set(re.findall(r"\w+", what)) <= PROJECT["optional-dependencies"].keys()
        case ["git" | "cd" | "make", *_] | []:
            pass  # targets of make: test_project.py
        case _:
            raise AssertionError(f"who runs {shlex.join(words)}?")


def _config(words: list[str], replaced: dict[str, str]) -> list[str]:
    """Words that name a small copy of the YAML which they name."""
    if "--config" not in words:
        return words
    place = words.index("--config") + 1
    text = (ROOT / words[place]).read_text()
    for name, value in replaced.items():
        text = text.replace(name, value)
    small = {"dataset_name": "rows.jsonl", "dtype": "float32", "bf16": False, "max_steps": 1, "max_length": 64}
    small |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    Path("small.yaml").write_text(yaml.safe_dump({**yaml.safe_load(text), **small}))
    return [*words[:place], "small.yaml", *words[place + 1 :]]


def _write_rows() -> None:
    """`rows.jsonl` without labels; 100 of them labelled, and 100 others, labelled afterwards."""
    rows = [json.loads(line) for line in demo_rows_path().read_text().splitlines()[:ROWS]]
    plain = [{"messages": row["messages"]} for row in rows]
    labelled = [{**bare, "is_harmful": not row["is_safe"]} for bare, row in zip(plain, rows, strict=True)]
    for name, lines in {"rows": plain, "labelled": labelled[::3], "fresh": labelled[1::3]}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _load(path: str, *args: Any, **kwargs: Any) -> Any:
    """`load_dataset` of local files and folders; of the Hub: the demo's rows in the columns of BeaverTails."""
    if path == "json" or Path(path).exists():
        return _LOAD(path, *args, **kwargs)
    rows = _LOAD("json", data_files=str(demo_rows_path()), split="train").select(range(ROWS))
    turns = rows["messages"]
    columns = {"prompt": [each[-2]["content"] for each in turns], "response": [each[-1]["content"] for each in turns]}
    return datasets.Dataset.from_dict({**columns, "is_safe": rows["is_safe"]})


_LOAD = datasets.load_dataset
