"""What scoring costs beside one epoch of LoRA SFT on the same rows and device.

    python examples/benchmarks/epoch.py
    python examples/benchmarks/epoch.py --model_name_or_path llama-7b --device cuda --dtype bfloat16

The epoch: TRL's SFTTrainer in the dtype of the scoring, gradient checkpointing, packed rows (no padding), LoRA of rank
16 on all linear layers; its steps are timed after the first, on as many rows as `--rows`, and nothing else of it
(no evaluation, no saving). Scoring: `fit` and `score_dataset` into an empty store, without loading the model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from shapes import settle, whole_model
from task import ROOT, Task, alone
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from saft_hf import SAFTScorer

LIMITS = {"response_start": 0.05, "response_mean": 0.20, "auto": 0.35, "reference": 0.35}
"""What each way of scoring may cost: the published score at either readout, what is done with labels, and without."""

LABELS = 100


class Steps(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self, device: str) -> None:
        self.times: list[float] = []
        self._device = device

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """A step has ended."""
        settle(self._device)
        self.times.append(time.perf_counter())


def epoch(task: Task, steps: int) -> float:
    """Seconds of one epoch, from the median of some steps."""
    watch = Steps(task.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=whole_model(task.model, task.device, task.torch_dtype),
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=8,
                gradient_checkpointing=True,
                packing=True,
                packing_strategy="wrapped",
                max_length=256,
                max_steps=steps + 1,
                save_strategy="no",
                report_to="none",
                bf16=False,
                use_cpu=task.device == "cpu",
                dataset_num_proc=None,
            ),
            train_dataset=task.read_rows(),
            processing_class=task.tokenizer,
            peft_config=LoraConfig(r=16, target_modules="all-linear"),
            callbacks=[watch],
        )
        in_epoch = len(trainer.get_train_dataloader())
        trainer.train()
    taken = [after - before for before, after in zip(watch.times, watch.times[1:], strict=False)]
    return in_epoch * sorted(taken)[len(taken) // 2]


def scoring(task: Task, way: str) -> float:
    """Seconds of scoring every row."""
    rows = task.read_rows()
    model = whole_model(task.model, task.device, task.torch_dtype)
    options = {} if way in ("auto", "reference") else {"readout": way, "method": "saft", "contamination": 0.1}
    with tempfile.TemporaryDirectory() as folder:

        def scorer(store: str) -> SAFTScorer:
            return SAFTScorer(model, processing_class=task.tokenizer, cache_dir=f"{folder}/{store}", **options)

        labelled = rows.shuffle(seed=0).select(range(LABELS)) if way == "auto" else None
        scorer("warm").fit(rows.select(range(64)), on_undecided="keep")
        begin = time.perf_counter()
        scorer("cold").fit(rows, labelled, on_undecided="keep").score_dataset(rows)
        settle(task.device)
        return time.perf_counter() - begin


def main() -> None:
    """Measure the epoch before and after the scorings, print shares and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Task.add_options(parser, rows=3000)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--ways", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "epoch.json")
    options = parser.parse_args()
    task = Task.of(options)
    print(f"{torch.get_num_threads()} threads, {options.rows} rows")
    epochs = [alone(epoch, task, options.steps)]
    seconds = {way: alone(scoring, task, way) for way in options.ways}
    epochs.append(alone(epoch, task, options.steps))
    whole = sum(epochs) / len(epochs)
    print(f"one epoch: {whole:.1f} s ({', '.join(f'{value:.1f}' for value in epochs)})")
    for way, value in seconds.items():
        print(f"{way}: {value:.1f} s, {value / whole:.1%} of the epoch (at most {LIMITS[way]:.0%})")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    shares = {way: value / whole for way, value in seconds.items()}
    options.output.write_text(json.dumps({"epoch_s": epochs, "scoring_s": seconds, "shares": shares}, indent=2))


if __name__ == "__main__":
    main()
