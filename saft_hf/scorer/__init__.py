"""`SAFTScorer`, the public class over render, embed, score and decide."""

from saft_hf.scorer.scorer import SCORE, STATUS, SAFTScorer

__all__ = ["SCORE", "STATUS", "SAFTScorer"]
