"""The face over render, embed, score and decide."""

from saft_hf.scorer.face import SCORE, STATUS, SAFTScorer

__all__ = ["SCORE", "STATUS", "SAFTScorer"]
