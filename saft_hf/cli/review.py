"""`saft-hf review FOLDER`: a page on which people look at what was removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saft_hf.cli.arguments import parse
from saft_hf.cli.pipeline import rows_of
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.hub import REVIEW
from saft_hf.result import FilterResult


def run(argv: Sequence[str]) -> None:
    """Load what `filter` wrote, and write the page beside it.

    Raises:
        SAFTInputError: folder or rows are not named, or are not of one filter.
    """
    words = ["--folder", *argv] if argv and not argv[0].startswith("-") else argv
    args = parse("review", words)
    if args.folder is None:
        raise SAFTInputError("name the folder that `saft-hf filter` wrote: `saft-hf review FOLDER --dataset_name ...`.")

    def write() -> None:
        folder = Path(str(args.folder))
        result = FilterResult.load(folder, rows_of(args).load())
        path = result.review(folder / REVIEW, marks=args.marks, by=args.by, seed=args.seed, every_row=args.all)
        print(f"Open {path} in a browser. It holds the text of rows that may be harmful: keep it to yourself.")

    World().on_main("writing the page", write)
