"""What is logged, written, resumed from and published."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import transformers.trainer
from huggingface_hub.utils import filter_repo_objects
from train_kit import losses, make_args, pool_rows, save_model
from transformers.trainer_utils import HubStrategy
from trl import SFTTrainer

from saft_hf import SAFTInputError, SAFTScorer, SAFTSFTTrainer
from saft_hf.train.record import ROWS_FILE, TrainedRows

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save_model(tmp_path / "model")


def trainer_for(model: Any, folder: Path, rows: Any = None, **options: Any) -> SAFTSFTTrainer:
    return SAFTSFTTrainer(model, make_args(folder, **options), train_dataset=pool_rows() if rows is None else rows)


@pytest.mark.smoke
def test_log_files_and_card(model: str, tmp_path: Path) -> None:
    trainer = trainer_for(model, tmp_path)
    trainer.train()
    first = trainer.state.log_history[0]
    assert (first["saft_rows"], first["saft_kept"], first["saft_removed"], first["step"]) == (40, 30, 10, 1)
    assert first["saft_kept_share"] == 0.75
    assert "loss" in first
    assert first["saft_threshold"] == trainer.saft_scorer.threshold_  # type: ignore[union-attr]
    assert first["saft_score_q0.05"] < first["saft_score_q0.5"] < first["saft_score_q0.95"]
    assert sum("saft_rows" in entry for entry in trainer.state.log_history) == 1
    out = tmp_path / "out"
    summary = json.loads((out / "saft_summary.json").read_text())
    assert trainer.saft_summary is not None
    assert summary == trainer.saft_summary.public().to_dict()
    assert json.loads((out / "_saft" / "summary.json").read_text()) == trainer.saft_summary.to_dict()
    assert summary["removed"] == 10
    audit = pq.read_table(out / "_saft" / "audit.parquet")
    assert audit["decision"].to_pylist().count("removed") == 10
    again = SAFTScorer.from_pretrained(out / "_saft" / "scorer", cache_dir=tmp_path / "cache").filter(pool_rows())
    assert again.removed_indices.tolist() == trainer.saft_result.removed_indices.tolist()  # type: ignore[union-attr]
    trainer.create_model_card(model_name="m", dataset_name="d")
    trainer.create_model_card(model_name="m", dataset_name="d")
    card = (out / "README.md").read_text()
    assert card.count("## What was filtered") == 1
    assert "Of 40 rows, 10 were removed" in card
    assert {"- saft\n", "- sft\n"} <= set(card.splitlines(keepends=True))
    for told in (summary, card):
        assert not any(word in str(told) for word in pool_rows()["prompt"])


def test_nothing_of_single_rows_is_uploaded(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(model, tmp_path, **SAVING)
    trainer.train()
    sent: list[str] = []

    def collect(*_: Any, folder_path: str, ignore_patterns: Any = None, **__: Any) -> None:
        found = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
        sent.extend(filter_repo_objects(found, ignore_patterns=ignore_patterns))

    if hasattr(transformers.trainer, "upload_folder"):
        monkeypatch.setattr(transformers.trainer, "upload_folder", collect)
    else:
        monkeypatch.setattr(transformers.trainer.hf_api(), "upload_folder", collect)
    trainer.hub_model_id = "me/m"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # nothing is sent: `collect` stands there
    trainer.push_to_hub()
    assert "saft_summary.json" in sent
    assert not [name for name in sent if "_saft" in name.split("/")[0] and name != "saft_summary.json"]
    checkpoint = tmp_path / "out" / "checkpoint-2"
    digests = set(pq.read_table(tmp_path / "out" / "_saft" / "audit.parquet")["sha256"].to_pylist())
    assert not any(digest in (checkpoint / "saft_decisions.json").read_text() for digest in digests)


def test_no_file_holds_the_token(model: str, tmp_path: Path) -> None:
    trainer = trainer_for(model, tmp_path, **SAVING, hub_token="hf_secret")
    trainer.train()
    trainer.hub_model_id, trainer.push_in_progress = "me/m", None
    pushed: list[str | None] = []
    with pytest.MonkeyPatch.context() as patch:  # a push from a checkpoint writes the arguments once more
        patch.setattr(trainer.args, "hub_strategy", HubStrategy.EVERY_SAVE)
        name = "upload_folder"
        place = transformers.trainer if hasattr(transformers.trainer, name) else transformers.trainer.hf_api()
        patch.setattr(place, name, lambda **given: pushed.append(given["token"]) or SimpleNamespace(result=lambda: 0))
        trainer._push_from_checkpoint(str(tmp_path / "out" / "checkpoint-2"))
    assert pushed
    assert set(pushed) <= {"hf_secret", None}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin", "saft_summary.json"} <= {path.name for path in files}
    assert [path for path in files if b"hf_secret" in path.read_bytes()] == []
    assert trainer.args.hub_token == "hf_secret"


def test_resuming_goes_on_as_if_never_stopped(model: str, tmp_path: Path) -> None:
    whole = trainer_for(model, tmp_path, **SAVING)
    whole.train()
    resumed = trainer_for(model, tmp_path, **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert losses(resumed) == losses(whole)
    trainer_for(model, tmp_path, **SAVING).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("change", ["a row", "order", "share", "readout", "on_error", "off"])
def test_resuming_on_other_rows_is_refused(change: str, model: str, tmp_path: Path) -> None:
    trainer_for(model, tmp_path, **SAVING).train()
    rows, options = pool_rows(), {}
    if change == "a row":
        rows = rows.map(lambda row, number: {"completion": row["completion"] + "!" * (number == 5)}, with_indices=True)
    elif change == "order":
        rows = rows.select([1, 0, *range(2, 40)])
    elif change == "share":
        options = {"saft_contamination": 0.2}
    elif change == "readout":
        options = {"saft_readout": "response_mean"}
    elif change == "on_error":
        options = {"saft_on_error": "keep"}
    else:
        options = {"saft_enabled": False}
    other = trainer_for(model, tmp_path, rows, **SAVING, **options)
    with pytest.raises(SAFTInputError, match="was trained on other rows"):
        other.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_a_checkpoint_of_an_unfiltered_run_is_refused(model: str, tmp_path: Path) -> None:
    SFTTrainer(model, make_args(tmp_path, **SAVING), train_dataset=pool_rows()).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    with pytest.raises(SAFTInputError, match=r"has no saft_decisions.json.* plain SFTTrainer .*saft_enabled=False"):
        trainer_for(model, tmp_path, **SAVING).train(resume_from_checkpoint=checkpoint)
    trainer_for(model, tmp_path, **SAVING, saft_contamination=None).train(resume_from_checkpoint=checkpoint)


def test_a_damaged_record_is_refused(model: str, tmp_path: Path) -> None:
    trainer = trainer_for(model, tmp_path, **SAVING)
    trainer.train()
    record = tmp_path / "out" / "checkpoint-2" / "saft_decisions.json"
    record.write_text(record.read_text()[:20])
    with pytest.raises(SAFTInputError, match="is damaged"):
        trainer.train(resume_from_checkpoint=str(record.parent))


@pytest.mark.parametrize("killed_in", ["TrainedRows.save", "SFTTrainer._save_checkpoint", "SFTTrainer.save_model"])
def test_a_run_that_was_killed_while_it_saved_goes_on(
    killed_in: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whenever it was killed: the record is there before the checkpoint, and half a checkpoint is passed over."""
    whole = trainer_for(model, tmp_path / "whole", **SAVING)
    whole.train()
    owner, name = killed_in.split(".")
    target: Any = {"TrainedRows": TrainedRows, "SFTTrainer": SFTTrainer}[owner]
    real, calls = getattr(target, name), []

    def die(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    trainer = trainer_for(model, tmp_path, **SAVING)
    monkeypatch.setattr(target, name, die)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    monkeypatch.setattr(target, name, real)
    saved = {path.name: {file.name for file in path.iterdir()} for path in (tmp_path / "out").glob("checkpoint-*")}
    assert all(ROWS_FILE in files for files in saved.values())
    last = tmp_path / "out" / "checkpoint-4"
    assert last.exists() == (killed_in != "TrainedRows.save")
    if killed_in == "SFTTrainer.save_model":  # or it was killed while it wrote the very last file
        (last / "trainer_state.json").write_text('{"global_step": 4, "log')
    if last.exists():
        with pytest.raises(SAFTInputError, match=r"checkpoint-4 is not whole.*Take an earlier checkpoint"):
            trainer_for(model, tmp_path, **SAVING).train(resume_from_checkpoint=str(last))
    resumed = trainer_for(model, tmp_path, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    assert ("checkpoint-4 is not whole" in caplog.text) == (killed_in != "TrainedRows.save")


@pytest.mark.parametrize("enabled", [True, False])
def test_a_checkpoint_whose_record_was_deleted_is_said_to_lack_it(enabled: bool, model: str, tmp_path: Path) -> None:
    trainer_for(model, tmp_path, **SAVING).train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    if enabled:
        (checkpoint / ROWS_FILE).unlink()
    refused = f"has no {ROWS_FILE}" if enabled else "was trained on other rows"
    with pytest.raises(SAFTInputError, match=refused):
        trainer_for(model, tmp_path, **SAVING, saft_enabled=enabled).train(resume_from_checkpoint=str(checkpoint))
