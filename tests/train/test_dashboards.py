"""Dashboards get the histogram of the scores once, with the first loss."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from numpy.typing import NDArray
from train_kit import make_args, pool_rows, save_model
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from saft_hf import SAFTSFTTrainer
from saft_hf.train.dashboards import log_histogram

Sent = list[tuple[Any, ...]]


def quiet(kind: type[TrainerCallback], **fields: Any) -> TrainerCallback:
    """A callback of transformers without the package that it needs."""
    callback = type(kind.__name__, (kind,), {name: lambda self, *a, **k: None for name in ("on_log", "on_train_begin")})
    made = kind.__new__(kind if not fields else callback)
    vars(made).update(fields)
    return made


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    found: Sent = []
    for name in ("wandb", "trackio"):
        board = SimpleNamespace(log=lambda told, name=name: found.append((name, told)), Histogram=np.asarray)
        monkeypatch.setitem(sys.modules, name, board)
    return found


def test_each_dashboard_gets_finite_scores(sent: Sent) -> None:
    scores: NDArray[np.float32] = np.array([1, np.nan, 3], dtype=np.float32)
    writer = SimpleNamespace(add_histogram=lambda *told: sent.append(("tensorboard", *told)))
    boards = [quiet(TensorBoardCallback, tb_writer=writer), quiet(WandbCallback), quiet(TrackioCallback)]
    log_histogram([TrainerCallback(), *boards], scores)
    (first, name, values, step), *others = sent
    assert (first, name, values.tolist(), step) == ("tensorboard", "saft_score", [1, 3], 0)
    assert [(board, told["saft_score"].tolist()) for board, told in others] == [("wandb", [1, 3]), ("trackio", [1, 3])]
    sent.clear()
    log_histogram(boards, scores[1:2])
    assert sent == []


def test_the_trainer_sends_it_once(sent: Sent, tmp_path: Path) -> None:
    writer = SimpleNamespace(add_histogram=lambda *told: sent.append(told))
    args = make_args(tmp_path, max_steps=3)
    trainer = SAFTSFTTrainer(save_model(tmp_path / "model"), args, train_dataset=pool_rows())
    trainer.add_callback(quiet(TensorBoardCallback, tb_writer=writer, on_train_end=lambda *a, **k: None))
    trainer.train()
    [(name, values, _)] = sent
    assert name == "saft_score"
    assert trainer.saft_result is not None
    assert values.tolist() == trainer.saft_result.scores.tolist()


def test_tensorboard_and_wandb_get_counts_threshold_and_histogram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real TensorBoard, and the real callback for Weights & Biases with a package that only takes notes."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    notes: dict[str, Any] = {}
    wandb = MagicMock(log=notes.update, Histogram=np.asarray, __spec__=ModuleSpec("wandb", None))
    for name in ("wandb", "wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.config_util"):
        monkeypatch.setitem(sys.modules, name, wandb)
    wandb.ConfigError = ValueError
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    args = make_args(tmp_path, max_steps=3, report_to=["tensorboard", "wandb"])
    trainer = SAFTSFTTrainer(save_model(tmp_path / "model"), args, train_dataset=pool_rows())
    trainer.train()
    board = events.EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    result = trainer.saft_result
    assert result is not None
    summary = result.summary
    assert summary.removed
    told = {
        "saft_rows": summary.rows,
        "saft_kept": summary.kept,
        "saft_removed": summary.removed,
        "saft_kept_share": len(result.kept) / len(result.scores),
        "saft_threshold": summary.threshold,
    }
    for name, value in told.items():
        [entry] = board.Scalars(f"train/{name}")
        assert entry.value == notes[f"train/{name}"] == pytest.approx(value), name
    [histogram] = board.Histograms("saft_score")
    assert histogram.histogram_value.num == len(notes["saft_score"]) == len(result.scores)
