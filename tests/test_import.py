"""`import saft_hf` is light, and every public name is there."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
from pathlib import Path

import saft_hf

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "sklearn")


def test_the_import_loads_nothing_heavy():
    code = f"import sys, saft_hf; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_public_name_is_there_and_documented():
    for name in saft_hf.__all__:
        assert getattr(saft_hf, name).__doc__, name
    assert set(saft_hf.__all__) <= set(dir(saft_hf))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(saft_hf, "nothing_of_this_name")


_FROM_A_CHECKOUT = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:]
import importlib.metadata
try:
    importlib.metadata.version("saft-hf")
except importlib.metadata.PackageNotFoundError:
    import saft_hf
else:
    raise AssertionError("this test hides nothing: saft-hf is installed")
from saft_hf import *
from saft_hf.assets import demo_folder
from saft_hf.hub.cards import model_section
from saft_hf.version import versions
assert saft_hf.__file__.startswith(sys.argv[1]) and str(demo_folder()).startswith(sys.argv[1])
assert "not filtered" in model_section(Summary())
print(saft_hf.__version__, versions()["saft_hf"])
"""


def test_a_checkout_that_is_not_installed_can_be_imported(tmp_path: Path) -> None:
    root = Path(saft_hf.__file__).parents[1]
    for name in ("saft_hf", "model_cards"):
        shutil.copytree(root / name, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    installed = tmp_path / "site-packages"  # everything that is installed, but not this package
    installed.mkdir()
    for entry in (Path(entry) for folder in site.getsitepackages() for entry in Path(folder).iterdir()):
        if "saft" not in entry.name and entry.suffix != ".pth":
            (installed / entry.name).symlink_to(entry)
    command = [sys.executable, "-I", "-S", "-c", _FROM_A_CHECKOUT, str(tmp_path / "checkout"), str(installed)]
    ran = subprocess.run(command, text=True, capture_output=True, cwd=tmp_path, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["0.0.0+checkout"] * 2
