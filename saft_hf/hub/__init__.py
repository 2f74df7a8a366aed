"""What people and the Hub read: cards made from plain summaries, and pushes that land."""

from __future__ import annotations

from saft_hf.hub.cards import LabelsUsed, PoolCounts, ScorerCard, render_card
from saft_hf.hub.filtered import Filtered, RowsCard, Source, dataset_card, filtered_values, model_section
from saft_hf.hub.merge import merge_cards
from saft_hf.hub.network import Repository, with_retries
from saft_hf.hub.push import CARD, Destination, push_files, push_folder

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
    "push_files",
    "push_folder",
    "render_card",
    "with_retries",
]
