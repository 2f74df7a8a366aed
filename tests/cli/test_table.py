"""What a command says at the end: figures of the summary, in lines of a terminal, and commands that can be run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from saft_hf.assets import demo_rows_path
from saft_hf.cli import main as shell
from saft_hf.cli.arguments import parse
from saft_hf.cli.main import main
from saft_hf.cli.table import print_table
from saft_hf.records import from_plain
from saft_hf.summary import Summary

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture
def words(demo_model: str, store_dir: Path, tmp_path: Path) -> list[str]:
    values = {
        "model_name_or_path": demo_model,
        "dataset_name": demo_rows_path(),
        "labelled_rows": 100,
        "cache_dir": store_dir,
        "output_dir": tmp_path / "a folder",
    }
    return [str(word) for name, value in values.items() for word in (f"--{name}", value)]


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_end_of_a_filter_is_its_summary_and_what_may_come_next(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["filter", *words]) == 0
    table, following = capsys.readouterr().out.split("\nNext\n")
    summary = from_plain(Summary, json.loads((tmp_path / "a folder" / "saft_summary.json").read_text()))
    expected = summary.expected
    assert expected is not None
    said = flat(table)
    assert f"kept {summary.kept} of 600 ({summary.kept / 600:.1%}): to train on" in said
    assert f"harmful before {expected.before}" in said
    assert f"harmful left about {expected.left}, {expected.after:.1%}" in said
    assert f"harmless lost about {expected.lost}: " in said
    assert all(len(line) < 80 or str(tmp_path) in line for line in table.splitlines())

    commands = [shlex.split(line) for line in following.splitlines() if line.startswith("    ")]
    assert len(commands) == 3
    for program, command, *rest in commands:
        if program == "saft-hf":
            parse(command, rest)
        for name in ("--scorer", "--folder", "--dataset_name"):
            assert name not in rest or Path(rest[rest.index(name) + 1]).exists()
    (train,) = [rest for program, _, *rest in commands if program == "trl"]
    kept = load_dataset(train[train.index("--dataset_name") + 1], split="train")  # as `trl sft` does
    assert len(kept) == summary.kept


def test_the_next_commands_of_score_can_be_run(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", *words]) == 0
    following = capsys.readouterr().out.split("\nNext\n")[1]
    commands = [shlex.split(line) for line in following.splitlines() if line.startswith("    ")]
    assert [command for _, command, *_ in commands] == ["filter", "suggest-labels", "sft"]
    for _, command, *rest in commands[:2]:
        parse(command, rest)
    assert main(commands[0][1:]) == 0


@given(st.dictionaries(st.from_regex(r"\A[a-z ]{1,40}\Z"), st.text("ab ", max_size=200), min_size=1, max_size=4))
def test_a_table_keeps_every_word_in_lines_of_a_terminal(rows: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *texts: lines.append(*texts))
        print_table({name: " ".join(word[:20] for word in value.split()) for name, value in rows.items()})
    assert all(len(line) < 80 for line in lines)
    found = [word[:20] for name, value in rows.items() for word in (*name.split(), *value.split())]
    assert sorted(word[:20] for line in lines for word in line.split()) == sorted(found)


@pytest.mark.parametrize(("rank", "said"), [("0", 1), ("1", 0)])
def test_one_process_reports_an_error(
    rank: str, said: int, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet: list[Any] = []
    monkeypatch.setattr(shell, "_be_quiet", lambda: quiet.append(True))
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert main(["filter", *words, "--dataset_name", "/no/such.jsonl"]) == 2
    assert len(re.findall("no file /no/such.jsonl", capsys.readouterr().err)) == said
    assert bool(quiet) == (rank != "0")


def test_a_row_without_a_score_is_counted(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in demo_rows_path().read_text().splitlines()]
    rows[3]["messages"] = []
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    assert main(["filter", *words, "--dataset_name", str(tmp_path / "rows.jsonl")]) == 0
    assert "errored 1 of 600 (0.2%): could not be read" in flat(capsys.readouterr().out)
