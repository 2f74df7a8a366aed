"""Does `saft_drift` tell which harmless rows wear off a model's refusals? On a small real model, beside answer length.

    python examples/drift/measure.py

Of 3,000 harmless Alpaca rows, sets of 600 are tuned on: those with the lowest and the highest drift; the same within
each of ten bands of answer length, so that all lengths are as common in both; the shortest and the longest answers; and
random ones. Then the model is asked harmful prompts, and safe ones that sound harmful: shares of answers that open like
a refusal. A quarter of an hour a seed on two idle cores; `--sets` names some of the sets.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_dataset
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import SFTConfig, SFTTrainer

from saft_hf import SAFTScorer
from saft_hf.evaluate.generate import generate_answers
from saft_hf.evaluate.judges import is_refusal

SHARED = Path(__file__).resolve().parents[3] / "shared"
ROWS, TUNED, PROMPTS, BANDS = 3000, 600, 60, 10


def read(name: str, data: Path) -> Dataset:
    """Rows of the shared folder."""
    return load_dataset("json", data_files=str(data / f"{name}.jsonl.gz"), split="train")


def sets_of(drift: np.ndarray, length: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Name of a set -> its rows."""
    rng, by_length = np.random.default_rng(seed), np.argsort(length, kind="stable")
    bands = [band[np.argsort(drift[band], kind="stable")] for band in np.array_split(by_length, BANDS)]
    by_drift, each = np.argsort(drift, kind="stable"), TUNED // BANDS
    return {
        "random": rng.choice(len(drift), TUNED, replace=False),
        "least drift": by_drift[:TUNED],
        "most drift": by_drift[-TUNED:],
        "least drift of its length": np.concatenate([band[:each] for band in bands]),
        "most drift of its length": np.concatenate([band[-each:] for band in bands]),
        "shortest": by_length[:TUNED],
        "longest": by_length[-TUNED:],
    }


def refusals(model: object, tokenizer: object, prompts: list[str]) -> float:
    """Share of answers that open like a refusal."""
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    answers = generate_answers(model, tokenizer, asked, max_new_tokens=32, batch_size=30)
    return float(np.mean([is_refusal(answer) for answer in answers]))


def tune(name: str, rows: Dataset, seed: int) -> object:
    """Tune all weights, two epochs."""
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            folder,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            gradient_checkpointing=False,
            num_train_epochs=2,
            learning_rate=3e-4,
            per_device_train_batch_size=8,
            max_length=256,
            logging_strategy="no",
            seed=seed,
        )
        trainer = SFTTrainer(name, args, train_dataset=rows.select_columns(["messages"]))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer.model


def main() -> None:
    """Measure, and print a JSON line a set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(SHARED / "lab-lm"))
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sets", nargs="+", help="by default all")
    options = parser.parse_args()
    benign = read("alpaca_benign", options.data).shuffle(seed=0).select(range(ROWS))
    harmful = sorted(
        {row["messages"][0]["content"] for row in read("beavertails_pairs", options.data) if not row["is_safe"]}
    )
    safe = [row["messages"][0]["content"] for row in read("xstest_prompts", options.data) if row["is_safe"]]
    asked = {
        name: np.random.default_rng(0).choice(prompts, PROMPTS, replace=False).tolist()
        for name, prompts in (("harmful", harmful), ("safe", safe))
    }
    drift = np.asarray(SAFTScorer(options.model).drift(benign)["saft_drift"][:])
    length = np.array([len(messages[-1]["content"]) for messages in benign["messages"]])
    known = ~np.isnan(drift)
    print(
        json.dumps(
            {"rows": int(known.sum()), "spearman with length": round(spearmanr(drift[known], length[known])[0], 3)}
        )
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    found = {name: round(refusals(base, tokenizer, prompts), 3) for name, prompts in asked.items()}
    print(json.dumps({"set": "untuned", "refused": found}), flush=True)
    places = np.flatnonzero(known)
    for seed in options.seeds:
        for name, rows in sets_of(drift[known], length[known], seed).items():
            if options.sets and name not in options.sets:
                continue
            model = tune(options.model, benign.select(np.sort(places[rows])), seed)
            found = {kind: round(refusals(model, tokenizer, prompts), 3) for kind, prompts in asked.items()}
            seen = {
                "characters": int(np.median(length[known][rows])),
                "drift": round(float(drift[known][rows].mean()), 3),
            }
            print(json.dumps({"set": name, "seed": seed, **seen, "refused": found}), flush=True)


if __name__ == "__main__":
    main()
