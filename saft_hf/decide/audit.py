"""The audit file: for every row, what it was, its score, what was decided and why."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from saft_hf.decide.filtering import CODES, Decisions
from saft_hf.decide.labels import RowLabel
from saft_hf.decide.threshold import count_above
from saft_hf.errors import SAFTInputError
from saft_hf.files import replacing

_ADDED = "saft_"  # columns that saft_hf adds start so; they are no part of a row's digest

_TYPES = {"row_index": pa.int64(), "sha256": pa.string(), "saft_score": pa.float32()}
_TYPES |= dict.fromkeys(("saft_status", "decision", "reason"), pa.string())
_MAYBE = {"threshold": pa.float64(), "distance": pa.float64(), "rank": pa.int64()}
_MAYBE |= dict.fromkeys(("label", "label_from"), pa.string())
_TYPES |= {**_MAYBE, "source": pa.string()}
_NULLABLE = ("saft_score", "saft_status", *_MAYBE)
_SCHEMA = pa.schema([pa.field(name, kind, nullable=name in _NULLABLE) for name, kind in _TYPES.items()])
_CHUNK_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class AuditDigests:
    """SHA-256 of what an audit was written from, hexadecimal.

    Attributes:
        input_sha256: of the digests of all rows, in order, as one text.
        kept_sha256: of those of the rows to train on, likewise.
        decisions_sha256: of the decisions' codes and of whether errored rows are trained on.
        demonstrations_sha256: of the digests of the demonstrations, as one text; None where there are none.
    """

    input_sha256: str
    kept_sha256: str
    decisions_sha256: str
    demonstrations_sha256: str | None = None


def write_audit(
    path: str | Path,
    rows: Iterable[Mapping[str, Any] | Iterable[Mapping[str, Any]]],
    scores: ArrayLike,
    status: Sequence[str],
    decisions: Decisions,
    labels: Mapping[int, RowLabel] | None = None,
    *,
    demonstrations: Sequence[Mapping[str, Any]] = (),
    metadata: Callable[[AuditDigests], Mapping[str, str]] | None = None,
) -> AuditDigests:
    """Write the audit file, parquet, in chunks: memory does not grow with what the rows hold.

    Columns: `row_index` (position in the input), `sha256` (`row_digest` of the row), `saft_score` (null where there is
    none), `saft_status`, `decision` (kept, removed, errored), `reason`; and where there are such: the `threshold` of
    the row, its `distance` to it (the score less the threshold), its `rank` among the scores (1 is the highest; equal
    ones share one), and the `label` that people gave it (harmful, harmless, both) with `label_from` (fit, column,
    mark); and `source`: `input`. Below the input stand the demonstrations: `row_index` counts them, `decision` is
    `added`, `source` `demonstration`. The text of rows is not in it.

    Args:
        path: the file; its folder must exist. An existing file is replaced when the new one is whole.
        rows: the input's rows in order, read once: single rows, such as a dataset itself, or lists of rows.
        scores: scores, [N], NaN where there is none.
        status: statuses, [N].
        decisions: the decisions for the same N rows.
        labels: row -> what people said of it, whether that decided it or not.
        demonstrations: rows that are mixed into those to train on, and are none of the input.
        metadata: the digests -> what goes into the parquet schema's metadata, key -> text.

    Raises:
        SAFTInputError: fewer or more rows than decisions, or a row that has no canonical form.
        OSError: the file cannot be written: no permission, disk full.
    """
    values, total = np.asarray(scores, dtype=np.float32), len(decisions)
    if values.shape != (total,) or len(status) != total:
        both = f"{values.shape} and {len(status)}"
        raise SAFTInputError(f"{total} decisions need as many scores and statuses; found {both}")
    stream, labels = _one_by_one(rows), labels or {}
    limits = np.full(total, np.nan) if decisions.threshold is None else np.broadcast_to(decisions.threshold, total)
    ranks = ranks_of(values)
    trained = np.isin(np.arange(total), decisions.train_rows())
    of_input, of_kept = hashlib.sha256(), hashlib.sha256()
    # Without Arrow's own copy of the schema, which is written first and would hide metadata that come last.
    with replacing(Path(path)) as (file,), pq.ParquetWriter(file, _SCHEMA, store_schema=False) as writer:
        for start in range(0, total, _CHUNK_ROWS):
            stop = min(start + _CHUNK_ROWS, total)
            digests = [row_digest(row) for row in islice(stream, stop - start)]
            if len(digests) < stop - start:
                raise SAFTInputError(f"the data has {start + len(digests)} rows, the decisions {total}")
            of_input.update("".join(digests).encode())
            of_kept.update("".join(compress(digests, trained[start:stop])).encode())
            given = [labels.get(row) for row in range(start, stop)]
            columns = [
                pa.array(np.arange(start, stop)),
                pa.array(digests),
                pa.array(values[start:stop], mask=np.isnan(values[start:stop])),
                pa.array([str(each) for each in status[start:stop]]),
                pa.array(decisions.words(start, stop)),
                pa.array(list(decisions.reasons[start:stop])),
                _nullable(limits[start:stop]),
                _nullable(values[start:stop] - limits[start:stop]),
                pa.array(ranks[start:stop], mask=ranks[start:stop] == 0),
                pa.array([None if label is None else str(label) for label in given], pa.string()),
                pa.array([None if label is None else label.source.value for label in given], pa.string()),
                pa.array(["input"] * (stop - start)),
            ]
            writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
        if next(stream, None) is not None:
            raise SAFTInputError(f"the data has more rows than the decisions, {total}")
        of_decisions = hashlib.sha256(decisions.codes.tobytes() + bytes([decisions.train_on_errored]))
        added = [row_digest(row) for row in demonstrations]
        words = {"decision": "added", "reason": "demonstration", "source": "demonstration"}
        lines = [{"row_index": number, "sha256": digest, **words} for number, digest in enumerate(added)]
        writer.write_table(pa.Table.from_pylist(lines, schema=_SCHEMA))
        digests_of_all = AuditDigests(
            input_sha256=of_input.hexdigest(),
            kept_sha256=of_kept.hexdigest(),
            decisions_sha256=of_decisions.hexdigest(),
            demonstrations_sha256=rows_digest(demonstrations) if added else None,
        )
        if metadata is not None:  # in the footer, which is written last: the rows are known by then
            writer.add_key_value_metadata(dict(metadata(digests_of_all)))
    return digests_of_all


def rows_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of the digests of rows, in order, as one text."""
    return hashlib.sha256("".join(map(row_digest, rows)).encode()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Audit:
    """What an audit file says of each row.

    Attributes:
        digests: `row_digest` of each, [N].
        scores: `float32 [N]`, NaN where there is none.
        statuses: [N].
        decisions: as they were written, but for `train_on_errored`, which is not in the file.
        labels: row -> what people said of it.
    """

    digests: list[str]
    scores: NDArray[np.float32]
    statuses: list[str]
    decisions: Decisions
    labels: dict[int, RowLabel]


def read_audit(path: str | Path) -> Audit:
    """Read what `write_audit` wrote.

    Raises:
        SAFTInputError: the file is damaged, or another one.
        OSError: it cannot be read.
    """
    try:
        table = pq.read_table(path, schema=_SCHEMA)
        table = table.filter(pc.equal(table["source"], "input"))
        columns = {name: table[name].to_pylist() for name in ("sha256", "saft_status", "reason", "label", "label_from")}
        codes = {word.value: code for code, word in enumerate(CODES)}
        limits = table["threshold"].to_numpy()
        one = None if np.isnan(limits).all() else float(limits[0]) if (limits == limits[0]).all() else limits
        return Audit(
            digests=columns["sha256"],
            scores=table["saft_score"].to_numpy(),
            statuses=columns["saft_status"],
            decisions=Decisions(
                np.array([codes[word] for word in table["decision"].to_pylist()], dtype=np.int8),
                columns["reason"],
                threshold=one,
            ),
            labels={
                row: RowLabel.parse(word, source)
                for row, (word, source) in enumerate(zip(columns["label"], columns["label_from"], strict=True))
                if word is not None
            },
        )
    except (pa.ArrowInvalid, ValueError, KeyError) as error:
        raise SAFTInputError(
            f"{path} is no audit file of this version of saft_hf, or damaged ({error}): filter again."
        ) from error


def ranks_of(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many rows have a higher score, and one more; 0 where a row has no score."""
    ordered = np.sort(scores[~np.isnan(scores)])
    return np.where(np.isnan(scores), 0, 1 + count_above(ordered, scores))


def _nullable(values: NDArray[np.floating[Any]]) -> pa.Array:
    return pa.array(np.asarray(values, dtype=np.float64), mask=np.isnan(values))


def _one_by_one(rows: Iterable[Mapping[str, Any] | Iterable[Mapping[str, Any]]]) -> Iterator[Mapping[str, Any]]:
    for item in rows:
        yield from [item] if isinstance(item, Mapping) else item


def row_digest(row: Mapping[str, Any]) -> str:
    """SHA-256 of a row in canonical form, 64 hexadecimal digits: the same in every process and key order.

    The canonical form is JSON with sorted keys, no spaces and UTF-8, so that for strings, finite numbers, booleans,
    nulls, lists and dictionaries it is `json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)`.
    Other values are written as a dictionary whose only key starts with `$`: so a Decimal is not its text, and 1.5 is
    not 1.50, as in Arrow, where the places are part of the type. Columns that start with `saft_` are left out.

    Args:
        row: column -> value. Besides the JSON types: NaN and infinity, bytes, dates and times, Decimal, numpy scalars
            and arrays, torch tensors, PIL images.

    Raises:
        SAFTInputError: a value of another type; the error names the column.

    Examples:
        >>> row_digest({"prompt": "a", "n": 1}) == row_digest({"n": 1, "prompt": "a", "saft_score": 0.5})
        True
    """
    plain = {}
    for column, value in row.items():
        if not column.startswith(_ADDED):
            try:
                plain[column] = _canonical(value)
            except TypeError as error:
                raise SAFTInputError(
                    f"column {column!r} holds a value of type {error}, which has no canonical form for the audit file: "
                    f"drop it, or cast it to undecoded bytes, e.g. dataset.cast_column({column!r}, Audio(decode=False))"
                ) from error
    form = _dictionary(plain)
    text = json.dumps(form, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # Lone surrogates are no valid UTF-8; this keeps them apart from the characters they would form in pairs.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _dictionary(plain: dict[Any, Any]) -> Any:
    """A dictionary of canonical values; one that could be taken for a tagged value is tagged itself."""
    if all(isinstance(key, str) and not key.startswith("$") for key in plain):
        return plain
    pairs = [[_canonical(key), value] for key, value in plain.items()]
    return {"$dict": sorted(pairs, key=lambda pair: json.dumps(pair[0], sort_keys=True))}


def _canonical(value: Any) -> Any:
    """`value` as JSON types; TypeError with the name of the type where there is no way."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, Mapping):
        return _dictionary({key: _canonical(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, date | time):  # and datetime, which is a date
        return {"$time": value.isoformat()}
    if isinstance(value, timedelta):
        return {"$timedelta": [value.days, value.seconds, value.microseconds]}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "mM":
        return {f"${value.dtype}": value.astype(np.int64).tolist()}
    if hasattr(value, "tobytes") and hasattr(value, "mode") and hasattr(value, "size"):
        return {"$image": [value.mode, list(value.size), hashlib.sha256(value.tobytes()).hexdigest()]}
    if hasattr(value, "tolist"):
        items = value.tolist()
        # A number that Python cannot hold comes back as it is.
        if type(items) is not type(value):
            return _canonical(items)
    raise TypeError(type(value).__name__)
