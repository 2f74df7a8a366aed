"""A fitted scorer -> what its card says."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from saft_hf.hub import LabelsUsed, ScorerCard
from saft_hf.scorer.fitted import Fitted

_PACKAGES = ("saft-hf", "torch", "transformers")


def public_name(fitted: Fitted) -> str | None:
    """Hub id of the model; None for a folder on this machine, whose path says nothing to others and is theirs."""
    name = fitted.model
    return name if name is not None and not Path(name).exists() and name.count("/") <= 1 else None


def scorer_card(fitted: Fitted) -> ScorerCard:
    """The values of `model_cards/scorer.md.jinja`.

    Args:
        fitted: the learned state.

    Returns:
        Plain values. A model that is a folder on this machine is not named: its path says nothing to others.
    """
    summary = fitted.summary
    name = public_name(fitted)
    labels: LabelsUsed | None = None
    if summary["labels"] is not None:
        labels = {name: summary["labels"][name] for name in ("rows", "harmful", "column")}  # type: ignore[assignment]
    return {
        "title": "SAFT scorer" + (f" for {name}" if name else ""),
        "repo_id": None,
        "model": name,
        "revision": fitted.revision,
        "model_fingerprint": fitted.model_fingerprint,
        "template_digest": fitted.template_digest,
        "layers": fitted.layers,
        "num_layers": fitted.num_layers,
        "readouts": [readout.value for readout in fitted.readouts],
        "method": fitted.method,
        "k": fitted.k,
        "threshold": fitted.threshold,
        "threshold_from": fitted.threshold_from,
        "contamination": summary["contamination"],
        "undecided": fitted.undecided,
        "labels": labels,
        "pool": summary["pool"],
        "variance_share": summary.get("variance_share"),
        "spectral_gap": summary.get("spectral_gap"),
        "f1": summary.get("f1"),
        "separating_points": summary.get("separating_points"),
        "selection": summary.get("selection"),
        "expected": summary.get("expected"),
        "versions": {package: version(package) for package in _PACKAGES},
    }
