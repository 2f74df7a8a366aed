"""A fitted scorer -> what its card says."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from saft_hf.publish import LabelsUsed, ScorerCard
from saft_hf.scorer.fitted import Fitted

_PACKAGES = ("saft-hf", "torch", "transformers")


def scorer_card(fitted: Fitted) -> ScorerCard:
    """The values of `model_cards/scorer.md.jinja`.

    Args:
        fitted: the learned state.

    Returns:
        Plain values. A model that is a folder on this machine is not named: its path says nothing to others.
    """
    summary = fitted.summary
    on_hub = fitted.model is not None and not Path(fitted.model).exists() and fitted.model.count("/") <= 1
    labels: LabelsUsed | None = None
    if summary["labels"] is not None and fitted.threshold_from == "f1":
        labels = {
            "rows": summary["labels"]["rows"],
            "harmful": summary["labels"]["harmful"],
            "column": summary["labels"]["column"],
            "f1": summary["f1"],
            "separating_points": summary["separating_points"],
        }
    return {
        "title": "SAFT scorer" + (f" for {fitted.model}" if on_hub else ""),
        "repo_id": None,
        "model": fitted.model if on_hub else None,
        "revision": fitted.revision,
        "model_fingerprint": fitted.model_fingerprint,
        "template_digest": fitted.template_digest,
        "layer": fitted.layer,
        "num_layers": fitted.num_layers,
        "readout": fitted.readout.value,
        "method": fitted.method,
        "k": fitted.k,
        "threshold": fitted.threshold,
        "threshold_from": fitted.threshold_from,
        "expected_share": summary["expected_share"],
        "refusal": fitted.refusal,
        "labels": labels,
        "pool": summary["pool"],
        "variance_share": summary["variance_share"],
        "spectral_gap": summary["spectral_gap"],
        "versions": {package: version(package) for package in _PACKAGES},
    }
