"""`saft-hf demo`: the whole way, on the rows and the model that ship with the package or on real ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from saft_hf.assets import demo_folder, demo_rows_path
from saft_hf.cli.arguments import DatasetArguments, parse
from saft_hf.cli.pipeline import count_lines, filter_and_save, fit_lines, print_table
from saft_hf.decide import read_labels, resolve_label_column
from saft_hf.distributed import World
from saft_hf.errors import SAFTInputError
from saft_hf.result import FilterResult

DEFAULTS = {
    "model_name_or_path": str(demo_folder()),
    "dataset_name": str(demo_rows_path()),
    "labelled_rows": 100,
    "output_dir": "saft_demo",
}


def run(argv: Sequence[str]) -> None:
    """Fit on 100 labels, filter, and compare with the other labels."""
    arguments = parse("demo", argv, DEFAULTS)
    dataset = arguments[1]
    if not (dataset.labelled_rows or dataset.labelled_name):
        raise SAFTInputError("the demo needs labels: give `--labelled_rows` or `--labelled_name`.")
    result, scorer, pool, labelled = filter_and_save(arguments)
    if labelled is not None and World().is_main:
        print(f"SAFT on {len(pool)} rows, {len(labelled)} of them labelled at random:")
        quality = _quality(result, pool, labelled, dataset)
        print_table({**fit_lines(scorer), **quality, "files": arguments[3].output_dir})


def _quality(result: FilterResult, pool: Dataset, labelled: Dataset, arguments: DatasetArguments) -> dict[str, object]:
    """Counts, and how well removal agrees with the labels of the rows that were not used for fitting."""
    counts = count_lines(result)
    column = resolve_label_column(labelled.column_names, arguments.label_column)
    if column not in pool.column_names:
        return counts
    used = {str(row) for row in labelled}
    fresh = np.asarray([str(row) not in used for row in pool]) & ~np.isnan(result.scores)
    harmful: NDArray[np.bool_] = read_labels(pool[column], column, arguments.harmful_value)[fresh]
    removed = np.isin(np.arange(len(pool)), result.removed_indices)[fresh]
    if harmful.all() or not harmful.any():
        return counts
    return {
        **counts,
        "on the other labels": f"{len(harmful)} rows, {harmful.mean():.1%} harmful",
        "still harmful among kept": f"{harmful[~removed].mean():.1%}" if not removed.all() else "nothing is kept",
        "precision": f"{precision_score(harmful, removed, zero_division=0):.3f}",
        "recall": f"{recall_score(harmful, removed):.3f}",
        "AUROC": f"{roc_auc_score(harmful, result.scores[fresh]):.3f}",
    }
