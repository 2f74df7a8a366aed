"""What people and the Hub read: cards made from a `Summary`, and pushes that land."""

from __future__ import annotations

from saft_hf.hub.cards import model_section, scorer_card
from saft_hf.hub.merge import merge_cards
from saft_hf.hub.network import Repository, check_token, redact, with_retries
from saft_hf.hub.push import AUDIT, CARD, PRIVATE, REVIEW, Destination, check_push, is_public, push_files, push_folder
from saft_hf.hub.split import PICTURE, PushedSplit, push_scored, write_local_card

__all__ = [
    "AUDIT",
    "CARD",
    "PICTURE",
    "PRIVATE",
    "REVIEW",
    "Destination",
    "PushedSplit",
    "Repository",
    "check_push",
    "check_token",
    "is_public",
    "merge_cards",
    "model_section",
    "push_files",
    "push_folder",
    "push_scored",
    "redact",
    "scorer_card",
    "with_retries",
    "write_local_card",
]
