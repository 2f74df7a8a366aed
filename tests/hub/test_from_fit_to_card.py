"""What a fit knows reaches every card: through `filter` and a push, with a model that is fetched from a Hub."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hub_server import HubServer
from server_kit import User

RUN = """
from pathlib import Path
from datasets import load_dataset
from huggingface_hub import HfApi
from saft_hf import SAFTScorer
from saft_hf.assets import demo_folder, demo_rows_path
from saft_hf.hub import model_section

api = HfApi()
api.create_repo("alice/model", private=True)
commit = api.upload_folder(repo_id="alice/model", folder_path=demo_folder()).oid
rows = load_dataset("json", data_files=str(demo_rows_path()), split="train")
labelled = rows.shuffle(seed=0).select(range(100))
scorer = SAFTScorer("alice/model", layer=2, method="saft", cache_dir="store").fit(rows, labelled)
scorer.push_to_hub("alice/scorer")
result = scorer.filter(rows)
result.push_to_hub("alice/rows")
result.save("here", file_format="parquet")
removed = len(result.removed)
section = model_section(result.summary)
hub_kit.say(commit=commit, section=section, removed=removed, kept=len(result.kept))
"""


@pytest.fixture(scope="module")
def run(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("home")
    return {**User(server, home).run(RUN).result, "home": home}


@pytest.fixture
def cards(run: Any, repo: Any) -> dict[str, str]:
    return {
        "scorer": repo("alice/scorer", "models").card(),
        "rows": repo("alice/rows").card(),
        "model": run["section"],
    }


def test_the_commit_of_the_model_reaches_every_card(run: Any, cards: dict[str, str]) -> None:
    assert f"| revision | `{run['commit']}` |" in cards["scorer"]
    for name in ("rows", "model"):
        assert f"| model that was read | `alice/model` at `{run['commit']}` |" in cards[name]


def test_the_notes_on_a_readout_reach_every_card(cards: dict[str, str]) -> None:
    for name, card in cards.items():
        [note] = [line for line in card.splitlines() if line.startswith("- Note: ")]
        assert "`response_start`" in note, name
        assert "sees only what stands before it" in note, name


def test_counts_and_repositories_reach_the_cards(run: Any, cards: dict[str, str]) -> None:
    for name in ("rows", "model"):
        assert f"Of 600 rows, {run['removed']} were removed as likely harmful" in cards[name]
        assert "19 of 100 labelled rows are harmful" in cards[name]
    assert "[alice/rows](https://huggingface.co/datasets/alice/rows)" in cards["model"]


@pytest.mark.parametrize("pushed", [True, False])
def test_the_provenance_is_that_of_the_files(run: Any, repo: Any, pushed: bool) -> None:
    files, home = repo("alice/rows").files(), Path(run["home"])
    if pushed:
        summary = json.loads(files["saft_report/summary-default-train.json"])
        audit = files["saft_private/audit-default-train.parquet"]
    else:
        summary = json.loads((home / "here" / "saft_summary.json").read_text())
        audit = (home / "here" / "audit.parquet").read_bytes()
    known = summary["provenance"]
    assert known["audit_sha256"] == hashlib.sha256(audit).hexdigest()
    assert (known["model"], known["model_revision"]) == ("alice/model", run["commit"])
    table = pq.read_table(io.BytesIO(audit))
    inside = json.loads(table.schema.metadata[b"saft_hf"])
    assert inside == {**known, "audit_sha256": None}
    rows = table.to_pylist()
    for name, chosen in (("input", rows), ("kept", [row for row in rows if row["decision"] == "kept"])):
        assert known[f"{name}_sha256"] == hashlib.sha256("".join(row["sha256"] for row in chosen).encode()).hexdigest()
    assert len(rows) == known["input_rows"] == 600


def test_no_name_of_this_machine_is_pushed(run: Any, repo: Any) -> None:
    for there in (repo("alice/scorer", "models"), repo("alice/rows")):
        for name, content in there.files().items():
            assert str(run["home"]).encode() not in content, name
