"""The demo's rows as a source, and a small experiment on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from saft_hf.evaluate.config import ExperimentConfig
from saft_hf.evaluate.pools import Dialogue, ExperimentRows, read_rows


def demo_source(demo_pool: Dataset) -> ExperimentRows:
    """Labelled rows, harmless ones, and refusals; two answers to some prompts, so that there are pairs."""
    rows = read_rows(demo_pool, labelled=True)
    refused = [Dialogue(row.prompt, "I am sorry, but I cannot help with that.", False) for row in rows if row.harmful]
    safe = [row for row in rows if not row.harmful]
    return ExperimentRows(rows + refused, [safe], [row for row in rows if row.is_demonstration], safe[:8])


def small_config(demo_model: str, folder: Path, **options: Any) -> ExperimentConfig:
    """Two arms that train, on one pool of 40 rows."""
    return ExperimentConfig(
        **{
            "model_name_or_path": demo_model,
            "output_dir": str(folder / "out"),
            "labelled_name": "rows",
            "benign_name": ["rows"],
            "cache_dir": str(folder / "store"),
            "pools": ["hard"],
            "shares": [0.25],
            "rows": 40,
            "labelled_rows": 30,
            "seeds": [0],
            "arms": ["untuned", "none", "random", "saft", "oracle"],
            "judges": ["refusal", "trained"],
            "prompts": 4,
            "pairs": 4,
            "benign_rows": 4,
            "safe_prompts": 4,
            "max_new_tokens": 6,
            "training": {
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-2,
                "gradient_checkpointing": False,
                "logging_strategy": "no",
            },
            **options,
        }
    )
