"""Vectors to scores: mergeable moments, principal directions, the published score."""

from saft_hf.score.moments import Moments
from saft_hf.score.subspace import Subspace, principal_subspace, projections, saft_score, saft_scores

__all__ = ["Moments", "Subspace", "principal_subspace", "projections", "saft_score", "saft_scores"]
