"""Reference sets on the Hub: pinned to a commit, private ones with a token; a fitted scorer is told from rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from server_kit import User

from saft_hf import SAFTScorer

READ = """
import os
from datasets import Dataset
from huggingface_hub import HfApi
import datasets
from saft_hf import ReferenceSource, SAFTScorer
from saft_hf.distributed import World
from saft_hf.errors import SAFTError
from saft_hf.scorer.reference_rows import ReferenceRows, read_reference

datasets.config.USE_PARQUET_EXPORT = False
token = os.environ.pop("HF_TOKEN")


def read(reference, token=token):
    try:
        found = read_reference(reference, World(), token=token)
    except SAFTError as error:
        return f"{type(error).__name__}: {error}"
    if isinstance(found, ReferenceRows):
        return [[info.name, info.revision, info.harmful, info.benign] for info in found.sources]
    return [found.path, found.revision]
"""
RUN = f"""{READ}
os.environ["HF_TOKEN"] = token
model, folder = hub_kit.words
pairs = {{name: [f"{{name}} {{n}}" for n in range(8)] for name in ("prompt", "response")}}
rows = Dataset.from_dict({{**pairs, "is_safe": [n > 2 for n in range(8)]}})
for split in ("train", "dev"):
    rows.select(range(8 if split == "train" else 5)).push_to_hub("alice/pairs", private=True, split=split)
SAFTScorer.from_pretrained(folder, model=model).push_to_hub("alice/probe")
commit = HfApi().dataset_info("alice/pairs").sha
probe = HfApi().model_info("alice/probe").sha
SAFTScorer.from_pretrained("alice/probe", model=model)
del os.environ["HF_TOKEN"]
hub_kit.say(
    commit=commit,
    probe=probe,
    named=read("alice/pairs"),
    split=read("alice/pairs,split=dev"),
    several=read(["alice/pairs", ReferenceSource(rows.map(lambda row: {{"prompt": "x" + row["prompt"]}}))]),
    nobody=read("alice/pairs", None),
    missing=read("alice/pears"),
    no_split=read("alice/pairs,split=test"),
    scorer=read("alice/probe"),
    pinned=read("alice/probe,revision=main"),
    mixed=read(["alice/pairs", "alice/probe"]),
)
"""
OFFLINE = f"""{READ}
hub_kit.say(
    named=read("alice/pairs"),
    branch=read("alice/pairs,revision=main"),
    other=read("alice/pairs,revision=" + 40 * "0"),
    scorer=read("alice/probe"),
)
"""


@pytest.fixture(scope="module")
def found(server: HubServer, scorer: SAFTScorer, demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("scorer")
    scorer.save_pretrained(folder)
    user = User(server, tmp_path_factory.mktemp("home"))
    return {**user.run(RUN, demo_model, folder).result, "offline": user.run(OFFLINE, HF_HUB_OFFLINE="1").result}


def test_rows_are_pinned_to_the_commit_that_was_read(found: Any) -> None:
    assert found["named"] == [["alice/pairs", found["commit"], 3, 5]]
    assert found["split"] == [["alice/pairs", found["commit"], 3, 2]]
    assert found["several"] == [["alice/pairs", found["commit"], 3, 5], ["rows", None, 3, 5]]


def test_what_cannot_be_read_is_said_by_name(found: Any) -> None:
    assert found["nobody"].startswith("SAFTHubError: ")
    assert "alice/pairs" in found["nobody"]
    assert found["missing"].startswith("SAFTHubError: ")
    assert "alice/pears" in found["missing"]
    assert found["no_split"].startswith("SAFTInputError: alice/pairs: `config` is None, `split` 'test'.")


def test_a_fitted_scorer_is_told_from_rows(found: Any) -> None:
    assert found["scorer"] == found["pinned"] == ["alice/probe", found["probe"]]
    assert "`reference` alice/probe is a fitted scorer: it stands alone" in found["mixed"]


def test_offline_the_commit_is_that_of_the_copy_on_this_machine(found: Any) -> None:
    assert found["offline"]["named"] == [["alice/pairs", found["commit"], 3, 5]]
    assert found["offline"]["branch"] == [["alice/pairs", found["commit"], 3, 5]]
    assert f"`revision` is {40 * '0'}, and the copy on this machine is of commit" in found["offline"]["other"]
    assert found["offline"]["scorer"] == ["alice/probe", found["probe"]]
