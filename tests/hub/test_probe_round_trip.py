"""A probe is fitted once and pushed; elsewhere it filters a pool without a label, and the cards name it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from probe_kit import HARMFUL, POOL, SOURCES, write_probe_rows
from server_kit import User

from saft_hf.scorer.artifact import load_artifact

FIT = """
from datasets import Dataset, load_dataset
from saft_hf.assets import demo_folder
from saft_hf.cli.main import main
from huggingface_hub import HfApi

HfApi().create_repo("alice/a-model", private=True)
HfApi().upload_folder(repo_id="alice/a-model", folder_path=demo_folder())
first, *others = hub_kit.words
load_dataset("json", data_files="first.jsonl", split="train").push_to_hub("alice/a-first", private=True)
words = ["fit-reference", "--model_name_or_path", "alice/a-model", "--output_dir", "probe", "--cache_dir", "store"]
code = main([*words, "--reference", first, *others, "--push_to_hub", "alice/a-probe"])
commits = {"commit": HfApi().dataset_info("alice/a-first").sha, "probe": HfApi().model_info("alice/a-probe").sha}
hub_kit.say(code=code, **commits)
"""
USE = """
import json
from pathlib import Path
from datasets import load_dataset
from saft_hf import SAFTSFTConfig, SAFTSFTTrainer
from saft_hf.cli.main import main

rows, = hub_kit.words
words = ["filter", "--model_name_or_path", "alice/a-model", "--reference", "alice/a-probe", "--dataset_name", rows]
code = main([*words, "--by", "kind", "--output_dir", "out", "--cache_dir", "store", "--push_to_hub", "alice/a-kept"])
args = SAFTSFTConfig(
    "tuned", hub_model_id="alice/a-tuned", max_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
    hub_private_repo=True, saft_cache_dir="store", saft_reference=["alice/a-probe"], saft_by="kind",
)
pool = load_dataset("json", data_files=rows, split="train")
trainer = SAFTSFTTrainer("alice/a-model", args, train_dataset=pool)
trainer.train()
trainer.push_to_hub()
hub_kit.say(
    code=code,
    filtered=json.loads(Path("out/saft_summary.json").read_text()),
    trained=trainer.saft_summary.to_dict(),
    trained_on=len(trainer.saft_result.train_rows()),
)
"""


@pytest.fixture(scope="module")
def fitted(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("home")
    write_probe_rows(home)
    sources = ["alice/a-first,licence=mit", *SOURCES[1:]]
    return {**User(server, home).run(FIT, *sources).result, "home": home}


@pytest.fixture(scope="module")
def used(server: HubServer, fitted: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Another home: nothing of the fit is there, no vector and no reference row."""
    return User(server, tmp_path_factory.mktemp("home")).run(USE, Path(fitted["home"], "pool.jsonl")).result


def test_a_probe_is_fitted_and_pushed_from_a_shell(fitted: Any, repo: Any) -> None:
    assert fitted["code"] == 0
    there = repo("alice/a-probe", "models")
    assert there.files().keys() == {"README.md", "config.json", "saft_scorer.safetensors"}
    assert there.settings["private"] is True
    card = there.card()
    assert f"| alice/a-first | `{fitted['commit']}` | mit | 120 | 180 | 0 |" in card
    assert "| second.jsonl |  | not given | 120 | 180 | 0 |" in card
    assert 'SAFTScorer("alice/a-model", reference="alice/a-probe")' in card


def test_no_row_and_no_path_of_the_reference_is_in_the_files(fitted: Any, repo: Any) -> None:
    texts = [
        turn["content"]
        for name in ("first", "second", "general")
        for line in Path(fitted["home"], f"{name}.jsonl").read_text().splitlines()
        for turn in json.loads(line)["messages"]
        if len(turn["content"]) > 20
    ]
    for name, content in repo("alice/a-probe", "models").files().items():
        assert str(fitted["home"]).encode() not in content, name
        assert not [text for text in texts if text.encode() in content], name
    config, tensors = load_artifact(Path(fitted["home"], "probe"))
    assert config["fit"]["metrics"]["pool"]["rows"] == 0
    assert sum(array.nbytes for array in tensors.values()) < 200_000


def test_another_process_filters_a_pool_without_labels_or_reference_rows(used: Any) -> None:
    assert used["code"] == 0
    found = used["filtered"]
    assert found["filtered"] is True
    assert found["kept"] + found["removed"] == POOL
    kinds = found["by"]["kind"]
    assert kinds["bad"]["removed"] >= 0.8 * HARMFUL
    assert kinds["good"]["removed"] <= 0.05 * (POOL - HARMFUL)
    mixture = found["fit"]["mixture"]
    assert abs(mixture["share"] - HARMFUL / POOL) < 0.06


def test_a_trainer_decides_the_same_with_it(used: Any) -> None:
    filtered, trained = used["filtered"], used["trained"]
    assert [trained[name] for name in ("kept", "removed", "threshold")] == [
        filtered[name] for name in ("kept", "removed", "threshold")
    ]
    assert used["trained_on"] == filtered["kept"]
    assert trained["fit"]["probe"]["sources"] == filtered["fit"]["probe"]["sources"]


def test_the_record_has_the_commits_that_were_read(used: Any, fitted: Any) -> None:
    for found in (used["filtered"], used["trained"]):
        assert found["fit"]["probe"]["repo_revision"] == fitted["probe"]
        assert found["fit"]["probe"]["sources"][0]["revision"] == fitted["commit"]


@pytest.mark.parametrize(("name", "kind"), [("alice/a-kept", "datasets"), ("alice/a-tuned", "models")])
def test_the_cards_name_the_probe_its_sources_and_what_was_removed(
    used: Any, fitted: Any, repo: Any, name: str, kind: str
) -> None:
    card, found = repo(name, kind).card(), used["filtered"]
    assert f"[alice/a-probe](https://huggingface.co/alice/a-probe) at `{fitted['probe']}`;" in card
    for source in ("alice/a-first", "second.jsonl", "general.jsonl", "built-in twins"):
        assert f"| {source} | " in card
    assert f"Of {POOL} rows" in card
    assert f"{found['removed']} were removed as likely harmful" in card
    assert "| general.jsonl: benign | " in card
    shares = found["by"]["kind"]["bad"]
    assert f"| `bad` | {shares['rows']} | {shares['removed']} |" in card
