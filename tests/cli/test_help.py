"""`--help` fits on a screen, names each option once, and loads nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module

import pytest

from saft_hf.cli.arguments import COMMON, GROUPS, Arguments, parse, parse_as, parse_known
from saft_hf.cli.help import EXAMPLES
from saft_hf.cli.main import COMMANDS, OWN_OPTIONS, main

TAKE_OPTIONS = [command for command in COMMANDS if command != "cache"]


def options_in(text: str) -> list[str]:
    return re.findall(r"^  --(\w+)", text, re.MULTILINE)


@pytest.mark.parametrize("command", TAKE_OPTIONS)
def test_help_is_a_screen_and_help_all_has_each_option_once(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    short = capsys.readouterr().out
    assert main([command, "--help_all"]) == 0
    whole = capsys.readouterr().out
    assert len(short.splitlines()) <= 45
    assert all(len(line) < 80 for text in (short, whole) for line in text.splitlines())
    common, every = options_in(short), options_in(whole)
    assert set(common) <= set(every)
    assert len(set(every)) == len(every) >= len(common) > 1
    hidden = re.search(r"--help_all shows (\d+) more", short)
    assert (int(hidden[1]) if hidden else 0) == len(every) - len(common)
    assert f"saft-hf {command} {EXAMPLES[command]}" in " ".join(whole.replace("\\", "").split())
    assert "\nOptions:" not in whole  # each stands in a group with a title


@pytest.mark.parametrize("command", TAKE_OPTIONS)
def test_the_example_of_a_command_is_one_that_it_takes(command: str) -> None:
    words = EXAMPLES[command].split()
    if command not in OWN_OPTIONS:
        parse(command, words)
        return
    kinds = import_module(f"saft_hf.cli.{command}").KINDS
    if command == "sft":
        assert list(parse_known(kinds, command, [*words, "--use_cpu", "true"])[-2:]) == [[], []]
    else:
        parse_as(kinds[0], command, words)


def test_the_tables_of_help_name_options_that_exist() -> None:
    for module in ("arguments", "sft", "evaluate", "experiment"):
        table = import_module(f"saft_hf.cli.{module}")
        kinds = getattr(table, "KINDS", (Arguments,))
        if module == "evaluate":  # shares the tables of the other one
            kinds = import_module("saft_hf.cli.experiment").KINDS
        names = {each.name for kind in kinds for each in fields(kind)}
        assert {*table.GROUPS, *table.COMMON} <= names
    assert len(set(COMMON)) == len(COMMON)
    assert list(GROUPS) == [each.name for each in fields(Arguments) if each.name in GROUPS]


@pytest.mark.parametrize("words", [["--help"], ["filter", "--help"], ["certify", "--help_all"], ["--version"]])
def test_help_loads_no_heavy_package(words: list[str]) -> None:
    script = f"import sys; from saft_hf.cli.main import main; main({words}); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    modules = set(shown.splitlines()[-1].split())
    assert "saft_hf.cli.main" in modules
    assert not {"torch", "numpy", "pyarrow", "accelerate", "transformers", "datasets", "trl", "sklearn"} & modules
    assert len(modules) < 500  # of the standard library, for the most part


def test_what_a_pager_or_head_does_not_read_is_no_error() -> None:
    ran = subprocess.Popen(
        [sys.executable, "-m", "saft_hf", "filter", "--help_all"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert ran.stdout is not None
    assert ran.stderr is not None
    ran.stdout.close()
    assert ran.stderr.read() == b""
    assert ran.wait() == 141
