"""The page: one HTML file with its style, its script and the rows that it shows, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from numpy.typing import NDArray

from saft_hf.decide import Decisions, RowLabel, row_digest
from saft_hf.decide.audit import ranks_of
from saft_hf.decide.labelling import Drawn, Purpose
from saft_hf.decide.marks import Mark, MarkWord, check_marks
from saft_hf.errors import SAFTInputError
from saft_hf.records import to_plain
from saft_hf.review.choose import Table, choose_tables, drawn_as
from saft_hf.review.points import HEIGHT, WIDTH, draw_histogram
from saft_hf.summary import Summary

T = TypeVar("T")

_HERE = Path(__file__).resolve().parent
_LONGEST = 20_000  # signs of one text
_CHUNK = 250  # rows whose text the browser reads at once
_BATCH = 1000
_GROUP = "source"
_RANDOM_KEPT = "Random kept"


@dataclass(frozen=True, slots=True, eq=False)
class Reviewed:
    """A filtered dataset, as a page shows it.

    Attributes:
        rows: positions -> the rows there, column -> value.
        scores: of all rows, `float32 [N]`, NaN where there is none.
        statuses: of all rows, [N].
        decisions: of all rows.
        labels: row -> what people said of it.
        summary: of the filter.
        input_sha256: names the rows.
    """

    rows: Callable[[Sequence[int]], list[dict[str, Any]]]
    scores: NDArray[np.float32]
    statuses: Sequence[str]
    decisions: Decisions
    labels: Mapping[int, RowLabel]
    summary: Summary
    input_sha256: str


def review_page(
    result: Reviewed,
    *,
    marks: Sequence[Mark] = (),
    by: str | None = None,
    size: int = 100,
    every_row: bool = False,
    seed: int = 0,
) -> str:
    """Make the page. The same arguments give the same bytes.

    Args:
        result: what is reviewed.
        marks: made on an earlier page of the same rows: shown, and those on rows drawn at random bound the share that
            is left.
        by: the column whose values rows can be told apart by, beside all that are in them; by default the one that
            the filter was given, or `source` where there is such a column.
        size: rows of a table, at most.
        every_row: all rows are in the page.
        seed: of the rows drawn at random.

    Raises:
        SAFTInputError: marks of other rows, an unknown column, or a number out of range.
    """
    if size < 1:
        raise SAFTInputError(f"the number of rows in a table must be 1 or more; found {size}")
    scores = result.scores.astype(np.float64)
    tables = choose_tables(scores, result.decisions, result.labels, size=size, seed=seed, every_row=every_row)
    check_marks(marks, len(scores), result.rows)
    if marked := [mark.row for mark in marks if mark.word]:
        tables.append(Table("Marked before", "Marks of the file that was given.", np.array(marked, dtype=np.int64)))
    shown = np.unique(np.concatenate([table.rows for table in tables])).tolist()
    rows, texts, columns = _rows(result, shown, next(t.rows for t in tables if t.name == _RANDOM_KEPT).tolist())
    position = {row: at for at, row in enumerate(shown)}
    histogram = draw_histogram(scores, result.decisions, result.summary, result.labels, marks)
    data = {
        "rows": rows,
        "columns": columns,
        "by": by or (next(iter(result.summary.by), None)) or (_GROUP if _GROUP in columns else None),
        "tables": [{**asdict(table), "rows": [position[row] for row in table.rows.tolist()]} for table in tables],
        "points": [] if histogram is None else [asdict(point) for point in histogram.points],
        "current": 0 if histogram is None else histogram.current,
        "marks": {str(position[mark.row]): mark.word for mark in marks if mark.word},
        "words": [word.value for word in MarkWord],
        "chunk": _CHUNK,
    }
    if by is not None and by not in columns:
        raise SAFTInputError(f"`by`={by!r} is no column of the rows, which have {columns}.")
    script = (_HERE / "review.js").read_text(encoding="utf-8")
    page = _environment().get_template("review.html.jinja")
    return page.render(
        summary=result.summary,
        provenance=to_plain(result.summary.provenance) or {},
        reasons=[
            (word, reason, count) for word, found in result.summary.reasons.items() for reason, count in found.items()
        ],
        histogram=histogram,
        width=WIDTH,
        height=HEIGHT,
        data=_json(data),
        texts=[_json(chunk) for chunk in _slices(texts, _CHUNK)],
        key=hashlib.sha256((result.input_sha256 + _json({**data, "points": []})).encode()).hexdigest(),
        style=(_HERE / "review.css").read_text(encoding="utf-8"),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _rows(
    result: Reviewed, shown: Sequence[int], uniform: list[int]
) -> tuple[list[dict[str, Any]], list[list[tuple[str, str, str]]], list[str]]:
    """What the page knows of each row that it shows; their texts; and the columns that there are."""
    decisions, scores = result.decisions, result.scores
    ranks = ranks_of(scores)
    limits = np.broadcast_to(np.nan if decisions.threshold is None else decisions.threshold, len(decisions))
    order = {row: at for at, row in enumerate(uniform)}
    known: list[dict[str, Any]] = []
    texts: list[list[tuple[str, str, str]]] = []
    columns: dict[str, None] = {}
    for batch in _slices(shown, _BATCH):
        for row, content in zip(batch, result.rows(batch), strict=True):
            score, scored = float(scores[row]), not np.isnan(scores[row])
            drawn = drawn_as(decisions) if row in order else Drawn(Purpose.INFORMATIVE)
            known.append(
                {
                    "row": row,
                    "sha256": row_digest(content),
                    "score": f"{score:.4g}" if scored else "",
                    "distance": f"{score - limits[row]:+.3g}" if scored and not np.isnan(limits[row]) else "",
                    "rank": int(ranks[row]) or None,
                    "decision": decisions.words(row, row + 1)[0],
                    "reason": decisions.reasons[row],
                    "label": str(result.labels[row]) if row in result.labels else "",
                    "purpose": str(drawn),
                    "order": order.get(row),
                }
            )
            texts.append(_parts(content))
            columns |= dict.fromkeys(name for name, _, _ in texts[-1])
    return known, texts, list(columns)


def _slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _parts(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What a row holds, for people: column, heading and text of each part."""
    parts: list[tuple[str, str, str]] = []
    for column, value in row.items():
        if value is None or column.startswith("saft_"):
            continue
        turns = value if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value) else []
        spoken = [(turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))) for turn in turns]
        if spoken and all(isinstance(who, str) for who, _ in spoken):
            parts += [(column, who, _text(said)) for who, said in spoken]
        else:
            parts.append((column, column, _text(value)))
    return parts


def _text(value: Any) -> str:
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=lambda thing: f"<{type(thing).__name__}>")
    more = f" … ({len(value)} signs in all)" if len(value) > _LONGEST else ""
    return str(value)[:_LONGEST] + more


def _json(value: Any) -> str:
    """JSON that can stand in a page: nothing in it ends the script element that it is in."""
    return str(htmlsafe_json_dumps(value, dumps=_compact))


def _compact(value: Any, **_: Any) -> str:
    # Lone surrogates cannot be written as UTF-8: escape everything that is not ASCII.
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
