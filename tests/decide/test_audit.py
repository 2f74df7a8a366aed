"""The audit file: complete, whole or absent; digests that tell rows apart."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saft_hf.decide import LabelSource, RowLabel, audit, decide, read_audit, row_digest, write_audit
from saft_hf.errors import SAFTInputError

NAN = float("nan")


def case(n: int) -> tuple[list[dict[str, Any]], np.ndarray, list[str]]:
    rows = [{"prompt": f"row {i}", "n": i} for i in range(n)]
    scores = np.array([NAN if i % 5 == 4 else i / 3 for i in range(n)], dtype=np.float32)
    return rows, scores, ["truncated" if i % 5 == 4 else "ok" for i in range(n)]


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.smoke
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("batched", [False, True])
def test_every_row_is_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, batched: bool) -> None:
    monkeypatch.setattr(audit, "_CHUNK_ROWS", chunk)
    rows, scores, status = case(14)
    decisions = decide(scores, status, 2.0, labels={0: True})
    labels = {
        0: RowLabel(True, LabelSource.FIT),
        5: RowLabel(None, LabelSource.FIT),
        9: RowLabel(False, LabelSource.MARK),
    }
    path = tmp_path / "audit.parquet"
    write_audit(path, [rows[:5], rows[5:]] if batched else iter(rows), scores, status, decisions, labels)
    table = pq.read_table(path)
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("row_index", "int64"),
        ("sha256", "string"),
        ("saft_score", "float"),
        ("saft_status", "string"),
        ("decision", "string"),
        ("reason", "string"),
        ("threshold", "double"),
        ("distance", "double"),
        ("rank", "int64"),
        ("label", "string"),
        ("label_from", "string"),
        ("source", "string"),
    ]
    found = table.to_pydict()
    assert found["row_index"] == list(range(14))
    assert found["sha256"] == [row_digest(row) for row in rows]
    assert found["saft_score"] == [None if np.isnan(score) else score for score in scores.tolist()]
    assert found["saft_status"] == status
    assert found["decision"] == decisions.words()
    assert found["reason"] == list(decisions.reasons)
    assert found["threshold"] == [2.0] * 14
    assert found["distance"] == [None if np.isnan(score) else float(score) - 2.0 for score in scores]
    assert [found["label"][row] for row in (0, 5, 9, 1)] == ["harmful", "both", "harmless", None]
    assert [found["label_from"][row] for row in (0, 5, 9, 1)] == ["fit", "fit", "mark", None]
    assert names_in(tmp_path) == ["audit.parquet"]


@given(scores=st.lists(st.sampled_from([0.0, 0.5, 0.5, 1.0, NAN, -3.0]), min_size=1, max_size=12), data=st.data())
@settings(max_examples=60, deadline=None)
def test_an_audit_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float], data: st.DataObject
) -> None:
    n, status = len(scores), ["packed" if np.isnan(score) else "ok" for score in scores]
    one = st.sampled_from([-0.5, 0.5, -math.inf])
    limit = data.draw(st.one_of(st.none(), st.just(0.5), st.lists(one, min_size=n, max_size=n).map(np.array)))
    harmful = data.draw(st.dictionaries(st.integers(0, n - 1), st.sampled_from([True, False, None])))
    labels = {row: RowLabel(word, LabelSource.COLUMN) for row, word in harmful.items()}
    deciding = {row: word for row, word in harmful.items() if word is not None}
    decisions = decide(scores, status, limit, labels=deciding)
    path = tmp_path_factory.mktemp("audit") / "audit.parquet"
    write_audit(path, ({"n": i} for i in range(n)), scores, status, decisions, labels)
    got = read_audit(path)
    assert np.array_equal(got.scores, np.float32(scores), equal_nan=True)
    assert (got.statuses, got.labels, got.digests) == (status, labels, [row_digest({"n": i}) for i in range(n)])
    assert got.decisions.codes.tolist() == decisions.codes.tolist()
    assert list(got.decisions.reasons) == list(decisions.reasons)
    limits = [np.broadcast_to(np.nan if each is None else each, n) for each in (limit, got.decisions.threshold)]
    assert np.array_equal(*limits, equal_nan=True)
    found = pq.read_table(path)["rank"].to_pylist()
    assert found == [None if np.isnan(score) else 1 + sum(other > score for other in scores) for score in scores]


@pytest.mark.parametrize("spoil", ["text", "column", "word"])
def test_another_file_is_no_audit(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "audit.parquet"
    write_audit(path, [{"n": 1}], [0.0], ["ok"], decide([0.0], ["ok"], 1.0))
    table = pq.read_table(path)
    if spoil == "text":
        path.write_text("nothing")
    else:
        index = table.schema.get_field_index("decision")
        other = table.drop_columns("decision") if spoil == "column" else table.set_column(index, "decision", [["lost"]])
        pq.write_table(other, path)
    with pytest.raises(SAFTInputError, match="no audit file of this version"):
        read_audit(path)


@pytest.mark.parametrize("on_error", ["keep", "exclude"])
@pytest.mark.parametrize("chunk", [3, 100])
def test_digests_and_metadata_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, on_error: Literal["keep", "exclude"]
) -> None:
    monkeypatch.setattr(audit, "_CHUNK_ROWS", chunk)
    rows, scores, status = case(14)
    decisions = decide(scores, status, 2.0, on_error=on_error)
    path = tmp_path / "audit.parquet"
    digests = write_audit(
        path, iter(rows), scores, status, decisions, metadata=lambda known: {"saft_hf": json.dumps(asdict(known))}
    )
    table = pq.read_table(path)
    assert json.loads(table.schema.metadata[b"saft_hf"]) == asdict(digests)
    each = np.array(table["sha256"].to_pylist())
    for digest, kept in ((digests.input_sha256, each), (digests.kept_sha256, each[decisions.train_rows()])):
        assert digest == hashlib.sha256("".join(kept).encode()).hexdigest()
    assert digests.kept_sha256 != digests.input_sha256

    def other(**options: Any) -> str:
        changed = decide(scores, status, **{"threshold": 2.0, "on_error": on_error} | options)
        return write_audit(tmp_path / "b", iter(rows), scores, status, changed).decisions_sha256

    assert other() == digests.decisions_sha256
    flipped = "exclude" if on_error == "keep" else "keep"
    assert len({digests.decisions_sha256, other(threshold=3.0), other(on_error=flipped)}) == 3
    assert (
        digests.decisions_sha256 == hashlib.sha256(decisions.codes.tobytes() + bytes([on_error == "keep"])).hexdigest()
    )


def test_no_rows_make_an_empty_file(tmp_path: Path) -> None:
    write_audit(tmp_path / "audit.parquet", [], [], [], decide([], [], 1.0))
    assert pq.read_table(tmp_path / "audit.parquet").num_rows == 0


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    n = 3000
    scores, status = np.zeros(n, np.float32), ["ok"] * n
    decisions = decide(scores, status, 1.0)
    write_audit(tmp_path / "warm.parquet", ({"text": "a"} for _ in range(n)), scores, status, decisions)
    tracemalloc.start()
    write_audit(tmp_path / "a.parquet", ({"text": f"{i:010d}" * 2000} for i in range(n)), scores, status, decisions)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6  # 60 MB of text went through


def broken(rows: list[dict[str, Any]], error: BaseException) -> Iterator[dict[str, Any]]:
    yield from rows[:4]
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), ValueError()])
def test_an_error_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    monkeypatch.setattr(audit, "_CHUNK_ROWS", 2)
    rows, scores, status = case(8)
    path = tmp_path / "audit.parquet"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        write_audit(path, broken(rows, error), scores, status, decide(scores, status, 2.0))
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["audit.parquet"]


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    # A limit on file size fails the system's own write, through parquet, as a full disk does.
    script = """
import resource, sys
from saft_hf.decide import decide, write_audit
n = 20_000
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write_audit(sys.argv[1], ({"n": i} for i in range(n)), [0.0] * n, ["ok"] * n, decide([0.0] * n, ["ok"] * n, 1.0))
except OSError as error:
    print(error.errno, error)
"""
    path = tmp_path / "audit.parquet"
    run = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith(f"{errno.EFBIG} ")
    assert f"while writing {path}" in done.stdout
    assert names_in(tmp_path) == []


def test_no_permission_surfaces_as_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied, while writing .*audit\.parquet"):
        write_audit(tmp_path / "audit.parquet", [], [], [], decide([], [], 1.0))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_audit(tmp_path / "nowhere" / "audit.parquet", [], [], [], decide([], [], 1.0))


@pytest.mark.parametrize(("extra", "message"), [(-1, "the data has 7 rows, the decisions 8"), (1, "more rows than")])
def test_other_numbers_of_rows_are_refused(tmp_path: Path, extra: int, message: str) -> None:
    rows, scores, status = case(9)
    with pytest.raises(SAFTInputError, match=message):
        write_audit(tmp_path / "a", rows[: 8 + extra], scores[:8], status[:8], decide(scores[:8], status[:8], 2.0))
    with pytest.raises(SAFTInputError, match="8 decisions need"):
        write_audit(tmp_path / "a", rows, scores, status, decide(scores[:8], status[:8], 2.0))
    assert names_in(tmp_path) == []


# -- digests


words = st.sampled_from(["", "a", "b", "$float", "$bytes", "$dict", "nan", "1", "1.0", "é", "\ud800", "\U00010000"])
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2),
    st.sampled_from([0.0, 1.0, 0.1, 1e300, NAN, float("inf"), -float("inf")]),
    words,
    st.sampled_from([b"", b"a", b"1"]),
    st.sampled_from([date(2020, 1, 1), datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC), time(1), timedelta(1)]),
    st.sampled_from([Decimal("1"), Decimal("1.0")]),
    st.sampled_from(
        [{"$float": "nan"}, {"$bytes": hashlib.sha256(b"a").hexdigest()}, {"$dict": []}, {"$decimal": "1"}]
    ),
)
values = st.recursive(
    leaves, lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(words, v, max_size=3)), max_leaves=6
)
short = st.text('ab"\\\n \x00é\u2028\U0001f600', max_size=4)
rows = st.dictionaries(words, values, max_size=3)


def same(a: Any, b: Any) -> bool:
    """Equal in type as well: 1, 1.0 and True are three values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return repr(a) == repr(b)


def turned(value: Any) -> Any:
    """The same value with every dictionary's keys in the other order."""
    if isinstance(value, dict):
        return {key: turned(item) for key, item in reversed(value.items())}
    return [turned(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=400, deadline=None)
@given(rows, rows)
def test_digests_are_equal_exactly_for_equal_rows(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert (row_digest(a) == row_digest(b)) == same(a, b)
    assert row_digest(turned(a)) == row_digest(a)


@settings(deadline=None)
@given(leaves, leaves)
def test_single_values_are_told_apart(a: Any, b: Any) -> None:
    assert (row_digest({"x": a}) == row_digest({"x": b})) == same(a, b)


@settings(deadline=None)
@given(st.dictionaries(short, st.one_of(short, st.integers(), st.none(), st.booleans(), st.lists(short)), max_size=4))
def test_plain_rows_can_be_checked_by_hand(row: dict[str, Any]) -> None:
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert row_digest(row) == hashlib.sha256(text.encode()).hexdigest()
    assert row_digest({**row, "saft_score": 0.5, "saft_status": "ok"}) == row_digest(row)


@pytest.mark.parametrize(
    ("value", "lookalike"),
    [
        (NAN, {"$float": "nan"}),
        (b"a", {"$bytes": hashlib.sha256(b"a").hexdigest()}),
        (date(2020, 1, 1), {"$time": "2020-01-01"}),
        (timedelta(1), {"$timedelta": [1, 0, 0]}),
        (Decimal(1), {"$decimal": "1"}),
        ({"$x": 1}, {"$dict": [["$x", 1]]}),
    ],
)
def test_a_dictionary_that_looks_like_another_value_is_not_it(value: Any, lookalike: Any) -> None:
    assert row_digest({"x": value}) != row_digest({"x": lookalike})
    assert row_digest({"x": [value]}) != row_digest({"x": [lookalike]})


@pytest.mark.parametrize("text", ["1", "1.5", "1.50", "-0.0", "1E+2", "NaN"])
def test_a_decimal_is_not_its_text_and_its_places_count(text: str) -> None:
    number = Decimal(text)
    assert row_digest({"x": number}) == row_digest({"x": Decimal(text)})
    lookalikes = [
        text,
        float(number),
        int(number) if number == number else None,
        Decimal("2"),
        Decimal("1.5"),
        Decimal("1.50"),
    ]
    for other in [each for each in lookalikes if repr(each) != repr(number)]:
        assert row_digest({"x": number}) != row_digest({"x": other})
        assert row_digest({"x": [number]}) != row_digest({"x": [other]})


def test_saft_in_a_nested_key_counts() -> None:
    assert row_digest({"x": {"saft_score": 1}}) != row_digest({"x": {}})


def test_numpy_and_python_values_are_one() -> None:
    plain = {"i": 3, "f": 0.5, "b": True, "s": "x", "v": [1, 2], "m": [[0.5], [1.5]]}
    arrays = {
        "i": np.int64(3),
        "f": np.float32(0.5),
        "b": np.bool_(True),
        "s": np.str_("x"),
        "v": np.array([1, 2]),
        "m": np.array([[0.5], [1.5]]),
    }
    assert row_digest(arrays) == row_digest(plain)
    assert row_digest({"v": (1, 2)}) == row_digest({"v": [1, 2]})
    times = [np.datetime64("2020-01-01T00:00:00", unit) for unit in ("s", "ns")]
    assert len({row_digest({"t": t}) for t in [*times, 1577836800]}) == 3
    assert row_digest({"t": np.array(["2020", "2021"], "M8[s]")}) != row_digest(
        {"t": np.array(["2020", "2022"], "M8[s]")}
    )


def test_images_are_told_apart_by_their_pixels() -> None:
    image = pytest.importorskip("PIL.Image")
    black, white = image.new("L", (4, 2), 0), image.new("L", (4, 2), 255)
    assert row_digest({"x": black}) == row_digest({"x": image.new("L", (4, 2), 0)})
    assert len({row_digest({"x": each}) for each in (black, white, image.new("L", (2, 4), 0))}) == 3


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, [{"a": object()}], np.longdouble(1), np.complex64(1)])
def test_what_has_no_canonical_form_is_refused_by_column(value: Any) -> None:
    with pytest.raises(SAFTInputError, match=r"column 'audio' holds a value of type .*cast"):
        row_digest({"ok": 1, "audio": value})
