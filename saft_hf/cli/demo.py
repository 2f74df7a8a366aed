"""`saft-hf demo`: the whole way, on the rows and the model that ship with the package or on real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from saft_hf.assets import demo_folder, demo_rows_path
from saft_hf.cli.arguments import Arguments, parse
from saft_hf.cli.pipeline import filter_and_save
from saft_hf.cli.table import print_summary
from saft_hf.decide import resolve_label_column
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.hub import PICTURE
from saft_hf.result import FilterResult
from saft_hf.scorer.labels import labels_by_row

DEFAULTS = {
    "model_name_or_path": str(demo_folder()),
    "dataset_name": str(demo_rows_path()),
    "labelled_rows": 100,
    "output_dir": "saft_demo",
}


def run(argv: Sequence[str]) -> None:
    """Fit on 100 labels, filter, and compare with the other labels."""
    args = parse("demo", argv, DEFAULTS)
    if not (args.labelled_rows or args.labelled_name):
        raise SAFTInputError("the demo needs labels: give `--labelled_rows` or `--labelled_name`.")
    result, fitted = filter_and_save(args)
    if fitted.labelled is not None and World().is_main:
        print(f"SAFT on {len(fitted.pool)} rows, {len(fitted.labelled)} of them labelled at random:")
        quality = _quality(result, fitted.pool, fitted.labelled, args)
        print_summary(result.summary, **quality)
        print(_where_next(Path(args.output_dir or "")))


def _where_next(folder: Path) -> str:
    drawn = (folder / PICTURE).exists()
    return f"""
Look at
  {folder / "audit.parquet"}: for each row its score, what was decided, and why
  {folder / "kept"}: the rows to train on (load_dataset, trl sft --dataset_name)
  {folder / PICTURE}: {"how the scores lie" if drawn else "not drawn; pip install 'saft-hf[plots]' draws it"}
Next, with your own rows and the model that you will tune
  saft-hf filter --model_name_or_path MODEL --dataset_name rows.jsonl --labelled_name labelled.jsonl --output_dir out"""


def _quality(result: FilterResult, pool: Dataset, labelled: Dataset, args: Arguments) -> dict[str, str]:
    """How well removal agrees with the labels of the rows that were not used for fitting."""
    column = resolve_label_column(labelled.column_names, args.label_column)
    if column not in pool.column_names:
        return {}
    used, known = {str(row) for row in labelled}, labels_by_row(pool, column, args.harmful_value)
    fresh = [row for row in known if str(pool[row]) not in used and not np.isnan(result.scores[row])]
    harmful = np.array([known[row] for row in fresh], dtype=np.bool_)
    removed = np.isin(fresh, result.removed_indices)
    if harmful.all() or not harmful.any():
        return {}
    return {
        "on the other labels": f"{len(harmful)} rows, {harmful.mean():.1%} harmful",
        "still harmful among kept": f"{harmful[~removed].mean():.1%}" if not removed.all() else "nothing is kept",
        "precision": f"{precision_score(harmful, removed, zero_division=0):.3f}",
        "recall": f"{recall_score(harmful, removed):.3f}",
        "AUROC": f"{roc_auc_score(harmful, result.scores[fresh]):.3f}",
    }
