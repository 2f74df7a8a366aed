"""Fixtures that several packages share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from hypothesis import settings

from saft_hf import SAFTScorer
from saft_hf.assets import demo_folder, demo_rows_path

SHARED = Path(__file__).resolve().parents[2] / "shared"

settings.register_profile("saft", deadline=None)  # the first example pays for imports and caches
settings.load_profile("saft")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` skip where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and processes that they start, neither read the caches of whoever runs them nor fill them."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setenv("HF_DATASETS_CACHE", str(home / "datasets"))
        patch.setattr("huggingface_hub.constants.HF_HOME", str(home))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
        yield


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


@pytest.fixture(scope="session")
def demo_model() -> str:
    """Folder of the tiny trained chat model that ships with the package (4 layers, hidden size 64)."""
    return str(demo_folder())


@pytest.fixture(scope="session")
def demo_pool(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The 600 labelled rows that ship with the package."""
    cache = str(tmp_path_factory.mktemp("datasets"))
    return load_dataset("json", data_files=str(demo_rows_path()), split="train", cache_dir=cache)


@pytest.fixture(scope="session")
def demo_labelled(demo_pool: Dataset) -> Dataset:
    """100 of them, drawn at random."""
    return demo_pool.shuffle(seed=0).select(range(100))


@pytest.fixture(scope="session")
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the vectors of the whole session are kept; a test that counts forwards needs its own."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def scorer(demo_model: str, demo_pool: Dataset, demo_labelled: Dataset, store_dir: Path) -> SAFTScorer:
    """A scorer fitted on all of the demo's rows as published. Do not change it."""
    return SAFTScorer(demo_model, layer=2, method="saft", cache_dir=store_dir).fit(demo_pool, demo_labelled)


@pytest.fixture
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read anew, and none from the Hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
