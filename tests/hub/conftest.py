"""A Hub on this machine, and its users: the real clients talk to it from processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from server_kit import CARD, Repo, User


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture
def hub(server: HubServer) -> Iterator[HubServer]:
    """The server of the session, with no faults and an empty log; repositories stay."""
    server.clear_faults()
    with server.hub.lock:
        server.hub.log.clear()
    yield server
    server.clear_faults()


@pytest.fixture
def alice(hub: HubServer, tmp_path: Path) -> User:
    return User(hub, _home(tmp_path, "alice"))


@pytest.fixture
def reader(hub: HubServer, tmp_path: Path) -> User:
    """Alice, with a token that may only read."""
    return User(hub, _home(tmp_path, "reader"), "hf_alice_read")


@pytest.fixture
def bob(hub: HubServer, tmp_path: Path) -> User:
    return User(hub, _home(tmp_path, "bob"), "hf_bob_write")


@pytest.fixture
def nobody(hub: HubServer, tmp_path: Path) -> User:
    return User(hub, _home(tmp_path, "nobody"), None)


def _home(tmp_path: Path, name: str) -> Path:
    home = tmp_path / f"home-{name}"
    home.mkdir()
    return home


@pytest.fixture
def repo(hub: HubServer) -> Any:
    """`repo("alice/rows", "datasets")`: what the server has."""
    return lambda repo_id, kind="datasets": Repo(hub, repo_id, kind)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A card, two shards and what is for private repositories."""
    folder = tmp_path / "rows"
    for name in ("data", "saft_private", "saft_report"):
        (folder / name).mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for shard in range(2):
        (folder / "data" / f"train-{shard:05d}-of-00002.parquet").write_bytes(bytes([0, shard]) * 5000)
    (folder / "saft_report" / "summary.json").write_text("{}")
    (folder / "saft_private" / "audit-train.parquet").write_bytes(b"\0digests")
    (folder / ".draft.tmp").write_text("half a file")
    return folder
