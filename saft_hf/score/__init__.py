"""Vectors to scores: mergeable moments, principal directions, the published score and the directed one."""

from saft_hf.score.directed import COMPONENTS, Frame, LinearScore, with_differences
from saft_hf.score.direction import Direction, fit_direction
from saft_hf.score.moments import Moments
from saft_hf.score.published import PublishedScore
from saft_hf.score.subspace import Subspace, principal_subspace, projections, saft_scores, subspace_of_rows

__all__ = [
    "COMPONENTS",
    "Direction",
    "Frame",
    "LinearScore",
    "Moments",
    "PublishedScore",
    "Subspace",
    "fit_direction",
    "principal_subspace",
    "projections",
    "saft_scores",
    "subspace_of_rows",
    "with_differences",
]
