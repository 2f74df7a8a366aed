"""Records to JSON and back: what was written comes back equal, everything else is a ValueError that names the field."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saft_hf import summary
from saft_hf.records import MAX_ITEMS, MAX_NUMBER, MAX_TEXT, Digest, Matching, Name, Share, from_plain, to_plain
from saft_hf.status import RowStatus
from saft_hf.summary import FitMetrics, LabelCounts, PoolCounts, Provenance, Summary, public_name

RECORDS = [kind for kind in vars(summary).values() if isinstance(kind, type) and is_dataclass(kind)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@cache
def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type of a record's field, within its bounds."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated and isinstance(args[1], Matching):
        return st.from_regex(args[1].pattern, fullmatch=True)
    if origin is Annotated:
        number = st.integers if args[0] is int else st.floats
        return number(args[1].low, args[1].high)
    if is_dataclass(kind):
        return st.builds(
            kind, **{name: values(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}
        )
    if origin is dict:
        return st.dictionaries(values(args[0]), values(args[1]), max_size=2)
    if origin is tuple:
        return st.lists(values(args[0]), max_size=2).map(tuple)
    if origin in (Union, UnionType):
        return st.one_of([values(arg) for arg in args])
    if kind is Any:  # such as an option of a run
        return st.integers(-MAX_NUMBER, MAX_NUMBER) | TEXT
    simple = {str: TEXT, float: st.floats(allow_nan=False, allow_infinity=False), NoneType: st.none()}
    simple[int] = st.integers(-MAX_NUMBER, MAX_NUMBER)
    return simple[kind] if kind in simple else st.from_type(kind)


TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=5)


@dataclass(frozen=True)
class Mixed:
    word: str
    number: float
    count: int | None = None
    status: RowStatus = RowStatus.OK
    pair: tuple[int, str] = (0, "")
    many: tuple[float, ...] = ()
    nested: dict[str, dict[str, int]] = field(default_factory=dict)
    value: str | int | bool | None = None
    share: Share = 0.5
    many_shares: dict[Name, Share | None] = field(default_factory=dict)
    digest: Digest = "0" * 64


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_record_comes_back_from_json_as_it_went_in(kind: Any, data: st.DataObject) -> None:
    record = data.draw(values(kind))
    text = json.dumps(to_plain(record), allow_nan=False)
    assert from_plain(kind, json.loads(text)) == record


@given(plain=JSON)
def test_whatever_json_holds_is_read_or_refused_by_name(plain: Any) -> None:
    for kind in (Mixed, FitMetrics):
        with suppress(ValueError):  # any other error is a defect
            assert isinstance(from_plain(kind, plain), kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word": 1}, "word: a int, not str"),
        ({"number": "1"}, "number: a str, not float"),
        ({"number": True}, "number: a bool, not float"),
        ({"number": float("nan")}, "number: not finite"),
        ({"count": True}, "count: a bool, not int"),
        ({"count": 1.0}, "count: a float, not int"),
        ({"status": "fine"}, "'fine' is not a valid RowStatus"),
        ({"pair": [1]}, "pair: 1 entries, not 2"),
        ({"many": [1.0, None]}, r"many\[1\]: a NoneType, not float"),
        ({"nested": {"a": {"b": "c"}}}, r"nested.a.b: a str, not int"),
        ({"word": "x" * (MAX_TEXT + 1)}, "longer than"),
        ({"many": [0.0] * (MAX_ITEMS + 1)}, "at most"),
        ({"other": 1}, "an unknown field 'other'"),
        ({"word": None}, "word: a NoneType, not str"),
        ({"word": "a\x1b[2J"}, "word: .*cannot be printed"),
        ({"word": "\ud800"}, "word: .*cannot be printed"),
        ({"count": 10**30}, r"count: 1000\d+, not a number up to"),
        ({"number": -(10**400)}, r"number: -1000\d+, not a number up to"),
        ({"share": 1.01}, "share: 1.01, not between"),
        ({"share": -1}, "share: -1.0, not between"),
        ({"many_shares": {"f1": None, "f2": 2.0}}, r"many_shares.f2: 2.0, not between"),
        ({"many_shares": {"Certified: no harm": 1.0}}, r"many_shares: 'Certified: no harm', not of the form"),
        ({"digest": "../../etc"}, "digest: '../../etc', not of the form"),
        ({"status": "fine"}, "status: 'fine'"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str) -> None:
    plain = {**to_plain(Mixed("a", 1.0)), **change}
    with pytest.raises(ValueError, match=message):
        from_plain(Mixed, plain)


def test_a_missing_field_is_named_and_whole_numbers_are_numbers() -> None:
    with pytest.raises(ValueError, match="number"):
        from_plain(Mixed, {"word": "a"})
    read = from_plain(Mixed, {"word": "a", "number": 1, "value": True})
    assert read == Mixed("a", 1.0, value=True)
    assert type(read.number) is float
    assert read.value is True


def test_what_others_see_names_no_folder_of_this_machine(tmp_path: Any) -> None:
    known = Provenance(
        created="2026-01-01T00:00:00+00:00", input=str(tmp_path), model="me/model", options={"cache_dir": "/x", "k": 2}
    )
    shown = Summary(provenance=known).public()
    assert shown.provenance is not None
    assert (shown.provenance.input, shown.provenance.model, shown.provenance.options) == (None, "me/model", {"k": 2})
    assert Summary().public() == Summary()
    assert [public_name(name) for name in ("me/model", "gpt2", str(tmp_path), "a/b/c", None)] == [
        "me/model",
        "gpt2",
        None,
        None,
        None,
    ]


def test_a_summary_says_what_its_parts_say() -> None:
    fit = FitMetrics(
        pool=PoolCounts(rows=2, scored=2, unique=2),
        labels=LabelCounts(rows=4, harmful=1, column="is_safe"),
        notes=("a",),
    )
    whole = Summary(
        fit=fit,
        rows=4,
        removed=1,
        leverage=summary.Leverage(
            top_row_share=1.0, top_copies_share=1.0, top_copies=1, warn_above=0.2, warnings=("b",)
        ),
    )
    assert (whole.notes, whole.warnings) == (("a",), ("b",))
    assert str(fit.labels) == "1 of 4 labelled rows are harmful"
    assert json.loads(json.dumps(whole.to_dict()))["fit"]["pool"]["rows"] == 2
