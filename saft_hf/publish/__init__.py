"""What people and the Hub read: cards made from plain summaries."""

from __future__ import annotations

from saft_hf.publish.cards import LabelsUsed, PoolCounts, ScorerCard, render_card

__all__ = ["LabelsUsed", "PoolCounts", "ScorerCard", "render_card"]
