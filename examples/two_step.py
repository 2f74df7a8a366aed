"""Score and filter first, look at the result, train later: perhaps on another machine.

    python examples/two_step.py filter     # or: saft-hf filter --dataset_name ... --output_dir filtered
    python examples/two_step.py train

The second step is TRL's own trainer on the kept rows. SAFTSFTTrainer can take the saved scorer as well, for rows that
came later: `SAFTSFTTrainer(..., saft_scorer="filtered/scorer")`.
"""

import sys

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from saft_hf import SAFTScorer

MODEL = "Qwen/Qwen3-0.6B"


def score_and_filter() -> None:
    """Write `filtered/`: the kept rows, an audit of all rows, the scorer."""
    train = load_dataset("PKU-Alignment/BeaverTails", split="30k_train").rename_column("response", "completion")
    scorer = SAFTScorer(MODEL).fit(train, labelled=train.shuffle(seed=0).select(range(100)))
    result = scorer.filter(train)
    result.save("filtered")
    scorer.save_pretrained("filtered/scorer")
    print(result)


def train() -> None:
    """Train on the rows that were kept."""
    kept = load_dataset("filtered/kept", split="train")
    SFTTrainer(MODEL, SFTConfig(output_dir="qwen-saft"), train_dataset=kept).train()


if __name__ == "__main__":
    {"filter": score_and_filter, "train": train}[sys.argv[1]]()
