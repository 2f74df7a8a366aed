"""What is beside the code is also in a wheel: card templates, the demo's model and rows, the type marker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(code: str, site: Path, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cards_are_the_same_from_a_wheel_and_from_a_checkout(installed, tmp_path):
    code = (
        "import sys, saft_hf.hub.cards as c\n"
        f"sys.path.append({str(ROOT / 'tests' / 'hub')!r})\n"
        "from cards_kit import card_of_scorer\n"
        "c.versions = lambda: {}\n"
        "print(c.__file__); print(card_of_scorer())"
    )
    (wheel_file, wheel_card), (checkout_file, checkout_card) = (
        run(code, site, tmp_path).split("\n", 1) for site in (installed, ROOT)
    )
    assert Path(wheel_file).is_relative_to(installed)
    assert Path(checkout_file).is_relative_to(ROOT / "saft_hf")
    assert wheel_card == checkout_card


def test_the_demo_is_in_the_wheel(installed, tmp_path):
    code = "import saft_hf.assets as d; print(d.demo_folder()); print(d.demo_rows_path())"
    model, rows = map(Path, run(code, installed, tmp_path).split())
    here = ROOT / "saft_hf" / "data" / "demo"
    assert model.is_relative_to(installed)
    assert rows.read_bytes() == (here / "rows.jsonl").read_bytes()
    assert {p.name: p.read_bytes() for p in model.iterdir()} == {
        p.name: p.read_bytes() for p in (here / "model").iterdir()
    }


def test_the_wheel_holds_the_type_marker_the_licence_and_no_tests(installed):
    names = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert {"saft_hf/py.typed", "saft_hf/data/reference.jsonl", "saft_hf/data/pairs.jsonl"} <= names
    assert "saft_hf-0.1.0.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if name.startswith(("tests/", "examples/"))]


def test_the_package_page_has_no_link_that_leads_nowhere(installed):
    page = (installed / "saft_hf-0.1.0.dist-info" / "METADATA").read_text().partition("\n\n")[2]
    readme = (ROOT / "README.md").read_text()
    of_files = re.findall(r"(?<!!)\[[^\]]+\]\((?!http)([^)]+)\)", readme)
    assert of_files
    assert re.findall(r"\]\((?!http)", page) == []
    assert [target for target in of_files if f"`{target}`" not in page] == []
    assert page.count("https://arxiv.org/abs/2410.10014") == readme.count("https://arxiv.org/abs/2410.10014")
