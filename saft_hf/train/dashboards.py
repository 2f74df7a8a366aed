"""The scores as a histogram, where the trainer reports to: its own log takes single numbers only."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

NAME = "saft_score"
_LIKE_WANDB = {WandbCallback: "wandb", TrackioCallback: "trackio"}


def log_histogram(callbacks: Iterable[TrainerCallback], scores: NDArray[np.float32]) -> None:
    """Send it to TensorBoard, Weights & Biases and Trackio, those of them that a trainer reports to.

    Args:
        callbacks: of the trainer, which has logged before.
        scores: of the rows, [N]; NaN where a row has none.
    """
    values = scores[np.isfinite(scores)]
    if not len(values):
        return
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.tb_writer.add_histogram(NAME, values, 0)
        elif (name := _LIKE_WANDB.get(type(callback))) is not None:
            board = import_module(name)
            board.log({NAME: board.Histogram(values)})
