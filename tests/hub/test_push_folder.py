"""What a push takes, leaves, replaces and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from server_kit import CARD, PUSH, held


def test_a_folder_is_pushed_in_one_commit_and_is_private(alice: Any, repo: Any, folder: Path) -> None:
    assert alice.run(PUSH, folder, "alice/one").result["pr_url"] is None
    there = repo("alice/one")
    assert there.settings["private"] is True
    assert there.commits() == ["Push a dataset with saft_hf"]
    assert there.files() == held(folder)


def test_pushing_again_makes_no_commit(alice: Any, repo: Any, folder: Path) -> None:
    first, second = (alice.run(PUSH, folder, "alice/again").result for _ in range(2))
    assert first == second
    assert len(repo("alice/again").commits()) == 1


def test_what_is_pushed_anew_replaces_its_own_shards_and_nothing_else(alice: Any, repo: Any, folder: Path) -> None:
    code = """
from huggingface_hub import HfApi
repo_id, card = hub_kit.words[1:]
HfApi().create_repo(repo_id, repo_type="dataset")
for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet", "train-notes.parquet"):
    HfApi().upload_file(
        path_or_fileobj=b"old", path_in_repo=f"data/{name}", repo_id=repo_id, repo_type="dataset"
    )
HfApi().upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo_id, repo_type="dataset")
hub_kit.push(*hub_kit.words[:2])
"""
    card = CARD.replace("train", "test")
    assert "oid" in alice.run(code, folder, "alice/shards", card).result
    data = {name for name in repo("alice/shards").files() if name.startswith("data/")}
    ours = {f"data/train-0000{i}-of-00002.parquet" for i in range(2)}
    assert data == {"data/test-00000-of-00001.parquet", "data/train-notes.parquet", *ours}


def test_a_public_repository_gets_no_single_rows(alice: Any, repo: Any, folder: Path) -> None:
    public = 'hub_kit.push(*hub_kit.words, private=False, audit="audit" in hub_kit.words[1])'
    assert "oid" in alice.run(public, folder, "alice/public").result
    assert repo("alice/public").settings["private"] is False
    assert not [name for name in repo("alice/public").files() if name.startswith("saft_private/")]
    assert "oid" in alice.run(public, folder, "alice/public-audit").result
    assert "saft_private/audit-train.parquet" in repo("alice/public-audit").files()
    (folder / "audit.parquet").write_bytes(b"digests")  # as a saved result has it
    for name in ("alice/public", "alice/public-audit"):
        assert "oid" in alice.run(public, folder, name).result
        assert ("audit.parquet" in repo(name).files()) == ("audit" in name)
    (folder / "removed").mkdir()
    for path in ("removed/train.parquet", "saft_private/removed-train.parquet"):
        (folder / path).write_bytes(b"\0rows")
        for name in ("alice/public", "alice/public-audit"):
            refused = alice.run(public, folder, name).result
            assert f"is public: rows that were removed ({path})" in refused["message"]
            assert len(repo(name).commits()) == 1 + ("audit" in name)
        (folder / path).unlink()


def test_what_a_trainer_keeps_to_itself_stays_here(alice: Any, repo: Any, folder: Path) -> None:
    (folder / "_saft").mkdir()
    (folder / "_saft" / "audit.parquet").write_bytes(b"digests")
    assert "oid" in alice.run(PUSH, folder, "alice/kept-here").result
    assert not [name for name in repo("alice/kept-here").files() if "_saft/" in name]


def test_private_is_refused_where_a_public_one_stands(alice: Any, repo: Any, folder: Path) -> None:
    code = "hub_kit.push(*hub_kit.words, private={})"
    assert "oid" in alice.run(code.format(False), folder, "alice/open").result
    (folder / "more.txt").write_text("more")
    refused = alice.run(code.format(True), folder, "alice/open").result
    assert refused["error"] == "SAFTInputError"
    assert "is public, and `private=True`" in refused["message"]
    assert len(repo("alice/open").commits()) == 1
    assert "oid" in alice.run(code.format(None), folder, "alice/open").result
    assert repo("alice/open").settings["private"] is False


def test_data_that_would_be_hidden_is_refused(alice: Any, repo: Any, folder: Path) -> None:
    code = """
from huggingface_hub import HfApi
HfApi().create_repo(hub_kit.words[1], repo_type="dataset")
HfApi().upload_file(path_or_fileobj=b"a,b", path_in_repo="mine.csv", repo_id=hub_kit.words[1], repo_type="dataset")
hub_kit.push(*hub_kit.words)
"""
    refused = alice.run(code, folder, "alice/csv").result
    assert "mine.csv" in refused["message"]
    assert len(repo("alice/csv").commits()) == 1


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "repo_id", "says"),
    [
        ("reader", "alice/refused", "the token of alice is read-only"),
        ("bob", "alice/refused", "bob has no right to"),
        ("nobody", "alice/refused", "there is no token: log in with `hf auth login`, set HF_TOKEN"),
    ],
)
def test_a_refusal_is_one_clear_line(request: Any, hub: Any, folder: Path, who: str, repo_id: str, says: str) -> None:
    failed = request.getfixturevalue(who).run(PUSH, folder, repo_id).result
    assert failed["error"] == "SAFTHubError"
    assert says in failed["message"]
    assert str(folder) in failed["message"]
    assert "\n" not in failed["message"]
    assert len(hub.requests("POST", "/api/repos/create")) <= 1  # not tried again


@pytest.mark.parametrize("token", ["hf_wrongToken123", "hf_withOne two3\nthree4"])
def test_a_wrong_token_is_not_shown(alice: Any, folder: Path, token: str) -> None:
    code = """
import traceback
from saft_hf.hub.push import Destination, push_folder
try:
    push_folder(hub_kit.words[0], Destination(hub_kit.words[1], "dataset", token=hub_kit.words[2]))
except Exception as error:
    hub_kit.say(message=traceback.format_exc(), repr=repr(Destination("a/b", token=hub_kit.words[2])))
"""
    done = alice.run(code, folder, "alice/wrong", token)
    assert "log in with `hf auth login`" in done.result["message"]
    for part in (token, token.split()[0], token.split()[-1]):
        assert part not in done.out + done.err


def test_offline_nothing_is_asked(alice: Any, hub: Any, folder: Path) -> None:
    failed = alice.run(PUSH, folder, "alice/offline", HF_HUB_OFFLINE="1").result
    assert failed["error"] == "SAFTHubError"
    assert failed["message"].startswith("HF_HUB_OFFLINE is set, so nothing was pushed")
    assert f"saft-hf push --folder {folder}" in failed["message"]
    assert not hub.requests()


# -- pull requests and branches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [None, "drop_response", "status"])
def test_a_pull_request_is_opened_once(alice: Any, hub: Any, repo: Any, folder: Path, fault: str | None) -> None:
    repo_id = f"alice/pr-{fault or 'plain'}".replace("_", "-")
    assert "oid" in alice.run("hub_kit.push(*hub_kit.words, revision=None)", folder, repo_id).result
    (folder / "new.txt").write_text("new")
    if fault:
        hub.fault(fault, path="/commit/")
    opened = alice.run("hub_kit.push(*hub_kit.words, create_pr=True)", folder, repo_id).result
    assert opened["pr_revision"] == "refs/pr/1"
    assert opened["pr_url"].endswith("/discussions/1")
    there = repo(repo_id)
    assert there.settings["prs"] == 1
    assert there.files("refs/pr/1") == held(folder)
    assert "new.txt" not in there.files()
    assert len(there.commits("refs/pr/1")) == 2


def test_somebody_else_can_open_a_pull_request(alice: Any, bob: Any, repo: Any, folder: Path) -> None:
    assert "oid" in alice.run("hub_kit.push(*hub_kit.words, private=False)", folder, "alice/from-bob").result
    (folder / "new.txt").write_text("new")
    opened = bob.run("hub_kit.push(*hub_kit.words, create_pr=True)", folder, "alice/from-bob").result
    assert repo("alice/from-bob").files(opened["pr_revision"])["new.txt"] == b"new"


def test_a_branch_is_made(alice: Any, repo: Any, folder: Path) -> None:
    assert "oid" in alice.run("hub_kit.push(*hub_kit.words, revision='try/one')", folder, "alice/branch").result
    assert repo("alice/branch").commits() == []
    assert repo("alice/branch").files("refs/heads/try/one") == held(folder)
