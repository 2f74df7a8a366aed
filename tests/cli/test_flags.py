"""A shell is told of options, Python of arguments: by one rule for all messages."""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import saft_hf
from saft_hf.assets import demo_rows_path
from saft_hf.cli.arguments import Arguments
from saft_hf.cli.flags import flags_of, in_flags
from saft_hf.cli.main import main
from saft_hf.cli.sft import KINDS
from saft_hf.result import log_unscored

FLAGS = flags_of(each.name for each in fields(Arguments))
SFT = flags_of(each.name for kind in KINDS for each in fields(kind))


@pytest.mark.parametrize(
    ("flags", "message", "shown"),
    [
        (FLAGS, "`threshold`=0.5 must be", "`--threshold`=0.5 must be"),
        (FLAGS, "use `method='saft'`.", "use `--method saft`."),
        (FLAGS, "load it with `trust_labels=True`.", "load it with `--trust_labels true`."),
        (FLAGS, "pass label_column=..., and", "pass --label_column ..., and"),
        (FLAGS, "layer=[99]: this", "--layer [99]: this"),
        (FLAGS, "certify with on_error='keep' too.", "certify with --on_error keep too."),
        (FLAGS, "`aim='fpr=0.05@0.9'` needs", "`--aim fpr=0.05@0.9` needs"),
        (FLAGS, "give `labelled`, about 100", "give `--labelled_name`, about 100"),
        (FLAGS, "`prompt` and `completion`", "`prompt` and `completion`"),
        (FLAGS, "f(k=2) `--threshold` --k=3", "f(k=2) `--threshold` --k=3"),
        (SFT, "`threshold` and `saft_threshold`", "`--saft_threshold` and `--saft_threshold`"),
        (SFT, "or `saft_on_undecided='keep'`", "or `--saft_on_undecided keep`"),
        (SFT, "`max_length` and `saft_labelled`", "`--max_length` and `--labelled_name`"),
    ],
)
def test_arguments_become_options(flags: dict[str, str], message: str, shown: str) -> None:
    assert in_flags(message, flags) == shown


@given(st.text(st.sampled_from("`'=-_ .,kx(")))
def test_a_message_without_an_argument_stays_and_nothing_is_translated_twice(text: str) -> None:
    assert in_flags(text, {}) == text
    once = in_flags(text, FLAGS)
    assert in_flags(once, FLAGS) == once
    if not re.search(r"\bk\b|\bby\b", text):
        assert once == text


def test_errors_and_warnings_of_a_command_name_options(
    tmp_path: Path, demo_model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    words = ["--model_name_or_path", demo_model, "--dataset_name", str(demo_rows_path()), "--output_dir", str(tmp_path)]
    assert main(["filter", *words, "--contamination", "2"]) == 2
    assert "`--contamination` must be between 0 and 1" in capsys.readouterr().err
    log_unscored({"bad_row": 1}, 3, "rows", kept=False)
    assert "`--on_error keep`" in capsys.readouterr().err


def test_the_library_names_no_option_of_the_shell_that_it_could_name_as_an_argument() -> None:
    """`main` makes options of arguments, never the other way round."""
    names = "|".join(FLAGS)
    for path in sorted(Path(saft_hf.__file__).parent.rglob("*.py")):
        if "cli" not in path.parts and path.name != "named.py":  # which is told what its users call its fields
            for line in path.read_text().splitlines():
                assert not re.search(rf"`--({names})`", line) or '"""' in line, f"{path}: {line}"
