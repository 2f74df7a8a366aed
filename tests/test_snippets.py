"""Every snippet of README and docs runs, and the figures there are those that commands wrote."""

from __future__ import annotations

import json
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from snippets_kit import PROJECT, ROOT, run_page, snippets

from saft_hf.assets import demo_folder, demo_rows_path

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
ON_THE_HUB = ("hub.md",)
"""Run against a Hub on this machine: tests/hub/test_page.py."""


@pytest.mark.parametrize(
    "page", [page for page in PAGES if snippets(page) and page.name not in ON_THE_HUB], ids=lambda page: page.name
)
def test_snippets_run_on_the_readers_rows(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    run_page(page)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    notebook = json.loads((ROOT / "examples" / "notebooks" / "quickstart.ipynb").read_text())
    space: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), space)
    assert (tmp_path / "filtered" / "kept").is_dir()
    assert space["harmful"][space["fresh"] & ~space["removed"]].mean() < 0.05


def test_one_file_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ROOT / "examples" / "uv" / "saft_filter.py"
    header = re.match(r"# /// script\n((?:# .*\n)+)# ///\n", script.read_text())
    assert header is not None
    needs = tomllib.loads(re.sub(r"^# ", "", header[1], flags=re.MULTILINE))
    assert needs["requires-python"] == PROJECT["requires-python"]
    assert [re.match(r"[\w-]+", each)[0] for each in needs["dependencies"]] == [PROJECT["name"]]  # type: ignore[index]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    words = {
        "model_name_or_path": demo_folder(),
        "dataset_name": demo_rows_path(),
        "method": "saft",
        "contamination": 0.2,
        "cache_dir": tmp_path / "store",
    }
    argv = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    monkeypatch.setattr("sys.argv", [str(script), *argv])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(script), run_name="__main__")
    assert (tmp_path / "filtered" / "kept").is_dir()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def numbers(found: Any) -> Iterator[float]:
    """Every number of a JSON value, those in its lines of text too."""
    if isinstance(found, str):
        yield from map(float, re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", found))
    elif isinstance(found, dict | list):
        for each in found.values() if isinstance(found, dict) else found:
            yield from numbers(each)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield float(found)


def unmeasured(text: str, known: list[float]) -> list[str]:
    """Figures of a text that are none of the known numbers, to the digits that they have; `%` is a hundredth."""
    missing = []
    for figure, percent in re.findall(r"(?<![\w.`-])(\d[\d,]*(?:\.\d+)?)(?![\w`-])( %)?", text):
        digits = len(figure.partition(".")[2])
        value = float(figure.replace(",", ""))
        if not any(round(number * (100 if percent else 1), digits) == value for number in known):
            missing.append(figure + percent)
    return missing


def measured(page: Path) -> list[tuple[str, str]]:
    """The file and the text of each paragraph or table of a page that says which file it is from."""
    return re.findall(r"<!-- figures: (\S+) -->\n(.*?)(?:\n\n|\Z)", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if measured(page)], ids=lambda page: page.name)
def test_figures_are_those_of_the_files(page: Path) -> None:
    for name, text in measured(page):
        known = [*numbers(json.loads((DOCS / "measured" / f"{name}.json").read_text()))]
        assert unmeasured(text, known) == []
        figure = re.search(r" (\d+(?:\.\d+)?) ", text)
        assert figure is not None  # the test sees figures, and another one is noticed
        assert unmeasured(text.replace(figure[1], f"{figure[1]}77"), known) != []
