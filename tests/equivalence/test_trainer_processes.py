"""Two processes train on the rows that one keeps, with the losses of filtering offline first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KIT = Path(__file__).resolve().parents[1] / "train"

# Both runs of a launch in one script: starting processes takes longer than training.
SCRIPT = """
import json, os, sys
sys.path.insert(0, {kit!r})
from pathlib import Path
import peft
import torch
from accelerate import PartialState
from train_kit import losses, make_args, pool_rows
from trl import SFTTrainer
from saft_hf import SAFTSFTTrainer

folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
model, stream, told = str(folder / "model"), options.pop("stream", False), {{}}
pool = pool_rows("messages")
def call():
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="gaussian")
    return {{"peft_config": lora}} if options.get("seed") else {{}}
offline = json.loads((folder / "kept.json").read_text())
runs = {{"saft": (SAFTSFTTrainer, pool), "offline": (SFTTrainer, pool.select(offline))}}
calls = {{"saft": call, "offline": call}}
if (folder / "rows.json").exists():  # masked, and with demonstrations
    from datasets import Dataset
    runs["offline"] = (SFTTrainer, Dataset.from_list(json.loads((folder / "rows.json").read_text())))
    calls["saft"] = lambda: {{"saft_demonstrations": pool_rows("prompt_completion", 3, seed=9)}}
    options["max_length"] = None
for name, (trainer_class, rows) in runs.items():
    rows = rows.to_iterable_dataset(num_shards=1) if stream else rows
    torch.manual_seed(3)  # TRL 1.10 draws adapters from whatever state it finds
    trainer = trainer_class(model, make_args(folder / name, **options), train_dataset=rows, **calls[name]())
    trainer.train()
    told[name] = losses(trainer)
    if name == "saft" and not stream:
        told["kept"] = trainer.saft_result.kept_indices.tolist()
    if name == "saft" and stream:
        summary = trainer.saft_summary
        told["counts"] = {{"kept": summary.kept, "removed": summary.removed, "errored": summary.errored}}
told["size"] = PartialState().num_processes
(folder / f"told-{{PartialState().process_index}}.json").write_text(json.dumps(told))
PartialState().wait_for_everyone()
PartialState().destroy_process_group()
sys.stdout.flush()
# Gloo's threads sometimes abort a process that is only taking itself down.
os._exit(0)
"""


def launch(processes: int, folder: Path, script: Path | None = None, **options: Any) -> list[dict[str, Any]]:
    if script is None:
        script = folder / "run.py"
        script.write_text(SCRIPT.format(kit=str(KIT)))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
        str(script),
    ]
    done = subprocess.run(
        [*words, str(folder), json.dumps(options)], env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that a scorer keeps in this process, before any training."""
    monkeypatch.syspath_prepend(str(KIT))
    from train_kit import pool_rows, save_model

    from saft_hf import SAFTScorer

    model, pool = save_model(tmp_path / "model"), pool_rows("messages")
    scorer = SAFTScorer(model, method="saft", contamination=0.25, cache_dir=tmp_path / "cache").fit(pool)
    kept: list[int] = scorer.filter(pool).kept_indices.tolist()
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    return kept


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_processes_train_on_the_rows_filtered_offline(kind: str, offline: list[int], tmp_path: Path) -> None:
    told = launch(2, tmp_path, **({} if kind == "full" else {"seed": 7}))
    assert [one["size"] for one in told] == [2, 2]
    for one in told:
        assert one["kept"] == offline
        assert one["saft"] == pytest.approx(one["offline"], abs=1e-6)
        assert len(one["saft"]) == 3


def test_two_processes_mask_and_demonstrate_as_one(offline: list[int], tmp_path: Path) -> None:
    from train_kit import make_args, pool_rows

    from saft_hf import SAFTSFTTrainer

    options = {"saft_action": "mask", "saft_demonstrations_share": 0.2}
    one = SAFTSFTTrainer(
        str(tmp_path / "model"),
        make_args(tmp_path / "one", max_length=None, **options),
        train_dataset=pool_rows("messages"),
        saft_demonstrations=pool_rows("prompt_completion", 3, seed=9),
    )
    assert len(one.train_dataset) == 40 + round(0.2 * len(offline))
    (tmp_path / "rows.json").write_text(json.dumps(one.train_dataset.select_columns(["input_ids", "labels"]).to_list()))
    for told in launch(2, tmp_path, **options):
        assert told["kept"] == offline
        assert told["saft"] == pytest.approx(told["offline"], abs=1e-6)


def test_two_processes_filter_a_stream(offline: list[int], tmp_path: Path) -> None:
    told = launch(2, tmp_path, stream=True, max_steps=7)
    for one in told:
        assert one["saft"] == pytest.approx(one["offline"], abs=1e-6)
        # Each process reads the whole stream, and a row counts once: 28 rows were trained on.
        assert sum(one["counts"].values()) == 40
        assert one["counts"]["kept"] == len(offline)


def test_an_error_on_one_process_reaches_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(KIT))
    from train_kit import save_model

    save_model(tmp_path / "model")
    first, second = launch(2, tmp_path, Path(__file__).with_name("fail_alone.py"))
    # Nothing was asked for: both train on all rows, and what may be published names no folder.
    for one in (first, second):
        assert one["alone"][:2] == [False, 40]
    public = (tmp_path / "alone" / "out" / "saft_summary.json").read_text()
    assert "failed on process 1 of 2" in public
    assert "someone" not in public + first["alone"][2] + second["alone"][2]
    for what in ("summary", "stream", "saving"):
        assert first[what].startswith("OSError: [Errno 28]"), what
        assert first[what] in second[what], what
        assert "failed on process 0 of 2" in second[what], what
