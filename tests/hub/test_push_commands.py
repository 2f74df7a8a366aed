"""From a shell: rows from the Hub, pinned, and what is kept of them back to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from server_kit import Repo, User

from saft_hf.assets import demo_rows_path

# All in two processes: each has to load torch and transformers first.
RUN = """
import io, os
from pathlib import Path
from contextlib import redirect_stderr, redirect_stdout
import datasets
from datasets import load_dataset
from huggingface_hub import HfApi, constants, metadata_update
from saft_hf.cli import pipeline
from saft_hf.cli.main import main
from saft_hf.hub import check_push

datasets.config.USE_PARQUET_EXPORT = False
model, store, rows_path, step = hub_kit.words
hub_kit.network.RETRY_SECONDS = 0.5
basics = ["--model_name_or_path", model, "--cache_dir", store, "--method", "saft", "--layer", "2"]
basics += ["--labelled_rows", "100"]
source = ["--dataset_name", "alice/demo", "--dataset_config", "chat"]


def run(command, *words):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([command, *words])
    said = [line for line in err.getvalue().splitlines() if line.startswith("saft-hf ")]
    return {"code": code, "out": out.getvalue(), "err": said[0] if said else ""}
"""
FILTER = """
rows = load_dataset("json", data_files=rows_path, split="train")
rows.push_to_hub("alice/demo", config_name="chat", private=True)
rows.select(range(300)).push_to_hub("alice/demo", config_name="chat", split="part")
metadata_update("alice/demo", {"license": "cc-by-4.0"}, repo_type="dataset")
HfApi().create_tag("alice/demo", tag="v1", repo_type="dataset")
HfApi().upload_file(path_or_fileobj=b"later", path_in_repo="later.md", repo_id="alice/demo", repo_type="dataset")
found = {"v1": HfApi().dataset_info("alice/demo", revision="v1").sha}
to = ["--push_to_hub", "alice/filtered"]
pinned = [*source, "--dataset_revision", "v1"]
found["train"] = run("filter", *basics, *pinned, *to, "--output_dir", "train", "--hub_scorer", "alice/scorer")
part = ["--dataset_train_split", "part", "--output_dir", "part"]
found["part"] = run("filter", *basics, *pinned, *to, *part, "--dataset_streaming", "true")
found["scored"] = run("score", *basics, *source, "--output_dir", "scored", "--push_to_hub", "alice/scored")
found["public"] = run(
    "score", *basics, *source, "--output_dir", "x", "--push_to_hub", "alice/scored", "--hub_private", "false"
)
back = load_dataset("alice/filtered", "chat")
kept = {split: datasets.Dataset.from_parquet(f"{split}/kept/train.parquet").to_list() for split in back}
found["equal"] = {split: back[split].to_list() == kept[split] for split in back}
found["features"] = back["train"].features == rows.features
found["columns"] = load_dataset("alice/scored", "chat", split="train").column_names
hub_kit.say(**found)
"""
ERRORS = """
out = ["--output_dir", "out"]
HfApi().update_repo_settings("alice/demo", repo_type="dataset", private=False, gated="auto")
os.environ["HF_TOKEN"] = "hf_bob_write"  # before anybody has fetched the files into this home
gated = run("filter", *basics, *out, *source)
os.environ["HF_TOKEN"] = "hf_alice_write"
found = {
    "gated": gated,
    "config": run("filter", *basics, *out, "--dataset_name", "alice/demo", "--dataset_config", "poems"),
    "split": run("filter", *basics, *out, *source, "--dataset_train_split", "dev"),
    "revision": run("filter", *basics, *out, *source, "--dataset_revision", "v9"),
    "column": run("filter", *basics, *out, *source, "--label_column", "verdict"),
    "missing": run("filter", *basics, *out, "--dataset_name", "alice/nothing"),
    "push": run("push", "--folder", "nowhere", "--push_to_hub", "alice/x"),
}
os.environ["HF_TOKEN"] = "hf_alice_read"
to = ["--push_to_hub", "alice/late", "--output_dir", "late", "--contamination", "0.2", "--hub_private", "true"]
words = [word for word in basics if word not in ("--labelled_rows", "100")]
found["read-only"] = run("filter", *words, *source, "--dataset_train_split", "part", *to)
found["before"] = sorted(path.name for path in Path("late").iterdir())
pipeline.check_push = lambda *_, **__: None  # as where the right to write is lost meanwhile
found["later"] = run("filter", *words, *source, "--dataset_train_split", "part", *to)
pipeline.check_push = check_push
os.environ["HF_TOKEN"] = "hf_alice_write"
again = found["later"]["err"].partition("again with: saft-hf ")[2].split()
found["again"] = run(*again)
to = ["--output_dir", "other", "--contamination", "0.2", "--push_to_hub"]
found["foreign"] = run("filter", *words, *source, *to, "somebody/rows")
found["open"] = run("filter", *words, *source, *to, "alice/demo", "--hub_private", "true")
found["harmful"] = run("filter", *words, *source, *to, "alice/demo", "--hub_include_removed", "true")
constants.HF_HUB_OFFLINE = True
found["offline"] = run("filter", *words, *source, *to, "alice/x")
found["nothing"] = not any(Path("other").iterdir())
hub_kit.say(**found)
"""


@pytest.fixture(scope="module")
def runs(server: HubServer, demo_model: str, store_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("home")
    user = User(server, home)
    words = (demo_model, store_dir, demo_rows_path())
    filtered = user.run(RUN + FILTER, *words, "filter").result
    other = User(server, tmp_path_factory.mktemp("other"))
    return {**filtered, **other.run(RUN + ERRORS, *words, "errors").result, "home": home}


def test_splits_and_configuration_stay_and_the_revision_is_pinned(runs: Any, repo: Any) -> None:
    for name in ("train", "part"):
        assert runs[name]["code"] == 0, runs[name]
        summary = json.loads((runs["home"] / name / "saft_summary.json").read_text())
        assert summary["source"] == {
            "dataset": "alice/demo",
            "config": "chat",
            "split": name,
            "revision": runs["v1"],
            "license": "cc-by-4.0",
        }
    assert len(repo("alice/filtered").commits()) == 2, repo("alice/filtered").card()
    assert runs["equal"] == {"train": True, "part": True}
    assert runs["features"]
    there: Repo = repo("alice/filtered")
    assert there.settings["private"] is True
    assert len(there.commits()) == 2
    card = there.card()
    assert card.count(f"revision `{runs['v1']}`") == 2
    assert "[alice/scorer](https://huggingface.co/alice/scorer)" in card
    assert "Pushed to " in runs["train"]["out"]


def test_scored_rows_go_to_a_private_repository_only(runs: Any, repo: Any) -> None:
    assert runs["scored"]["code"] == 0
    assert runs["columns"][-2:] == ["saft_score", "saft_status"]
    assert repo("alice/scored").settings["private"] is True
    assert "**none was removed**" in repo("alice/scored").card()
    assert runs["public"]["code"] == 2
    assert "private repository only" in runs["public"]["err"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("config", "alice/demo: `--dataset_config` is 'poems'"),
        ("config", "['chat']"),
        ("split", "`--dataset_train_split` 'dev'. datasets said: ValueError: Unknown split"),
        ("split", "['train', 'part']"),
        ("revision", "the dataset repository alice/demo has no revision 'v9'"),
        ("column", "--label_column verdict is not in"),
        ("missing", "the dataset repository alice/nothing is not there, or this token has no access to it"),
        ("gated", "gated"),
        ("push", "there is no folder nowhere with a card"),
        ("read-only", "the token of alice is read-only"),
        ("later", "the token of alice is read-only"),
        ("foreign", "somebody/rows is not there, and cannot be made: alice is not a member of 'somebody'"),
        ("open", "alice/demo is public, and `--hub_private true` was asked for"),
        ("harmful", "alice/demo is public: rows that were removed go to a private repository only"),
        ("offline", "HF_HUB_OFFLINE is set, so nothing can be pushed to"),
    ],
)
def test_each_failure_is_one_clear_line(runs: Any, name: str, says: str) -> None:
    assert runs[name]["code"] == 2
    assert says in runs[name]["err"]


def test_a_push_that_cannot_succeed_is_refused_before_the_work(runs: Any) -> None:
    assert runs["before"] == []
    assert runs["nothing"]


def test_a_failed_push_is_done_with_the_words_of_its_message(runs: Any, repo: Any) -> None:
    assert runs["again"]["code"] == 0, runs["again"]
    assert repo("alice/late").settings["private"] is True
    assert "chat/part-00000-of-00001.parquet" in repo("alice/late").files()
