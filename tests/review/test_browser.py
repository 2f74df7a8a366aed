"""The review page in a real browser; skipped, with the reason, where none is installed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_kit import browser
from review_kit import THRESHOLD, make_result
from test_review_page import HOSTILE

from saft_hf.decide.marks import check_marks, read_marks
from saft_hf.result import rows_at

BAD = HOSTILE.replace("\ud800", "")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def window(downloads: Path) -> Iterator[Any]:
    with browser(downloads) as window:
        yield window


def texts(window: Any, selector: str) -> list[str]:
    return window.execute_script(
        "return Array.from(document.querySelectorAll(arguments[0])).map((each) => each.innerText)", selector
    )


def load(window: Any, page: Path | None = None) -> None:
    """Open a page, or the present one anew, and wait until it is all there: the driver does not always wait."""
    window.execute_script("window.before = true")  # gone with the document that was shown before
    if page is None:
        window.refresh()
    else:
        window.get(page.as_uri())
    end = time.monotonic() + 60
    while not window.execute_script("return document.readyState === 'complete' && !window.before"):
        assert time.monotonic() < end, f"{page or 'the page'} is not loaded after a minute"
        time.sleep(0.01)


def click(window: Any, selector: str, at: int = 0) -> None:
    window.execute_script("document.querySelectorAll(arguments[0])[arguments[1]].click()", selector, at)


def type_into(window: Any, name: str, value: str) -> None:
    script = """
        const field = document.getElementById(arguments[0]);
        field.value = arguments[1];
        for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind));
    """
    window.execute_script(script, name, value)


def test_look_mark_and_save(window: Any, downloads: Path, tmp_path: Path) -> None:
    result = make_result(count=120, text=BAD)
    path = result.review(tmp_path / "review.html")
    window.get_log("performance")
    load(window, path)
    # Hidden until it is clicked; shown as it is, and nothing in it runs.
    assert "question" not in window.find_element("tag name", "main").text
    click(window, "#rows summary")
    window.implicitly_wait(5)
    assert window.find_element("css selector", "#rows .text")
    shown = window.execute_script("return document.querySelector('#rows .text').textContent")
    highest = int(texts(window, "#rows summary")[0].split()[0].removeprefix("#"))
    assert f"{BAD} answer {highest}" in shown
    assert window.execute_script("return typeof window.hacked") == "undefined"
    assert window.execute_script("return document.querySelectorAll('img, iframe, object').length") == 0
    # Pages, tables, filters.
    assert texts(window, "#where") == ["1 to 20 of 100"]
    click(window, "#next")
    assert texts(window, "#where") == ["21 to 40 of 100"]
    type_into(window, "column", "source")
    type_into(window, "needle", "books")
    assert window.execute_script("return view.rows.length") == sum(
        result.dataset[data]["source"] == "books"
        for data in window.execute_script("return data.tables[0].rows.map((at) => data.rows[at].row)")
    )
    assert "books" in window.execute_script(
        "return Array.from(document.querySelectorAll('#values option')).map((o) => o.value)"
    )
    type_into(window, "needle", "")
    type_into(window, "decision", "kept")
    assert not [line for line in texts(window, "#rows summary") if "kept" not in line]
    type_into(window, "decision", "")
    # The slider.
    type_into(window, "slider", "0")
    assert int(texts(window, "#at-removed")[0]) == 118  # all scored rows but the lowest
    # Marks: one picked row, and the second and the fourth of those drawn at random.
    click(window, "#tables button", 0)
    click(window, "#rows summary")
    window.find_element("css selector", "#rows .buttons")
    click(window, "#rows .buttons button", 1)  # remove
    click(window, "#tables button", 2)
    for at in (1, 3):
        click(window, "#rows summary", at)
        window.find_element("css selector", f"#rows details:nth-child({at + 1}) .buttons")
        click(window, f"#rows details:nth-child({at + 1}) .buttons button", 3)  # harmless
    assert texts(window, "#marked") == ["3 rows are marked."]
    load(window)  # they are kept
    assert texts(window, "#marked") == ["3 rows are marked."]
    click(window, "#save")
    file = downloads / "marks.jsonl"
    end = time.monotonic() + 10
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.05)
    marks = read_marks(file)
    check_marks(marks, 120, lambda rows: rows_at(result.dataset, rows))
    drawn = [mark for mark in marks if mark.is_uniform]
    assert {str(mark.drawn) for mark in drawn} == {f"uniform up to {THRESHOLD!r}"}
    assert sorted(str(mark.word) for mark in drawn) == ["None", "None", "harmless", "harmless"]  # passed over: none
    assert [(mark.row, str(mark.word)) for mark in marks if not mark.is_uniform] == [(highest, "remove")]
    assert BAD[:9] not in file.read_text()
    click(window, "#clear")
    load(window)
    assert texts(window, "#marked") == ["0 rows are marked."]
    # Nothing but the page itself was asked for, and nothing was refused or broken.
    asked = [json.loads(entry["message"])["message"] for entry in window.get_log("performance")]
    urls = {each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not re.match(r"file:.*/review\.html$|blob:", url)} == set()
    assert window.get_log("browser") == []


def test_marks_of_a_file_are_there_and_can_be_forgotten(window: Any, tmp_path: Path) -> None:
    result = make_result()
    row = {"saft_row": 7, "saft_purpose": "informative", "saft_mark": "keep"}
    digest = result._digests[7]
    (tmp_path / "marks.jsonl").write_text(json.dumps(row | {"saft_sha256": digest}) + "\n")
    load(window, result.review(tmp_path / "review.html", marks=tmp_path / "marks.jsonl"))
    assert texts(window, "#marked") == ["1 row is marked."]
    click(window, "#clear")
    load(window)
    assert texts(window, "#marked") == ["0 rows are marked."]


def test_fifty_thousand_rows_open_in_two_seconds_and_fit_a_phone(window: Any, tmp_path: Path) -> None:
    result = make_result(count=50_000)
    few, every = result.review(tmp_path / "few.html"), result.review(tmp_path / "all.html", every_row=True)
    assert few.stat().st_size < 1e6
    for path in (few, every):
        taken = []
        for _ in range(3):  # the best of three: the machine may be busy
            begin = time.perf_counter()
            load(window, path)
            assert len(texts(window, "#rows summary")) == 20
            taken.append(time.perf_counter() - begin)
        assert min(taken) < 2.0, (path, taken)
    click(window, "#tables button", window.execute_script("return data.tables.length") - 1)
    assert texts(window, "#where") == ["1 to 20 of 50000"]
    window.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    assert window.execute_script("return document.documentElement.scrollWidth") <= 390
    window.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
