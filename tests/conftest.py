"""Fixtures that several rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real labelled text and a small real model, beside the checkout; tests that need them skip without."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared folder beside the checkout: {SHARED} is missing")
    return SHARED


@pytest.fixture(scope="session")
def lab_lm(shared_dir: Path) -> str:
    """Folder of the small real chat model (8 layers, hidden size 256)."""
    return str(shared_dir / "lab-lm")
