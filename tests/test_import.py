"""`import saft_hf` is light, and every public name is there."""

from __future__ import annotations

import subprocess
import sys

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
