"""SAFTSFTTrainer on a small real model: kept rows, losses, and where the time goes; LoRA and full, 1 process and 2.

    python examples/train_on_lab_lm.py

The pool is easy(0.25) of `measure_saft.py`: 3,000 rows, a quarter of them harmful; score and threshold are chosen on
100 labelled rows (`auto`). Every arm scores from nothing (an empty cache) and sees the same rows a step, with one
thread a process unless `--threads` says otherwise. `offline` filters first and then trains with SFTTrainer. Of the
seconds, `epoch` is what one epoch would take at this speed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from measure_saft import SHARED, make_pool
from peft import LoraConfig
from trl import SFTTrainer

from saft_hf import SAFTScorer, SAFTSFTConfig, SAFTSFTTrainer

ROWS_A_STEP = 8


def work(options: argparse.Namespace) -> None:
    """One arm, on each process of a launch."""
    state = PartialState(cpu=True)
    folder, pool = Path(options.folder), make_pool("easy", options.data, options.rows, np.random.default_rng(0))
    labelled = pool.select(np.random.default_rng(1).choice(len(pool), 100, replace=False))
    args = SAFTSFTConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_steps=options.max_steps,
        per_device_train_batch_size=ROWS_A_STEP // state.num_processes,
        logging_steps=1,
        save_strategy="no",
        gradient_checkpointing=False,
        disable_tqdm=True,
        learning_rate=1e-4,
        saft_cache_dir=str(folder / "cache"),
        saft_on_undecided="keep",
    )
    call: dict[str, Any] = {"train_dataset": pool}
    if options.tuning == "lora":
        call["peft_config"] = LoraConfig(
            r=8, target_modules="all-linear", exclude_modules=["lm_head"], init_lora_weights="gaussian"
        )
    begin = time.perf_counter()
    if options.arm == "offline":
        scorer = SAFTScorer(options.model, cache_dir=folder / "cache").fit(pool, labelled, on_undecided="keep")
        kept = scorer.filter(pool).kept_indices
        scoring = time.perf_counter() - begin
        trainer = SFTTrainer(options.model, args, **{**call, "train_dataset": pool.select(kept)})
    else:
        trainer = SAFTSFTTrainer(options.model, args, saft_labelled=labelled, **call)
        kept = trainer.saft_result.kept_indices
        scoring = trainer.saft_summary.seconds
    trained = trainer.train()
    if state.is_main_process:
        told = {
            "kept": kept.tolist(),
            "harmful": int((~np.asarray(pool["is_safe"], dtype=bool))[kept].sum()),
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "scoring": scoring,
            "training": trained.metrics["train_runtime"],
        }
        (folder / "told.json").write_text(json.dumps(told))
    state.destroy_process_group()


def launch(options: argparse.Namespace, arm: str, tuning: str, processes: int) -> dict[str, Any]:
    """Run one arm on so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(options.threads)}
        words = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            __file__,
        ]
        for name in ("model", "data", "rows", "max_steps"):
            words += [f"--{name}", str(getattr(options, name))]
        words += ["--arm", arm, "--tuning", tuning, "--folder", folder]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        results = Path(folder) / "told.json"
        if not results.exists():
            raise SystemExit(done.stderr[-3000:])
        told: dict[str, Any] = json.loads(results.read_text())
        return told


def main() -> None:
    """Run every arm and print the table; or be one process of an arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(SHARED / "lab-lm"))
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of the labelled files")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--max_steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    for name in ("arm", "tuning", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        work(options)
        return
    print("tuning  arm      processes   kept  harmful   first    last   scoring  training  epoch   scoring share")
    for tuning in ("full", "lora"):
        told: dict[tuple[str, int], dict[str, Any]] = {}
        for arm, processes in (("offline", 1), ("saft", 1), ("saft", 2)):
            one = told[arm, processes] = launch(options, arm, tuning, processes)
            losses, steps = one["losses"], len(one["kept"]) / ROWS_A_STEP
            epoch = one["training"] / len(losses) * steps
            kept, scoring = len(one["kept"]), one["scoring"]
            print(
                f"{tuning:6}  {arm:7}  {processes:9}  {kept:5}  {one['harmful'] / kept:7.1%}  "
                f"{losses[0]:6.4f}  {losses[-1]:6.4f}  {scoring:6.1f} s  {one['training']:6.1f} s  {epoch:4.0f} s  "
                f"{scoring / (scoring + epoch):.1%} of scoring + epoch",
                flush=True,
            )
        runs = list(told.values())
        apart = [float(np.abs(np.subtract(run["losses"], runs[0]["losses"])).max()) for run in runs[1:]]
        same = all(run["kept"] == runs[0]["kept"] for run in runs)
        print(
            f"        same rows kept: {same}; largest difference of a loss to offline: {apart[0]:.1e}, {apart[1]:.1e}"
        )


if __name__ == "__main__":
    main()
