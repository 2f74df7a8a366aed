"""`saft-hf suggest-labels`: lay out rows for people to label."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, Value

from saft_hf.cli.arguments import parse
from saft_hf.cli.pipeline import load_and_fit, output_folder
from saft_hf.cli.table import print_table
from saft_hf.decide.labelling import PURPOSE, Drawn, Purpose
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.files import replacing
from saft_hf.named import neutral

_SUFFIXES = (".jsonl", ".csv")


def run(argv: Sequence[str]) -> None:
    """Fit or load a scorer, choose rows, write them with an empty label column.

    Raises:
        SAFTInputError: the file's kind is unknown, or cannot hold the rows; or the file is there already.
    """
    # Where no decision can be taken, labels are what helps: that must not stop their draw.
    args = parse("suggest-labels", argv, {"on_undecided": "keep"})
    name, uniform, informative = args.labels_file, args.uniform, args.informative
    if Path(name).name != name or not name.endswith(_SUFFIXES):
        raise SAFTInputError(f"`--labels_file` must be a name that ends in {' or '.join(_SUFFIXES)}; found {name!r}.")
    target = output_folder(args) / name
    if target.exists():
        raise SAFTInputError(f"{target} is there already and may hold labels: give another `--labels_file`.")
    fitted = load_and_fit(args, read=("on_undecided", "threshold"))
    rows = fitted.scorer.suggest_labels(
        fitted.pool,
        uniform=uniform,
        informative=informative,
        kept_only=args.kept_only,
        threshold=args.threshold if args.scorer else None,
        seed=args.seed,
    )

    def save() -> None:
        _write(rows, target)
        drawn = "drawn from the rows kept at the threshold" if args.kept_only else "drawn at random"
        purposes = rows.with_format(None)[PURPOSE][:]
        odd, near = (purposes.count(str(Drawn(purpose))) for purpose in (Purpose.UNEXPLAINED, Purpose.INFORMATIVE))
        table = {drawn: uniform, "near the threshold": near}
        print_table(table | ({"above nearly all benign rows of the reference": odd} if odd else {}))
        fit = "" if args.kept_only else "`--labelled_name` to fit on it, or as "
        print(
            f"Fill in the column `is_harmful` of {target} (true or false), from the top. Then give the file as {fit}"
            "`--fresh_labels` to `saft-hf certify`: for one use alone. It holds the text of rows: keep it to yourself."
        )

    World().on_main("saving", save)


def _write(rows: Dataset, target: Path) -> None:
    nested = [name for name, feature in rows.features.items() if not isinstance(feature, Value | ClassLabel)]
    if target.suffix == ".csv" and nested:
        raise SAFTInputError(f"columns {nested} are no plain values, which a CSV cannot hold: use a `.jsonl` file.")
    with replacing(target) as [file]:
        if target.suffix == ".csv":
            # Quoted: a carriage return alone would end a line.
            _for_spreadsheets(rows).to_csv(file, quoting=csv.QUOTE_NONNUMERIC)
        else:
            rows.to_json(file)


def _for_spreadsheets(rows: Dataset) -> Dataset:
    """The same rows, without formulas."""
    text = [name for name, feature in rows.features.items() if feature.dtype in ("string", "large_string")]
    columns = rows.with_format(None)[:]
    columns |= {name: [neutral(cell) for cell in columns[name]] for name in text}
    safe = Dataset.from_dict(columns, features=rows.features)
    return safe.rename_columns({name: new for name in columns if (new := str(neutral(name))) != name})
