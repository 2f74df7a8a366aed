"""What people and the Hub read: cards made from plain summaries, and pushes that land."""

from __future__ import annotations

from saft_hf.publish.cards import LabelsUsed, PoolCounts, ScorerCard, render_card
from saft_hf.publish.filtered import Filtered, RowsCard, Source, dataset_card, filtered_values, model_section
from saft_hf.publish.hub import CARD, Destination, push_files, push_folder
from saft_hf.publish.merge import merge_cards
from saft_hf.publish.network import Repository, persistently

__all__ = [
    "CARD",
    "Destination",
    "Filtered",
    "LabelsUsed",
    "PoolCounts",
    "Repository",
    "RowsCard",
    "ScorerCard",
    "Source",
    "dataset_card",
    "filtered_values",
    "merge_cards",
    "model_section",
    "persistently",
    "push_files",
    "push_folder",
    "render_card",
]
