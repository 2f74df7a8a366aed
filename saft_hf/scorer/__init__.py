"""`SAFTScorer`, the public class over render, embed, score and decide."""

from saft_hf.scorer.inputs import SCORE, STATUS, without_scores
from saft_hf.scorer.scorer import SAFTScorer

__all__ = ["SCORE", "STATUS", "SAFTScorer", "without_scores"]
