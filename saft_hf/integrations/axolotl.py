"""The filter as a plugin of axolotl: its datasets are filtered after it has tokenised them, by options in its YAML.

    plugins:
      - saft_hf.integrations.axolotl.SAFTPlugin
    saft_contamination: 0.1

The rows are read as they will be trained on: the very tokens, and as response what `labels` does not mask. With labels
of people, fit a scorer on the raw rows first (`saft-hf score`), and name it (`saft_scorer: FOLDER_OR_HUB_ID`).
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

from axolotl.common.datasets import TrainDatasetMeta, load_datasets
from axolotl.integrations.base import BasePlugin
from axolotl.loaders import load_tokenizer
from axolotl.utils.trainer import calculate_total_num_steps
from datasets import Dataset
from pydantic import create_model

from saft_hf.distributed import World
from saft_hf.embed import rng_untouched
from saft_hf.errors import SAFTInputError
from saft_hf.scorer.options import BY_NAME
from saft_hf.train.config import SAFTSFTConfig
from saft_hf.train.filtering import filter_rows
from saft_hf.train.inputs import FilterArgs

logger = logging.getLogger(__name__)

_NOT_HERE = {f"saft_{name}" for name, option in BY_NAME.items() if option.of_labels} | {
    *("saft_alpha", "saft_delta", "saft_looks"),  # of labels that certify
    *("saft_action", "saft_demonstrations", "saft_demonstrations_share"),  # of raw rows
    *("saft_push_scorer", "saft_push_dataset"),
}
_FIELDS = {
    name: field
    for name, field in SAFTSFTConfig.__dataclass_fields__.items()
    if name.startswith("saft_") and name not in _NOT_HERE
}

SAFTArgs = create_model("SAFTArgs", **{name: (field.type, field.default) for name, field in _FIELDS.items()})
"""The options that axolotl's YAML may hold: those of `SAFTSFTConfig` that need no other rows."""


class SAFTPlugin(BasePlugin):  # type: ignore[misc] # axolotl is not typed
    """Takes harmful rows out of the training rows of axolotl; audit and summary go to `output_dir`."""

    def get_input_args(self) -> str:
        """Where axolotl finds the options."""
        return f"{__name__}.SAFTArgs"

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> TrainDatasetMeta | None:
        """Let axolotl load its datasets, and filter them.

        Args:
            cfg: the whole of axolotl's YAML.
            preprocess: whether rows are only tokenised: they are filtered when the model is trained.

        Returns:
            Rows and number of steps; None where axolotl shall go on without the filter.

        Raises:
            SAFTInputError: the rows are a stream or for preferences, or options do not go together.
            SAFTUndecidedError: no decision can honestly be taken.
        """
        if preprocess or cfg.saft_enabled is False:
            return None
        if cfg.rl:
            raise SAFTInputError(
                f"`rl: {cfg.rl}`: SAFT filters rows of supervised fine-tuning. Set `saft_enabled: false`."
            )
        loaded, world = load_datasets(cfg=cfg), World()
        if not isinstance(loaded.train_dataset, Dataset):
            raise SAFTInputError("a stream cannot be filtered here. Filter it first (`saft-hf filter`).")
        told = {name: cfg[name] for name in _FIELDS if cfg[name] is not None}
        args = FilterArgs(
            model=cfg.base_model,
            args=SimpleNamespace(
                **told,
                max_length=cfg.sequence_len,
                trust_remote_code=bool(cfg.trust_remote_code),
                model_init_kwargs={"revision": cfg.revision_of_model},
            ),
            train_dataset=loaded.train_dataset,
            eval_dataset=loaded.eval_dataset,
            processing_class=load_tokenizer(cfg),
            scorer=cfg.saft_scorer,
        )
        with rng_untouched(world.device):
            record = filter_rows(args, world)
        world.on_main("writing what was filtered", lambda: record.write(cfg.output_dir, args.on_error) and None)
        logger.info("%r: %s", record.outcome, record.summary.threshold_from or record.summary.undecided)
        rows = record.dataset.flatten_indices()  # axolotl counts tokens in the table below the indices
        cfg.total_num_tokens = cfg.total_supervised_tokens = None
        steps = calculate_total_num_steps(cfg, rows)
        return TrainDatasetMeta(rows, record.eval_dataset, min(steps, cfg.max_steps) if cfg.max_steps else steps)
