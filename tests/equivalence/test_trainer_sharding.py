"""Launchers that leave other ranks without weights (FSDP, DeepSpeed ZeRO-3): rows are scored with all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.integrations.deepspeed as hf_deepspeed

KIT = Path(__file__).resolve().parents[1] / "train"

# What each process of a trainer does before SFTTrainer: under FSDP itself, that needs GPUs.
FILTER = """
import json, os, sys
sys.path.insert(0, {kit!r})
from pathlib import Path
from accelerate import PartialState
from transformers.modeling_utils import is_fsdp_enabled
from saft_hf.distributed import World
from saft_hf.train.filtering import filter_rows
from saft_hf.train.inputs import FilterArgs
from train_kit import make_args, pool_rows

folder = Path(sys.argv[1])
args, state = make_args(folder), PartialState(cpu=True)
assert is_fsdp_enabled()
filter_args = FilterArgs(model=str(folder / "model"), args=args, train_dataset=pool_rows("messages"))
done = filter_rows(filter_args, World())
told = {{"kept": done.result.kept_indices.tolist(), "size": state.num_processes, "on_again": is_fsdp_enabled()}}
(folder / f"told-{{state.process_index}}.json").write_text(json.dumps(told))
state.wait_for_everyone()
state.destroy_process_group()
sys.stdout.flush()
# Gloo's threads sometimes abort a process that is only taking itself down.
os._exit(0)
"""

# On GPUs, the whole of it: SFTTrainer shards the model that it loads.
TRAIN = """
import json, os, sys
sys.path.insert(0, {kit!r})
from pathlib import Path
from accelerate import PartialState
from train_kit import losses, make_args, pool_rows
from trl import SFTTrainer
from saft_hf import SAFTSFTTrainer

folder, told = Path(sys.argv[1]), {{}}
rows = pool_rows("messages")
for name, trainer_class in (("saft", SAFTSFTTrainer), ("plain", SFTTrainer)):
    args = make_args(folder / name, use_cpu=False)
    trainer = trainer_class(str(folder / "model"), args, train_dataset=rows)
    if name == "saft":
        rows = trainer.saft_result.kept
    trainer.train()
    told[name] = losses(trainer)
if PartialState().is_main_process:
    (folder / "told-0.json").write_text(json.dumps(told))
PartialState().destroy_process_group()
"""

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


def launch(script: str, folder: Path, processes: int, **environment: str) -> None:
    path = folder / "run.py"
    path.write_text(script.format(kit=str(KIT)))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **FSDP, **environment}
    done = subprocess.run([*words, str(folder)], env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]


def told(folder: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"told-{rank}.json").read_text())
    return found


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that a scorer keeps in this process, from an empty store; the launched ones start from another."""
    monkeypatch.syspath_prepend(str(KIT))
    from train_kit import pool_rows, save_model

    from saft_hf import SAFTScorer

    model, pool = save_model(tmp_path / "model"), pool_rows("messages")
    scorer = SAFTScorer(model, method="saft", contamination=0.25, cache_dir=tmp_path / "offline").fit(pool)
    kept: list[int] = scorer.filter(pool).kept_indices.tolist()
    return kept


def test_two_processes_that_load_efficiently_for_fsdp_keep_the_same_rows(tmp_path: Path, offline: list[int]) -> None:
    launch(FILTER, tmp_path, 2, ACCELERATE_USE_CPU="true")
    for rank in range(2):
        assert told(tmp_path, rank) == {"kept": offline, "size": 2, "on_again": True}


class _ZeRO3:
    """Stands for transformers' `HfDeepSpeedConfig`; with it, loading a model would import deepspeed."""

    config: dict[str, Any] = {}  # noqa: RUF012

    def is_zero3(self) -> bool:
        return True


def test_rows_are_scored_where_zero3_is_set(tmp_path: Path, offline: list[int]) -> None:
    from train_kit import make_args, pool_rows

    from saft_hf.distributed import World
    from saft_hf.train.filtering import filter_rows
    from saft_hf.train.inputs import FilterArgs

    zero3 = _ZeRO3()
    hf_deepspeed.set_hf_deepspeed_config(zero3)
    try:
        rows = pool_rows("messages")
        args = FilterArgs(model=str(tmp_path / "model"), args=make_args(tmp_path), train_dataset=rows)
        done = filter_rows(args, World())
        assert done.result is not None
        assert done.result.kept_indices.tolist() == offline
        assert hf_deepspeed._hf_deepspeed_config_weak_ref() is zero3
    finally:
        hf_deepspeed.unset_hf_deepspeed_config()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one process shards nothing: needs two CUDA devices")
def test_training_under_fsdp2_equals_sft_trainer_on_the_kept_rows(tmp_path: Path, offline: list[int]) -> None:
    launch(TRAIN, tmp_path, torch.cuda.device_count())
    found = told(tmp_path)
    assert found["saft"]
    assert found["saft"] == pytest.approx(found["plain"], abs=1e-6)
