"""`saft-hf filter`: keep the rows whose score is not above the threshold."""

from __future__ import annotations

from collections.abc import Sequence

from saft_hf.cli.arguments import parse
from saft_hf.cli.pipeline import filter_and_save
from saft_hf.cli.table import print_next, print_summary
from saft_hf.distributed import World


def run(argv: Sequence[str]) -> None:
    """Fit or load a scorer, filter, save kept rows, audit, summary and scorer."""
    args = parse("filter", argv)
    result, fitted = filter_and_save(args)
    if World().is_main:
        print_summary(result.summary, files=args.output_dir)
        print_next("filter", args, str(fitted.scorer.model))
