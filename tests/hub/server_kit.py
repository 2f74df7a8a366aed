"""Users of the test server, repositories as it has them, and a folder's card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_server import HubServer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOKENS = ("hf_alice_write", "hf_alice_read", "hf_bob_write")
PUSH = "hub_kit.push(*hub_kit.words)"
CARD = """---
tags:
- saft
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---

# Rows

<!-- saft_hf:begin -->
What was filtered.
<!-- saft_hf:end -->
"""


def held(folder: Path) -> dict[str, bytes]:
    """Path -> bytes of what is pushed of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@dataclass
class Done:
    """How a process ended."""

    returncode: int
    out: str
    err: str

    @property
    def result(self) -> Any:
        """What it printed last, as JSON."""
        assert self.returncode == 0, self.err[-4000:]
        return json.loads(self.out.strip().splitlines()[-1])


class User:
    """Somebody with a token and a Hugging Face home of their own, at this server."""

    def __init__(self, hub: HubServer, home: Path, token: str | None = "hf_alice_write") -> None:
        self.hub, self.home, self.token = hub, home, token

    def environment(self, **more: str) -> dict[str, str]:
        known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        known |= {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_VERBOSITY": "debug",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
        }
        return {**known, **({"HF_TOKEN": self.token} if self.token else {}), **more}

    def start(self, code: str, *words: Any, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", f"import hub_kit\n{code}", *map(str, words)],
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.home,
        )

    def finish(self, process: subprocess.Popen[str], timeout: float = 300) -> Done:
        out, err = process.communicate(timeout=timeout)
        for token in TOKENS:  # in every test that runs a process
            assert token not in out + err
        return Done(process.returncode, out, err)

    def run(self, code: str, *words: Any, **environment: str) -> Done:
        """Run Python in a process of its own, with `hub_kit` imported."""
        return self.finish(self.start(code, *words, **environment))


class Repo:
    """A repository as the server has it."""

    def __init__(self, server: HubServer, repo_id: str, kind: str) -> None:
        self.server, self.repo_id, self.kind = server, repo_id, kind

    @property
    def settings(self) -> dict[str, Any]:
        found = self.server.hub.store.get(self.kind, self.repo_id)
        assert found is not None, f"no repository {self.repo_id}"
        return found

    def commits(self, ref: str = "refs/heads/main") -> list[str]:
        """Titles, newest first; the first commit, which the Hub makes, is left out."""
        store = self.server.hub.store
        return [commit["title"] for commit in store.history(self.settings, self.settings["refs"][ref])][:-1]

    def files(self, ref: str = "refs/heads/main") -> dict[str, bytes]:
        store = self.server.hub.store
        found = store.commit(self.settings, self.settings["refs"][ref])["files"]
        return {name: store.read(entry) for name, entry in found.items() if name != ".gitattributes"}

    def card(self, ref: str = "refs/heads/main") -> str:
        return self.files(ref)["README.md"].decode()
