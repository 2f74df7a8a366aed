"""A push lands once, whatever the network does."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from server_kit import CARD, PUSH, held

PASSING = {
    "500": {"action": "status", "status": 500, "path": "/commit/", "times": 2},
    "503": {"action": "status", "status": 503, "path": "/commit/", "times": 2},
    "409": {"action": "status", "status": 409, "path": "/commit/"},
    "412": {"action": "status", "status": 412, "path": "/commit/"},
    "429": {"action": "status", "status": 429, "path": "/commit/", "headers": {"Retry-After": "1"}},
    "500 before": {"action": "status", "status": 500, "path": "/api/repos/create"},
    "502 looking": {"action": "status", "status": 502, "path": "/api/datasets/", "method": "GET"},
    "dropped": {"action": "drop", "path": "/commit/"},
    "closed": {"action": "drop", "path": "/commit/", "reset": False},
    "upload dropped": {"action": "drop_upload", "method": "PUT", "after_bytes": 4000, "times": 2},
    "reply lost": {"action": "drop_response", "path": "/commit/"},
    "reply lost, closed": {"action": "drop_response", "path": "/commit/", "reset": False},
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_sat_out(alice: Any, hub: Any, repo: Any, folder: Path, name: str) -> None:
    repo_id = f"alice/fault-{list(PASSING).index(name)}"
    fault = hub.fault(**PASSING[name])
    begin = time.monotonic()
    assert "oid" in alice.run(PUSH, folder, repo_id).result
    assert fault.fired == PASSING[name].get("times", 1)
    assert repo(repo_id).commits() == ["Push a dataset with saft_hf"]
    assert repo(repo_id).files() == held(folder)
    if name == "429":
        assert time.monotonic() - begin > 1


def test_an_upload_is_not_sent_twice(alice: Any, hub: Any, folder: Path) -> None:
    hub.fault("status", status=500, path="/commit/", times=3)
    assert "oid" in alice.run(PUSH, folder, "alice/once").result
    assert len(hub.requests("POST", "/commit/")) == 4
    assert len(hub.requests("PUT", "/_storage/")) == 3  # two shards and the audit


def test_a_hub_that_stays_silent_is_given_up(alice: Any, hub: Any, repo: Any, folder: Path) -> None:
    fault = hub.fault("timeout", path="/commit/", delay=3, times=9)
    code = "hub_kit.network.ANSWER_SECONDS, hub_kit.network.RETRY_SECONDS = 0.3, 1.0\n" + PUSH
    failed = alice.run(code, folder, "alice/silent").result
    assert fault.fired < 4  # a fourth comes after 1.07 s or later: three silences and the shortest waits
    assert failed["error"] == "SAFTHubError"
    assert "could not be reached for 1 s" in failed["message"]
    hub.clear_faults()
    assert "oid" in alice.run(PUSH, folder, "alice/silent").result
    assert len(repo("alice/silent").commits()) == 1


def test_a_hub_that_stays_broken_is_given_up_and_the_push_can_be_repeated(
    alice: Any, hub: Any, repo: Any, folder: Path
) -> None:
    hub.fault("status", status=500, path="/commit/", times=99)
    before = held(folder)
    code = "hub_kit.network.RETRY_SECONDS = 0.5\nhub_kit.push(*hub_kit.words, revision='next', private=True)"
    failed = alice.run(code, folder, "alice/broken").result
    assert failed["error"] == "SAFTHubError"
    assert failed["message"].count("\n") == 0
    again = f"saft-hf push --folder {folder} --push_to_hub alice/broken --hub_repo_type dataset --hub_private True"
    assert failed["message"].endswith(
        f"Everything is kept in {folder}; push it again with: {again} --hub_revision next"
    )
    assert held(folder) == before
    assert repo("alice/broken").commits("refs/heads/next") == []


def test_two_pushes_at_once_both_land(alice: Any, hub: Any, repo: Any, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "data").mkdir(parents=True)
    (other / "README.md").write_text(CARD.replace("train", "test").replace("begin -->", "begin test -->"))
    (other / "data" / "test-00000-of-00001.parquet").write_bytes(b"\0test")
    hub.fault("delay", path="/commit/", delay=0.7, times=2)
    runs = [alice.start(PUSH, where, "alice/twice") for where in (folder, other)]
    assert all("oid" in alice.finish(run).result for run in runs)
    there = repo("alice/twice")
    assert len(there.commits()) == 2
    assert there.files().keys() == held(folder).keys() | held(other).keys()
    card = there.card()
    assert "data/train-*" in card
    assert "data/test-*" in card
    assert card.count("<!-- saft_hf:end -->") == 2


def test_a_push_that_was_killed_is_done_by_the_next(alice: Any, hub: Any, repo: Any, folder: Path) -> None:
    hub.fault("delay", path="/commit/", delay=4)
    first = alice.start(PUSH, folder, "alice/killed")
    while not hub.requests("POST", "/commit/"):
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    assert alice.finish(first).returncode == -signal.SIGKILL
    assert "oid" in alice.run(PUSH, folder, "alice/killed").result
    time.sleep(4)  # now the first one's commit comes too, made for a branch that has moved
    assert len(repo("alice/killed").commits()) == 1
    assert repo("alice/killed").files() == held(folder)
