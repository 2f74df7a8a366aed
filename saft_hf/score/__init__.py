"""Vectors to scores: mergeable moments, principal directions, the published score and the directed one."""

from saft_hf.score.directed import Frame, LinearScore, learn_direction
from saft_hf.score.moments import Moments
from saft_hf.score.published import PublishedScore
from saft_hf.score.subspace import Subspace, principal_subspace, projections, saft_score, saft_scores

__all__ = [
    "Frame",
    "LinearScore",
    "Moments",
    "PublishedScore",
    "Subspace",
    "learn_direction",
    "principal_subspace",
    "projections",
    "saft_score",
    "saft_scores",
]
