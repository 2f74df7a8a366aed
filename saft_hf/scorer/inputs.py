"""Checks of what users hand in, before anything is loaded."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, IterableDataset
from datasets.formatting.formatting import LazyBatch, LazyRow
from numpy.typing import NDArray

from saft_hf.decide.labels import named
from saft_hf.errors import SAFTInputError
from saft_hf.render import Columns, Renderer
from saft_hf.render.rows import CHAT_COLUMNS, TOKEN_COLUMNS
from saft_hf.status import RowStatus

logger = logging.getLogger(__name__)

SCORE, STATUS, PROBABILITY, DRIFT = "saft_score", "saft_status", "saft_probability", "saft_drift"

_SAMPLE = 64


def check_dataset(dataset: Any) -> None:
    """Refuse what is not a table of rows, or changes under our hands.

    Raises:
        SAFTInputError: a `DatasetDict`, a stream, an empty dataset, or one with a transform.
    """
    if isinstance(dataset, Mapping):
        raise SAFTInputError(f"one split is needed, not a dict of splits: choose one of {list(dataset)}.")
    if isinstance(dataset, IterableDataset):
        raise SAFTInputError(
            "a stream has no row numbers: use `stream.map(scorer, batched=True)`; `fit` takes a stream with "
            "`fit_rows=`."
        )
    if not isinstance(dataset, Dataset):
        raise SAFTInputError(f"a `datasets.Dataset` is needed, not {type(dataset).__name__}.")
    if len(dataset) == 0:
        raise SAFTInputError("the dataset is empty: there is no row to score.")
    if dataset.format["type"] == "custom":
        raise SAFTInputError(
            "the dataset has a transform (`with_transform`), which may give other rows each time it is read. Write its "
            "output with `map`, or take it off with `with_format(None)`."
        )


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse a value that an option does not know.

    Raises:
        SAFTInputError: it is none of the choices.
    """
    if value not in choices:
        raise SAFTInputError(f"`{name}` must be one of {list(choices)}, not {value!r}.")


def check_number(name: str, value: Any, *, whole: bool = False) -> None:
    """Refuse what is no number, such as text from a file of settings; None is no value.

    Raises:
        SAFTInputError: it is of another type.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral if whole else Real)):
        what = "a whole number" if whole else "a number"
        raise SAFTInputError(f"`{name}` must be {what}, not {value!r} ({type(value).__name__}).")
    if value is not None and not math.isfinite(value):
        raise SAFTInputError(f"`{name}` must be a finite number, not {value}.")


def classes_of(dataset: Dataset, column: str) -> Sequence[str]:
    """The names of the classes whose numbers a column holds; none where it holds something else."""
    feature = dataset.features[column]
    return feature.names if isinstance(feature, ClassLabel) else ()


def values_of(dataset: Dataset, column: str, argument: str, of: str = "the dataset") -> list[Any]:
    """The values of a column, in whatever format the dataset is, classes by their names.

    Args:
        dataset: the rows.
        column: the column.
        argument: that names it, for the error.
        of: what the rows are called there.

    Raises:
        SAFTInputError: the column is missing.
    """
    if column not in dataset.column_names:
        raise SAFTInputError(f"`{argument}`={column!r} is no column of {of}, which has {dataset.column_names}.")
    return named(dataset.with_format(None)[column], classes_of(dataset, column))


def as_pool(pool: Any, fit_rows: int | None) -> Dataset:
    """The rows to fit on: the first `fit_rows` of them, or all.

    Raises:
        SAFTInputError: as `check_dataset`; or a stream without `fit_rows`.
    """
    if fit_rows is not None and fit_rows < 2:
        raise SAFTInputError(f"`fit_rows` must be at least 2, not {fit_rows}.")
    if isinstance(pool, IterableDataset) and fit_rows is not None:
        pool = first_of(pool, fit_rows)
    check_dataset(pool)
    return pool if fit_rows is None or len(pool) <= fit_rows else pool.select(range(fit_rows))


def first_of(stream: IterableDataset, count: int | None) -> Dataset:
    """The first rows of a stream, or all of them; images and audio are not decoded."""
    table = next(iter(stream.with_format("arrow").iter(batch_size=count or sys.maxsize)), None)
    return Dataset.from_dict({}) if table is None else Dataset(table)


def without_scores(dataset: Any) -> Any:
    """Score columns that came with the data, or with a stream, are neither used nor handed on."""
    found = [name for name in (SCORE, STATUS, PROBABILITY) if name in (dataset.column_names or ())]
    return dataset.remove_columns(found) if found else dataset


def score_columns(scores: NDArray[np.float32], statuses: list[str], probabilities: Any) -> dict[str, Any]:
    """What a scorer adds to rows."""
    likely = {} if probabilities is None else {PROBABILITY: probabilities}
    return {SCORE: scores, **likely, STATUS: statuses}


def scores_in(dataset: Dataset) -> tuple[NDArray[np.float32], list[str], Any]:
    """What `score_columns` was given, from rows that bring it."""
    plain = dataset.with_format(None)
    likely = plain[PROBABILITY][:] if PROBABILITY in plain.column_names else None
    return np.asarray(plain[SCORE][:], dtype=np.float32), list(plain[STATUS]), likely


def limits_of(
    threshold: float | NDArray[np.float64], scores: NDArray[np.float32], probabilities: Any, *, of_probe: bool = False
) -> float | NDArray[np.float64]:
    """What each row is held to: a row that is unlike the reference, of probability NaN, is never removed by a probe.

    Args:
        threshold: rows above it are removed; or one for each row, -inf where none of its stratum is kept.
        scores: of the rows.
        probabilities: `saft_probability` of each row; None where the score is not a probe's.
        of_probe: whether the threshold is the probe's own, and no row goes that is as likely harmless.
    """
    if probabilities is None:
        return threshold
    likely = np.asarray(probabilities, dtype=np.float64)
    limits = np.where(likely <= 0.5, np.fmax(scores, threshold), threshold) if of_probe else threshold
    limits = np.where(np.isnan(likely) & ~np.isnan(scores) & (limits > -np.inf), np.inf, limits)
    # One number where that holds for every row: what was drawn by it can be certified.
    return threshold if np.array_equal(limits, np.broadcast_to(threshold, limits.shape)) else limits


def placed(scores: NDArray[np.float32], probabilities: Any) -> NDArray[np.float64]:
    """Scores as thresholds see them, `float64 [N]`: -inf for a row that is unlike the reference, which any keeps.

    Whatever the threshold, the rows that are kept are those up to it: they are nested, and no label has a part in it.
    """
    if probabilities is None:
        return scores.astype(np.float64)
    return np.where(np.isnan(probabilities) & ~np.isnan(scores), -np.inf, scores.astype(np.float64))


def with_columns(dataset: Dataset, **columns: Any) -> Dataset:
    """A dataset, in its format, with more columns. `add_column` alone may write all rows anew, decoded."""
    form, wide = dataset.format, dataset.with_format("arrow")
    for name, values in columns.items():
        wide = wide.add_column(name, values)
    shown = None if set(form["columns"]) == set(dataset.column_names) else [*form["columns"], *columns]
    return wide.with_format(form["type"], shown, form["output_all_columns"], **form["format_kwargs"])


def as_batch(batch: Any) -> Columns:
    """A batch in any format, as columns.

    Raises:
        SAFTInputError: it is a single row, a list of rows, or a dataset; or `Dataset.filter` wants a mask for it.
    """
    if isinstance(batch, Columns):
        return batch
    if not (isinstance(batch, Mapping | pa.Table) or hasattr(batch, "columns")):
        raise SAFTInputError(
            f"a batch is needed, column -> values, not {type(batch).__name__}: call `dataset.map(scorer, batched=True)`"
            " without `input_columns`, or `scorer.score_dataset(dataset)`; for single rows "
            "`scorer({column: [value, ...]})`, such as `scorer({'messages': [messages]})`."
        )
    caller = sys._getframe(2)
    if caller.f_globals.get("__name__", "").startswith("datasets.") and "mask" in caller.f_code.co_name:
        raise SAFTInputError(
            "`dataset.filter(scorer)` takes scores for a mask, and keeps rows at random: call `scorer.filter(dataset)`."
        )
    found: Iterable[str] = ()
    if isinstance(batch, LazyRow):
        found = batch
    elif isinstance(batch, Mapping) and not isinstance(batch, LazyBatch):
        found = (name for name, value in batch.items() if _is_of_one_row(name, value))
    if name := next(iter(found), None):
        raise SAFTInputError(
            f"column {name!r} holds one row, not a batch of them: call `map(scorer, batched=True)`; for a single row "
            "pass `{column: [value]}`."
        )
    return Columns(batch)


def in_form_of(batch: Any, new: dict[str, Any]) -> Any:
    """New columns as `map` needs them: a table, which replaces the rows that came, with theirs; else a dict."""
    if isinstance(batch, pa.Table):
        kept = batch.select([name for name in batch.column_names if name not in new])
        for name, values in new.items():
            kept = kept.append_column(name, pa.array(values))
        return kept
    if hasattr(batch, "with_columns"):  # polars
        return batch.with_columns(type(batch)(new).get_columns())
    return batch.assign(**new) if hasattr(batch, "assign") else new


def _is_of_one_row(name: str, value: Any) -> bool:
    """Whether a column is the value of one row, as far as that can be seen."""
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__"):
        return True
    first = next((item for item in value if item is not None), None)
    if name in TOKEN_COLUMNS:
        return first is not None and np.ndim(first) == 0
    return name in CHAT_COLUMNS and isinstance(first, Mapping) and any(isinstance(v, str) for v in first.values())


def why_unread(renderer: Renderer, dataset: Dataset, readouts: Sequence[str], row: int = 0) -> str:
    """Why a row that cannot be read at these readouts cannot, for people; the first one where none can."""
    (first,) = renderer(renderer.reads(dataset)[row : row + 1])
    if first.status is not RowStatus.OK:
        return f"Row {row} is {first.status.value}: {first.detail}."
    status = next((status for name in readouts if (status := first.status_for(name)) is not RowStatus.OK), None)
    if status is None:
        return f"Row {row} can be read, but its hidden state holds NaN or infinity."
    return (
        f"Row {row} is {status.value}. Plain text has no response start: use `readout='response_mean'`, or give "
        "`prompt` and `completion`, or `messages`."
    )


def has_boundary(renderer: Renderer, pool: Dataset) -> bool:
    """Whether rows tell where a response starts; plain text does not.

    Dialogues, and prompts with completions, do. Of other rows a few are rendered: tokens may bring a mask.
    """
    if renderer.formatting_func is None and {"messages", "conversations", "prompt"} & set(pool.column_names):
        return True
    rows = renderer.reads(pool)
    sample = [row for row in renderer(rows[: min(_SAMPLE, len(rows))]) if row.status is RowStatus.OK]
    if sample and not any(row.boundary for row in sample):
        logger.warning(
            "The rows are plain text: where the response starts is not known, so `response_mean` over the whole "
            "text is read in place of `response_start`."
        )
        return False
    return True
