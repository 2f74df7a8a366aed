"""`SAFTSFTTrainer`: filter the rows, then train as TRL's SFTTrainer does."""

from saft_hf.train.config import SAFTSFTConfig
from saft_hf.train.trainer import SAFTSFTTrainer

__all__ = ["SAFTSFTConfig", "SAFTSFTTrainer"]
