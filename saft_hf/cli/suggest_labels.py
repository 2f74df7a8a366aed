"""`saft-hf suggest-labels`: lay out rows for people to label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, Value

from saft_hf.cli.arguments import SuggestArguments, parse_with
from saft_hf.cli.data import load_pool_and_labels
from saft_hf.cli.pipeline import fitted_scorer, output_folder, print_table
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.files import replacing

_KINDS = (".jsonl", ".csv")


def run(argv: Sequence[str]) -> None:
    """Fit or load a scorer, choose rows, write them with an empty label column.

    Raises:
        SAFTInputError: the file's kind is unknown, or cannot hold the rows; or the file is there already.
    """
    # Where no decision can be taken, labels are what helps: that must not stop their draw.
    arguments, own = parse_with("suggest-labels", argv, SuggestArguments, {"on_undecided": "keep"})
    _, dataset, _, output = arguments
    if Path(own.labels_file).name != own.labels_file or not own.labels_file.endswith(_KINDS):
        raise SAFTInputError(
            f"`--labels_file` must be a name that ends in {' or '.join(_KINDS)}; found {own.labels_file!r}."
        )
    folder = output_folder(output)
    target = folder / own.labels_file
    if target.exists():
        raise SAFTInputError(f"{target} is there already and may hold labels: give another `--labels_file`.")
    world = World()
    pool, labelled = load_pool_and_labels(dataset)
    scorer = fitted_scorer(arguments, pool, labelled)
    rows = scorer.suggest_labels(pool, uniform=own.uniform, informative=own.informative, seed=dataset.seed)
    with world.sync_errors("saving"):
        if not world.is_main:
            return
        _write(rows, target)
        print_table({"drawn at random": own.uniform, "near the threshold": own.informative})
        print(
            f"Fill in the column `is_harmful` of {target} (true or false), from the top. Then give the file as "
            "`--labelled_name` to fit on it, or as `--fresh_labels` to `saft-hf certify`: not to both. It holds the "
            "text of rows: keep it to yourself."
        )


def _write(rows: Dataset, target: Path) -> None:
    if target.suffix == ".jsonl":
        with replacing(target) as [file]:
            rows.to_json(file)
        return
    nested = [name for name, feature in rows.features.items() if not isinstance(feature, Value | ClassLabel)]
    if nested:
        raise SAFTInputError(f"columns {nested} are no plain values, which a CSV cannot hold: use a `.jsonl` file.")
    with replacing(target) as [file]:
        rows.to_csv(file)
