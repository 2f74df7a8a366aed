"""The review page: the right rows and numbers, nothing from elsewhere, and no text that becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from review_kit import FIT, THRESHOLD, make_result

from saft_hf import FilterResult
from saft_hf.decide import LabelSource, RowLabel, decide, row_digest
from saft_hf.decide.certify import FreshLabels
from saft_hf.errors import SAFTInputError
from saft_hf.review.choose import choose_tables, drawable
from saft_hf.review.points import draw_histogram
from saft_hf.summary import CurvePoint, ThresholdEffect

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=hacked=1><!-- \u2028 \ud800 &amp; {{ 7*7 }}"


class Page(HTMLParser):
    """Elements, and what scripts hold."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = False  # a script
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag == "script"
        self.scripts += [""] * self.inside

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])

    @property
    def texts(self) -> list[list[list[str]]]:
        return [row for chunk in self.scripts[1:-1] for row in json.loads(chunk)]


def test_the_same_result_makes_the_same_bytes(tmp_path: Path) -> None:
    result = make_result()
    first, again = (result.review(tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    result.save(tmp_path / "out")
    loaded = FilterResult.load(tmp_path / "out", result.dataset).review(tmp_path / "c.html").read_bytes()
    assert first == again
    # Saving notes digests in the provenance; nothing else differs.
    assert Page(tmp_path / "a.html").data == Page(tmp_path / "c.html").data
    assert loaded == result.review(tmp_path / "d.html").read_bytes()
    assert Page(result.review(tmp_path / "e.html", seed=1, rows=5)).data != Page(tmp_path / "a.html").data


def test_the_page_is_alone_and_its_script_makes_no_markup(tmp_path: Path) -> None:
    page = Page(make_result().review(tmp_path / "review.html"))
    assert not re.search(r"https?:|\burl\(|@import|\bsrc=|\bhref=", page.text.replace(page.scripts[-1], ""))
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|fetch|XMLHttp|import\(",
        page.scripts[-1],
    )


def test_what_rows_and_names_hold_is_never_markup(tmp_path: Path) -> None:
    plain = make_result()
    rows = plain.dataset.add_column(HOSTILE.replace("\ud800", ""), [HOSTILE.replace("\ud800", "")] * 40)
    result = FilterResult(rows, plain.scores, plain.statuses, plain.decisions, plain.summary, plain.labels)
    result.summary = replace(
        result.summary,
        provenance=replace(result.summary.provenance, input=HOSTILE, options={HOSTILE: HOSTILE}),
        fit=replace(FIT, notes=(HOSTILE,), labels=replace(FIT.labels, column=HOSTILE)),
    )
    want = Page(plain.review(tmp_path / "plain.html"))
    result.summary = json_safe(result.summary)
    page = Page(result.review(tmp_path / "hostile.html"))
    for tag in ("script", "img"):
        assert sum(one == tag for one, _ in page.elements) == sum(one == tag for one, _ in want.elements)
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert HOSTILE.replace("\ud800", "") in {text for row in page.texts for _, _, text in row}


def json_safe(summary: Any) -> Any:
    """A lone surrogate stays in rows: what a summary holds has been written as JSON before."""
    text = HOSTILE.replace("\ud800", "")
    known = replace(summary.provenance, input=text, options={text: text})
    return replace(summary, provenance=known, fit=replace(summary.fit, notes=(text,)))


def test_a_row_with_a_lone_surrogate_is_shown(tmp_path: Path) -> None:
    from saft_hf.review.page import _json, _parts

    parts = _parts({"text": HOSTILE, "saft_score": 1.0, "none": None, "turns": [{"from": "human", "value": "a"}]})
    assert parts == [("text", "text", HOSTILE), ("turns", "human", "a")]
    assert json.loads(_json(parts)) == [list(part) for part in parts]
    assert _json(parts).isascii()
    assert "<" not in _json(parts)


@given(data=st.data(), n=st.integers(1, 40), size=st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_tables_hold_the_rows_that_they_name(data: st.DataObject, n: int, size: int) -> None:
    values = st.sampled_from([0.0, 0.5, 0.75, 1.0, 2.0, float("nan")])
    scores = np.array(data.draw(st.lists(values, min_size=n, max_size=n)))
    status = ["packed" if np.isnan(score) else "ok" for score in scores]
    limit = data.draw(st.sampled_from([None, 0.5, 0.75]))
    sources = st.sampled_from(list(LabelSource))
    labelled = data.draw(st.dictionaries(st.integers(0, n - 1), sources))
    labels = {row: RowLabel(bool(row % 2), source) for row, source in labelled.items()}
    decisions = decide(scores, status, limit, labels={row: bool(row % 2) for row in labels})
    got = {
        table.name: table.rows.tolist()
        for table in choose_tables(scores, decisions, labels, size=size, seed=0, every_row=True)
    }
    scored = [row for row in range(n) if not np.isnan(scores[row])]
    assert got["Highest"] == sorted(scored, key=lambda row: (-scores[row], row))[:size]
    assert sorted(got["All"]) == list(range(n))
    open_rows = {
        row
        for row in scored
        if (limit is None or scores[row] <= limit) and not (row in labels and labels[row].source is LabelSource.FIT)
    }
    assert set(drawable(scores, decisions, labels).tolist()) == open_rows
    random = got["Random kept"]
    assert set(random) <= open_rows
    assert len(set(random)) == len(random) == min(size, len(open_rows))
    assert set(got["Random removed"]) <= set(decisions.removed.tolist())
    assert got.get("Errored", []) == decisions.errored.tolist()[:size]
    if limit is not None:
        far = sorted(abs(scores[row] - limit) for row in scored)
        assert [abs(scores[row] - limit) for row in got["Nearest"]] == far[:size]


def test_the_slider_says_what_a_filter_would_do(tmp_path: Path) -> None:
    curve = tuple(CurvePoint(threshold=at, fpr=1 - at / 2, recall=1 - at / 4) for at in (0.0, 1.0, 2.0))
    fit = replace(FIT, expected=ThresholdEffect(fpr=0.05, recall=0.9, curve=curve))
    result = make_result()
    result.summary = replace(result.summary, fit=fit)
    data = Page(result.review(tmp_path / "review.html")).data
    points = data["points"]
    assert points[data["current"]]["removed"] == str(result.summary.removed)
    assert points[data["current"]]["threshold"] == f"{THRESHOLD:.6g}"
    assert points[data["current"]]["lost"] == f"about {result.summary.expected.lost}"
    # As cross-validation expects, on the harmless three quarters of 39 scored rows.
    assert (result.summary.expected.lost, result.summary.expected.left) == (
        round(0.05 * 0.75 * 39),
        round(0.1 * 0.25 * 39),
    )
    for point in points:
        at = float(point["threshold"])
        above = result.scores.astype(np.float64) > at + 1e-6
        harmful = [row for row, label in result.labels.items() if label.harmful]
        assert abs(int(point["removed"]) - int(above.sum())) <= 1  # thresholds are shown with six digits
        assert point["labels"].endswith(f" of {len(harmful)}")
        assert point["bound"].startswith("none")
    assert [float(point["threshold"]) for point in points] == sorted(float(point["threshold"]) for point in points)
    recalls = [int(point["recall"].split()[1][:-1]) for i, point in enumerate(points) if i != data["current"]]
    assert recalls == sorted(recalls, reverse=True)


def test_rows_that_people_decided_stay_removed_at_every_threshold() -> None:
    result = make_result()
    decisions = decide(result.scores, result.statuses, THRESHOLD, labels={1: True, 3: False}, marks={2: True})
    summary = replace(result.summary, removed=len(decisions.removed), kept=len(decisions.kept))
    histogram = draw_histogram(result.scores.astype(np.float64), decisions, summary, {}, ())
    assert histogram is not None
    assert histogram.points[-1].removed == "2"  # rows 1 and 2: none is above the highest score
    assert histogram.points[histogram.current].removed == str(len(decisions.removed))


def mark_lines(rows: Dataset, words: dict[int, str | None], purpose: str = f"uniform up to {THRESHOLD!r}") -> str:
    lines = [
        {"saft_row": row, "saft_sha256": row_digest(rows[row]), "saft_purpose": purpose, "saft_mark": word}
        for row, word in words.items()
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_marks_of_rows_drawn_at_random_bound_what_is_kept(tmp_path: Path) -> None:
    result = make_result()
    kept = drawable(result.scores.astype(np.float64), result.decisions, result.labels).tolist()
    words = dict.fromkeys(kept[:15], "harmless") | {kept[15]: "harmful", kept[16]: None, kept[17]: "keep"}
    marks = tmp_path / "marks.jsonl"
    marks.write_text(mark_lines(result.dataset, words))
    data = Page(result.review(tmp_path / "review.html", marks=marks)).data
    others = np.setdiff1d(np.arange(40), kept)
    fresh = FreshLabels.of(result.scores.astype(np.float64), kept[:16], [False] * 15 + [True], others)
    share = fresh.bound(THRESHOLD, delta=0.1).share
    bounds = [point["bound"] for point in data["points"]]
    assert bounds[data["current"]] == f"at most {share:.1%} harmful (confidence 90%, 16 marks, 2 more without one)"
    assert bounds[-1] == "none: the marks are of rows that are kept now"
    assert {data["rows"][int(at)]["row"]: word for at, word in data["marks"].items()} == {
        row: word for row, word in words.items() if word
    }
    assert data["tables"][-1]["name"] == "Marked before"
    # Of another threshold, or not drawn at random, marks bound nothing.
    for purpose in ("informative", "uniform", "uniform up to 0.5"):
        marks.write_text(mark_lines(result.dataset, words, purpose))
        data = Page(result.review(tmp_path / "other.html", marks=marks)).data
        assert data["points"][data["current"]]["bound"] == "none: no marks on rows drawn at random"


def test_only_rows_that_are_shown_are_in_the_page_unless_all_are_asked_for(tmp_path: Path) -> None:
    result = make_result(count=400)
    page = Page(result.review(tmp_path / "a.html", rows=10))
    shown = {row["row"] for row in page.data["rows"]}
    assert len(page.texts) == len(shown) < 60
    for row in range(400):
        assert (f"question {row}\\" in page.text or f'question {row}"' in page.text) == (row in shown)
    page = Page(result.review(tmp_path / "b.html", rows=10, every_row=True))
    assert len(page.texts) == len(page.data["rows"]) == 400
    assert page.data["rows"][7]["sha256"] == row_digest(result.dataset[7])


def test_where_nothing_is_decided_the_page_says_so_and_draws_from_all_rows(tmp_path: Path) -> None:
    page = Page(make_result(threshold=None).review(tmp_path / "review.html"))
    assert "Nothing was filtered: the labels say nothing." in page.text
    assert [table["name"] for table in page.data["tables"]] == ["Highest", "Random kept", "Random removed"]
    assert {row["purpose"] for row in page.data["rows"] if row["order"] is not None} == {"uniform"}


@pytest.mark.parametrize(
    ("wrong", "message"), [({"by": "nothing"}, "no column of the rows"), ({"rows": 0}, "1 or more")]
)
def test_wrong_arguments_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SAFTInputError, match=message):
        make_result().review(tmp_path / "review.html", **wrong)
    assert not list(tmp_path.iterdir())
