"""Filtered rows on the Hub: read by `datasets` as they were, with a card that says what is missing, and no more."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from huggingface_hub import DatasetCard
from server_kit import User

PUSH = "import rows_kit\nresult = rows_kit.make_result()\nrepo_id = hub_kit.words[0]\n"


def push(options: str = "") -> str:
    return f"{PUSH}hub_kit.say(**rows_kit.push(result, repo_id, {options}))"


def test_splits_and_configurations_are_read_back_as_they_were(alice: User, hub: Any, repo: Any, tmp_path: Path) -> None:
    code = """
from datasets import Split
for config, word in (("default", "plain"), ("other", "second")):
    for split in ("train", "test"):
        result = rows_kit.make_result(word + split)
        done = rows_kit.push(result, repo_id, config_name=config, split=split, num_shards=3)
        assert "oid" in done, done
hub_kit.say()
"""
    assert alice.run(PUSH + code, "alice/full").result == {}
    there = repo("alice/full")
    assert there.settings["private"] is True
    assert len(there.commits()) == 4
    names = set(there.files())
    assert {f"other/test-0000{i}-of-00003.parquet" for i in range(3)} <= names
    assert {f"data/train-0000{i}-of-00003.parquet" for i in range(3)} <= names
    fresh = User(hub, tmp_path)
    read = """
import datasets, rows_kit
datasets.config.USE_PARQUET_EXPORT = False
from datasets import get_dataset_config_names, load_dataset
assert sorted(get_dataset_config_names(hub_kit.words[0])) == ["default", "other"]
for config, word in (("default", "plain"), ("other", "second")):
    found = load_dataset(hub_kit.words[0], config)
    assert sorted(found) == ["test", "train"]
    for split, rows in found.items():
        kept = rows_kit.make_result(word + split).kept
        assert rows.features == kept.features == rows_kit.FEATURES
        assert rows.to_list() == kept.to_list()
        streamed = load_dataset(hub_kit.words[0], config, split=split, streaming=True)
        assert list(streamed) == kept.to_list()
hub_kit.say()
"""
    assert fresh.run(read, "alice/full").result == {}
    card = there.card()
    for section in ("default/train", "default/test", "other/train", "other/test"):
        assert card.count(f"<!-- saft_hf:begin {section} -->") == 1
    assert card.index("other/test -->") < card.index("## How to use it")
    assert card.count("## Citation") == 1


def test_the_hf_command_reads_it(alice: User, repo: Any, tmp_path: Path) -> None:
    assert "oid" in alice.run(push(), "alice/command").result
    words = [Path(sys.executable).parent / "hf", "download", "alice/command", "--repo-type", "dataset", "--local-dir"]
    done = subprocess.run(
        [*map(str, words), str(tmp_path / "here")], env=alice.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    got = {
        path.relative_to(tmp_path / "here").as_posix(): path.read_bytes()
        for path in (tmp_path / "here").rglob("*")
        if path.is_file() and not path.relative_to(tmp_path / "here").parts[0].startswith(".")
    }
    assert got == repo("alice/command").files()


def test_the_card_says_what_is_missing_and_from_where(alice: User, repo: Any) -> None:
    done = alice.run(push('source="me/rows@" + "b" * 40, split="train"'), "alice/card").result
    assert "oid" in done
    files = repo("alice/card").files()
    card = DatasetCard(repo("alice/card").card())
    for words in (
        "Of 40 rows of [me/rows](https://huggingface.co/datasets/me/rows) (revision `" + "b" * 40,
        "10 were removed as likely harmful",
        "| removed: score above the threshold | 10 |",
        "| could not be scored: the response lies behind the longest length | 1 |",
        "3 of 10 labelled rows are harmful",
        "layer 2: `response_start`",
        "`saft_private/audit-default-train.parquet` has a line",
        "choi2024safety",
    ):
        assert words in card.text, words
    data = card.data.to_dict()
    assert data["tags"] == ["saft", "data-filtering"]
    assert data["source_datasets"] == ["me/rows"]
    assert data["dataset_info"]["splits"][0]["num_examples"] == 29
    assert files["saft_report/scores-default-train.png"].startswith(b"\x89PNG")
    assert "](saft_report/scores-default-train.png)" in card.text
    summary = json.loads(files["saft_report/summary-default-train.json"])
    assert (summary["rows"], summary["kept"], summary["removed"], summary["errored"]) == (40, 29, 10, 1)
    assert summary["dataset_repo"] == "alice/card"
    known = summary["provenance"]
    assert known["input_rows"] == 40
    assert known["audit_sha256"] == hashlib.sha256(files["saft_private/audit-default-train.parquet"]).hexdigest()
    audit = pq.read_table(io.BytesIO(files["saft_private/audit-default-train.parquet"]))
    assert audit.num_rows == 40
    assert json.loads(audit.schema.metadata[b"saft_hf"]) == {**known, "audit_sha256": None}
    assert not [name for name, content in files.items() if b"/home/alice" in content]


def test_a_public_repository_gets_counts_and_no_row_that_was_removed(alice: User, repo: Any) -> None:
    assert "oid" in alice.run(push("private=False"), "alice/shown").result
    files = repo("alice/shown").files()
    assert repo("alice/shown").settings["private"] is False
    assert not [name for name in files if "private" in name or "audit" in name]
    assert not [name for name, content in files.items() if b"REMOVEDTEXT" in content]
    assert "saft_private" not in files["README.md"].decode()
    rows = pq.read_table(io.BytesIO(files["data/train-00000-of-00001.parquet"])).to_pylist()
    assert len(rows) == 29
    assert "REMOVEDTEXT" not in str(rows)
    asked = alice.run(push("private=False, include_indices=True"), "alice/shown-indices").result
    assert "oid" in asked
    assert "saft_private/audit-default-train.parquet" in repo("alice/shown-indices").files()
    refused = alice.run(push("private=False, include_removed=True"), "alice/shown-removed").result
    assert refused["error"] == "SAFTInputError"
    assert "is public: rows that were removed" in refused["message"]
    assert "data/train-00000-of-00001.parquet" not in repo("alice/shown-removed").files()


def test_removed_rows_go_to_a_private_repository_on_request(alice: User, repo: Any) -> None:
    assert "oid" in alice.run(push("include_removed=True"), "alice/all").result
    files = repo("alice/all").files()
    removed = pq.read_table(io.BytesIO(files["saft_private/removed-default-train.parquet"]))
    assert removed.num_rows == 10
    assert "handle them with care" in files["README.md"].decode()


def test_a_card_of_others_and_its_dataset_info_survive(alice: User, repo: Any) -> None:
    code = """
from datasets import load_dataset
from huggingface_hub import DatasetCard
rows = rows_kit.make_rows("theirs", 8)
rows.push_to_hub(repo_id, split="test", private=True)
rows.push_to_hub(repo_id, config_name="extra", split="train")
card = DatasetCard.load(repo_id)
card.text += "\\n# Theirs\\n\\nProse that stays.\\n"
card.data["license"] = "cc-by-4.0"
card.push_to_hub(repo_id, repo_type="dataset")
before = DatasetCard.load(repo_id)
assert "oid" in rows_kit.push(result, repo_id)
assert "oid" in rows_kit.push(result, repo_id)
after = DatasetCard.load(repo_id)
assert after.text.startswith(before.text), (before.text, after.text)
assert after.data["license"] == "cc-by-4.0"
assert load_dataset(repo_id, split="train").to_list() == result.kept.to_list()
assert load_dataset(repo_id, split="test").to_list() == rows.to_list()
assert load_dataset(repo_id, "extra", split="train").to_list() == rows.to_list()
rows.push_to_hub(repo_id, split="validation")  # and `datasets` goes on from our card
rows.push_to_hub(repo_id, split="train")
later = DatasetCard.load(repo_id)
assert "## What was filtered" in later.text
assert sorted(load_dataset(repo_id)) == ["test", "train", "validation"]
hub_kit.say()
"""
    assert alice.run(PUSH + code, "alice/theirs").result == {}
    front = yaml.safe_load(repo("alice/theirs").card().split("---")[1])
    assert front["tags"] == ["saft", "data-filtering"]


def test_other_columns_in_one_configuration_are_refused(alice: User, repo: Any) -> None:
    code = """
rows_kit.make_rows("theirs", 8).remove_columns("weight").push_to_hub(repo_id, split="test", private=True)
hub_kit.say(**rows_kit.push(result, repo_id))
"""
    refused = alice.run(PUSH + code, "alice/columns").result
    assert refused["error"] == "SAFTInputError"
    assert "other columns than the split 'test'" in refused["message"]
    assert len(repo("alice/columns").commits()) == 1


def test_names_that_no_split_can_have_are_refused_before_anything_is_sent(alice: User, hub: Any) -> None:
    code = """
names = [{"config_name": "data"}, {"config_name": "a/b"}, {"config_name": "saft_private"}, {"split": "a-b"}]
hub_kit.say(errors=[rows_kit.push(result, repo_id, **name).get("error") for name in names])
"""
    assert alice.run(PUSH + code, "alice/names").result == {"errors": ["SAFTInputError"] * 4}
    assert not hub.requests()


def test_a_full_disk_is_said_and_nothing_is_pushed(alice: User, hub: Any) -> None:
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
result = rows_kit.make_result(count=20_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
hub_kit.say(**rows_kit.push(result, repo_id))
"""
    failed = alice.run(PUSH + code, "alice/disk").result
    assert failed["error"] == "OSError"
    assert "too large" in failed["message"].lower()
    assert not hub.requests()
    assert not list((alice.home / "saft" / "pushes").iterdir())


def test_a_failed_push_is_kept_and_said(alice: User, hub: Any, repo: Any) -> None:
    hub.fault("status", status=500, path="/commit/", times=99)
    code = push().replace("import rows_kit", "import rows_kit\nhub_kit.network.RETRY_SECONDS = 0.3", 1)
    failed = alice.run(code, "alice/later").result
    kept = alice.home / "saft" / "pushes" / "datasets--alice--later--default-train"
    assert f"Everything is kept in {kept}; push it again with: saft-hf push --folder {kept}" in failed["message"]
    assert pq.read_table(kept / "data" / "train-00000-of-00001.parquet").num_rows == 29
    offline = alice.run(push(), "alice/later", HF_HUB_OFFLINE="1").result
    assert offline["message"].startswith("HF_HUB_OFFLINE is set")
    assert kept.is_dir()
    hub.clear_faults()
    assert "oid" in alice.run(push(), "alice/later").result
    assert not kept.exists()
    assert len(repo("alice/later").commits()) == 1
