"""`saft-hf filter`: keep the rows whose score is not above the threshold."""

from __future__ import annotations

from collections.abc import Sequence

from saft_hf.cli.arguments import parse
from saft_hf.cli.pipeline import count_lines, filter_and_save, fit_lines, print_table
from saft_hf.distributed import World


def run(argv: Sequence[str]) -> None:
    """Fit or load a scorer, filter, save kept rows, audit, summary and scorer."""
    arguments = parse("filter", argv)
    result, scorer, _, _ = filter_and_save(arguments)
    if World().is_main:
        print_table({**fit_lines(scorer), **count_lines(result), "files": arguments[3].output_dir})
