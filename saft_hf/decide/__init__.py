"""Scores to decisions: labels, thresholds, kept / removed / errored, the audit file."""

from saft_hf.decide.aims import ChosenThreshold, Goal, ThresholdAim, threshold_for_aim
from saft_hf.decide.audit import AuditDigests, read_audit, row_digest, rows_digest, write_audit
from saft_hf.decide.filtering import Decision, Decisions, OnError, Reason, check_outcome, decide
from saft_hf.decide.labels import LabelSource, RowLabel, read_labels, resolve_label_column
from saft_hf.decide.threshold import calibrate_published, flagged, near_threshold, threshold_for_contamination

__all__ = [
    "AuditDigests",
    "ChosenThreshold",
    "Decision",
    "Decisions",
    "Goal",
    "LabelSource",
    "OnError",
    "Reason",
    "RowLabel",
    "ThresholdAim",
    "calibrate_published",
    "check_outcome",
    "decide",
    "flagged",
    "near_threshold",
    "read_audit",
    "read_labels",
    "resolve_label_column",
    "row_digest",
    "rows_digest",
    "threshold_for_aim",
    "threshold_for_contamination",
    "write_audit",
]
