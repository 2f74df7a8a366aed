"""The labelled rows of a command: named, or drawn."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from datasets import Dataset

from saft_hf.columns import AS_IS, Layout
from saft_hf.decide import resolve_label_column
from saft_hf.decide.marks import is_marks_file
from saft_hf.errors import SAFTInputError
from saft_hf.named import NamedDataset
from saft_hf.scorer.labels import labelled_rows, marked_rows

logger = logging.getLogger(__name__)


def labelled_of(
    rows: Any,
    name: str | None,
    count: int | None,
    *,
    seed: int,
    label_column: str | None = None,
    split: str = "train",
    columns: Layout = AS_IS,
) -> Dataset | None:
    """The labelled rows: of the dataset, or the marks, `name`; or `count` of all with a label, drawn at random.

    Returns:
        The rows; None where neither is asked for.

    Raises:
        SAFTInputError: both are asked for, or more than there are; or no column holds labels.
    """
    if name and count:
        raise SAFTInputError("give `--labelled_name` or `--labelled_rows`, not both.")
    if name:
        return labels_in(name, split, columns, pool=rows)
    if not count:
        return None
    if not isinstance(rows, Dataset):
        raise SAFTInputError(
            f"`--labelled_rows`={count}: a stream has no rows to draw from. Name labelled rows with `--labelled_name`."
        )
    have = labelled_rows(rows, resolve_label_column(rows.column_names, label_column))
    if not 0 < count <= len(have):
        raise SAFTInputError(f"`--labelled_rows` must be 1 to {len(have)}, the rows that have a label, not {count}.")
    if len(have) < len(rows):
        logger.warning(
            "Only %d of %d rows have a label to draw from. Unless they were drawn at random, say `--label_sampling "
            "other` (`saft-hf sft`: `--saft_label_sampling other`).",
            len(have),
            len(rows),
        )
    drawn = rows.select(have).shuffle(seed=seed).select(range(count))
    return cast(Dataset, drawn)


def labels_in(name: str, split: str, columns: Layout = AS_IS, *, pool: Any = None, certify: bool = False) -> Dataset:
    """Labelled rows by name, with the columns of the pool: of its split, too, where there are several.

    Args:
        name: of a dataset, or of a file of marks.
        split: of the pool.
        columns: of the pool.
        pool: the rows that marks are of.
        certify: whether the labels are for a certificate, see `marked_rows`.

    Raises:
        SAFTInputError: they cannot be read, or marks are not of the pool.
    """
    if is_marks_file(Path(name)):
        if not isinstance(pool, Dataset):
            raise SAFTInputError(f"{name} holds marks, which go with rows that were reviewed, and these are a stream.")
        return marked_rows(name, pool, certify=certify)
    named = NamedDataset(name, columns=columns)
    return (named if named.is_one_table else replace(named, split=split)).load()
