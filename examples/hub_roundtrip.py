"""Score, filter, push; then, in a fresh process, fetch all of it, train, and push the model.

    python examples/hub_roundtrip.py me          # your name on the Hub; log in first

makes private repositories: `me/saft-demo-scorer`, `me/saft-demo-rows` (what is kept), and `me/saft-demo-model` with its
scorer and rows beside it. Rows and model are those that ship with the package, so that it takes a minute on a CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from datasets import load_dataset

from saft_hf import SAFTScorer, SAFTSFTConfig, SAFTSFTTrainer
from saft_hf.assets import demo_folder, demo_rows_path


def score_and_filter(user: str) -> None:
    """Fit on 100 labels, filter, and push scorer and rows."""
    pool = load_dataset("json", data_files=str(demo_rows_path()), split="train")
    labelled = pool.shuffle(seed=0).select(range(100))
    scorer = SAFTScorer(str(demo_folder())).fit(pool, labelled)
    print("scorer:", scorer.push_to_hub(f"{user}/saft-demo-scorer"))
    result = scorer.filter(pool)
    print("rows:", result.push_to_hub(f"{user}/saft-demo-rows"), result.decisions.counts())


def train(user: str, folder: str) -> None:
    """Train on what was pushed, filtered once more by the scorer that was pushed, and push the model."""
    model = str(demo_folder())
    trainer = SAFTSFTTrainer(
        model=model,
        args=SAFTSFTConfig(
            output_dir=folder,
            hub_model_id=f"{user}/saft-demo-model",
            hub_private_repo=True,
            max_steps=2,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            saft_push_scorer=True,
            saft_push_dataset=True,
        ),
        train_dataset=load_dataset(f"{user}/saft-demo-rows", split="train"),
        # The demo's model is a folder, which a pushed scorer does not name; a model on the Hub would be found.
        saft_scorer=SAFTScorer.from_pretrained(f"{user}/saft-demo-scorer", model=model),
    )
    trainer.train()
    print("model:", trainer.push_to_hub(dataset_name=f"{user}/saft-demo-rows"))


def main() -> None:
    """Do both; the second half in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("user", help="name or organisation on the Hub")
    parser.add_argument("--train", metavar="FOLDER", help="only the second half")
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.user, arguments.train)
        return
    score_and_filter(arguments.user)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), arguments.user, "--train", f"{folder}/model"], check=True
        )


if __name__ == "__main__":
    main()
