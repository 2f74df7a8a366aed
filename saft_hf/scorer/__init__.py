"""`SAFTScorer`, the public class over render, embed, score and decide."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saft_hf.scorer.inputs import PROBABILITY, SCORE, STATUS, without_scores
    from saft_hf.scorer.scorer import SAFTScorer

__all__ = ["PROBABILITY", "SCORE", "STATUS", "SAFTScorer", "without_scores"]


def __getattr__(name: str) -> Any:
    # On first use: the shell reads the table of options beside this, for `--help`, without torch.
    if name in __all__:
        return getattr(import_module(f"{__name__}.{'scorer' if name == 'SAFTScorer' else 'inputs'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
