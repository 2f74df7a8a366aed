"""A scorer on the Hub: three files, fetched by name, that score as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hub_server import HubServer
from huggingface_hub import ModelCard
from server_kit import User

from saft_hf import SAFTScorer
from saft_hf.scorer.artifact import load_artifact

FILES = {"README.md", "config.json", "saft_scorer.safetensors"}
PUSH = """
from huggingface_hub import HfApi
from saft_hf import SAFTScorer

scorer = SAFTScorer.from_pretrained(hub_kit.words[0], model=hub_kit.words[1])
pushed = {}
for name, options in (("mine", {}), ("open", {"private": False}), ("asked", {"create_pr": True})):
    twice = [scorer.push_to_hub(f"alice/scorer-{name}", **options) for _ in range(1 if "create_pr" in options else 2)]
    pushed[name] = [twice[0].oid, twice[-1].oid, twice[0].pr_revision]
scorer.push_to_hub("alice/scorer-open")  # it stands and is public: treated alike
HfApi().upload_file(path_or_fileobj=b"evil", path_in_repo="model.pkl", repo_id="alice/scorer-mine")
hub_kit.say(**pushed)
"""
LOAD = """
import os
from datasets import load_dataset
from saft_hf import SAFTScorer
from saft_hf.assets import demo_rows_path
from saft_hf.errors import SAFTError

model, store, oid = hub_kit.words
rows = load_dataset("json", data_files=str(demo_rows_path()), split="train").select(range(40))


def load(name, **options):
    try:
        scorer = SAFTScorer.from_pretrained(name, model=model, cache_dir=store, **options)
    except SAFTError as error:
        return f"{type(error).__name__}: {error}"
    return [len(scorer.fit_.labelled.harmful), scorer.score_dataset(rows)["saft_score"][:]]


found = {"refused": load("alice/scorer-mine", token="hf_bob_write"), "missing": load("alice/nothing")}
token = os.environ.pop("HF_TOKEN", "")
found["nobody"] = load("alice/scorer-mine")
os.environ["HF_TOKEN"] = token
found |= {"revision": load("alice/scorer-mine", revision="v9"), "open": load("alice/scorer-open")}
found |= {"mine": load("alice/scorer-mine", revision=oid), "asked": load("alice/scorer-asked", revision="refs/pr/1")}
hub_kit.say(**found)
"""


@pytest.fixture(scope="module")
def saved(scorer: SAFTScorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorer")
    scorer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pushed(server: HubServer, saved: Path, demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Commits of a private scorer, a public one, and one in a pull request whose reply was lost."""
    server.fault("drop_response", path="scorer-asked/commit/")
    done = User(server, tmp_path_factory.mktemp("home")).run(PUSH, saved, demo_model)
    server.clear_faults()
    return done.result


def test_pushing_again_makes_no_commit_and_a_pull_request_is_opened_once(pushed: Any, repo: Any) -> None:
    mine, asked = repo("alice/scorer-mine", "models"), repo("alice/scorer-asked", "models")
    assert pushed["mine"][0] == pushed["mine"][1]
    assert mine.settings["private"] is True
    assert mine.commits() == ["Upload model.pkl with huggingface_hub", "Push a model with saft_hf"]
    assert mine.files().keys() == {*FILES, "model.pkl"}
    assert repo("alice/scorer-open", "models").commits() == ["Push a model with saft_hf"]
    assert pushed["asked"][2] == "refs/pr/1"
    assert asked.settings["prs"] == 1
    assert asked.files("refs/pr/1").keys() == FILES


def test_the_card_is_for_the_hub(pushed: Any, repo: Any) -> None:
    text = repo("alice/scorer-mine", "models").card()
    assert ModelCard(text).data.to_dict()["library_name"] == "saft_hf"
    assert 'from_pretrained("alice/scorer-mine")' in text
    assert "19 of 100 labelled rows are harmful" in text
    assert text.count("<!-- saft_hf:begin -->") == 1


def test_no_path_of_this_machine_and_in_public_no_labelled_row(
    pushed: Any, repo: Any, saved: Path, demo_model: str, tmp_path: Path
) -> None:
    labelled = {}
    for name in ("mine", "open"):
        for file, content in repo(f"alice/scorer-{name}", "models").files().items():
            assert str(Path(demo_model).parent).encode() not in content, (name, file)
            (tmp_path / file).write_bytes(content)
        labelled[name] = len(load_artifact(tmp_path)[1]["labelled"])
    assert labelled == {"mine": len(load_artifact(saved)[1]["labelled"]), "open": 0}
    assert labelled["mine"] > 90


def test_a_scorer_is_fetched_by_name_and_scores_as_before_in_a_fresh_process(
    pushed: Any, alice: User, scorer: SAFTScorer, demo_model: str, demo_pool: Dataset, store_dir: Path
) -> None:
    words = (demo_model, store_dir, pushed["mine"][0])
    found = alice.run(LOAD, *words).result
    asked = {row["path"].split("/")[-1] for row in alice.hub.requests("GET|HEAD", "scorer-.*/resolve/")}
    assert asked == FILES
    expected = np.float32(scorer.score_dataset(demo_pool.select(range(40)))["saft_score"])
    for name, labelled in (("mine", True), ("open", False), ("asked", True)):
        assert bool(found[name][0]) == labelled
        assert np.array_equal(np.float32(found[name][1]), expected)
    for name, says in (
        ("missing", "alice/nothing is not there, or this token has no access to it"),
        ("refused", "alice/scorer-mine is not there, or this token has no access to it"),
        ("revision", "has no revision 'v9'"),
        ("nobody", "there is no token: log in with `hf auth login`"),
    ):
        assert found[name].startswith("SAFTHubError: ")
        assert says in found[name]
        assert "\n" not in found[name]
    offline = alice.run(LOAD, *words, HF_HUB_OFFLINE="1").result
    assert offline["open"] == found["open"]
    assert "was never fetched to this machine" in offline["missing"]
