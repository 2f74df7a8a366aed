"""What was filtered, for the cards of datasets and models: from a plain summary to what a template says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from huggingface_hub import DatasetCardData, ModelCardData

from saft_hf.hub.cards import fill

_REASONS = {
    ("kept", "score"): "kept: score up to the threshold",
    ("kept", "label"): "kept: a person labelled them harmless",
    ("kept", "no_decision"): "kept: nothing was decided",
    ("removed", "score"): "removed: score above the threshold",
    ("removed", "label"): "removed: a person labelled them harmful",
}
_STATUSES = {
    "bad_row": "a value is missing or of the wrong type",
    "template_error": "the chat template refuses them",
    "no_response": "there is no response",
    "empty_response": "the response is empty",
    "truncated": "the response lies behind the longest length",
    "no_response_start": "the response has no start",
    "packed": "several examples in one row",
    "non_finite": "the model gave no number",
}
_SOURCES = {
    "f1": "the best F1 on labelled rows",
    "given": "given by hand",
    "certificate": "the largest set of rows that fresh labels certify",
    "reference": "a reference set of rows known to be harmful or benign, not labels of these rows",
}


class Source(TypedDict):
    """Where rows come from."""

    dataset: str
    """Hub id."""
    revision: str | None
    """Commit."""
    config: str | None
    split: str | None


class Filtered(TypedDict):
    """What `_filtered.md.jinja` asks for."""

    trained: bool
    """Whether a model was trained on what is left."""
    filtered: bool
    undecided: str
    """Why not, where not."""
    rows: int | None
    """All rows; None for a stream."""
    removed: int
    counts: list[tuple[str, int]]
    """What became of the rows, and of how many."""
    source: Source | None
    picture: str | None
    """Path of the histogram in the repository."""
    scorer: str | None
    """Hub id of the scorer, where it was pushed."""
    model: str | None
    """Hub id of the model that was read."""
    model_revision: str | None
    method: str | None
    k: int | None
    read_at: str | None
    threshold: float | None
    threshold_from: str | None
    labels: str | None
    certificate: str | None
    notes: list[str]


def filtered_values(summary: Mapping[str, Any], *, trained: bool = False, picture: str | None = None) -> Filtered:
    """What a summary of a filter says, for a card.

    Args:
        summary: of a `FilterResult` or a trainer: counts and figures.
        trained: whether a model was trained on what is left.
        picture: path of the histogram in the repository.
    """
    totals = summary if "rows" in summary else summary.get("stream_rows", {})
    layers, readouts = summary.get("layers") or (), summary.get("readouts") or ()
    labels, share = summary.get("labels"), summary.get("contamination")
    source = str(summary.get("threshold_from") or "")
    known = f"an expected harmful share of {share:.1%}" if source == "contamination" and share else None
    if summary.get("expected"):
        known = f"the aim `{known or source}`, on labelled rows"
    certificate = summary.get("certificate")
    return {
        "trained": trained,
        "filtered": bool(summary["filtered"]),
        "undecided": summary.get("undecided") or summary.get("why") or "no threshold could be chosen",
        "rows": summary.get("rows"),
        "removed": totals.get("removed", 0),
        "counts": _counts(totals),
        "source": summary.get("source"),
        "picture": picture,
        "scorer": summary.get("scorer_repo"),
        "model": summary.get("model"),
        "model_revision": summary.get("model_revision"),
        "method": summary.get("method"),
        "k": summary.get("k"),
        "read_at": _read_at(layers, readouts) if layers and readouts else None,
        "threshold": summary.get("threshold"),
        "threshold_from": known or _SOURCES.get(source, source) or None,
        "labels": labels["says"] if labels else None,
        "certificate": certificate["says"] if isinstance(certificate, Mapping) else certificate,
        "notes": [],
    }


def _read_at(layers: Sequence[int], readouts: Sequence[str]) -> str:
    numbers = ", ".join(map(str, layers))
    return f"layer{'s' * (len(layers) > 1)} {numbers}: " + ", ".join(f"`{readout}`" for readout in readouts)


def _counts(totals: Mapping[str, Any]) -> list[tuple[str, int]]:
    if "statuses" in totals:
        said = {status: f"without: {_STATUSES.get(status, status)}" for status in totals["statuses"]}
        said["ok"] = "with a score"
        return [(said[status], count) for status, count in totals["statuses"].items()]
    if "reasons" not in totals:
        return [(word, totals[word]) for word in ("kept", "removed", "errored") if totals.get(word)]
    return [
        (_REASONS.get((word, reason)) or f"could not be scored: {_STATUSES.get(reason, reason)}", count)
        for word, reasons in totals["reasons"].items()
        for reason, count in reasons.items()
    ]


class RowsCard(TypedDict):
    """What `dataset.md.jinja` says beside `Filtered`."""

    title: str
    repo_id: str
    config: str
    split: str
    scored_only: bool
    """The rows have scores, and none was removed."""
    audit: str | None
    """Path of the audit in the repository; None where it is not there."""
    removed_rows: str | None
    """Path of the removed rows in the repository; None where they are not there."""
    version: str
    """Of saft_hf."""
    dataset_info: Mapping[str, Any]
    """Columns, splits and sizes of this configuration, as `datasets` writes them into a card."""


def dataset_card(rows: RowsCard, filtered: Filtered) -> str:
    """The card of rows that are pushed: `model_cards/dataset.md.jinja`.

    Args:
        rows: which rows, and where they go.
        filtered: what was filtered, and how.

    Returns:
        Markdown with front matter that names the split's files, ready for `merge_cards`.
    """
    config, split, source = rows["config"], rows["split"], filtered["source"]
    files = {"split": split, "path": f"{data_folder(config)}/{split}-*"}
    metadata = DatasetCardData(
        tags=["saft", "data-filtering"],
        source_datasets=[source["dataset"]] if source else None,
        dataset_info=dict(rows["dataset_info"]),
        configs=[{"config_name": config, "data_files": [files]}],
    )
    return fill("dataset", {**rows, **filtered, "metadata": metadata.to_yaml()})


def data_folder(config: str) -> str:
    """The folder that `datasets` puts the shards of a configuration in."""
    return "data" if config == "default" else config


def model_section(filtered: Filtered, dataset: str | None = None) -> str:
    """What a tuned model's card says about its rows: `model_cards/model_section.md.jinja`.

    Args:
        filtered: what was filtered, and how.
        dataset: Hub id of the rows that are left, where they were pushed.

    Returns:
        Markdown with front matter, for `merge_cards` into the card that TRL wrote.
    """
    source = filtered["source"]
    datasets = [name for name in (source["dataset"] if source else None, dataset) if name]
    tags = ["saft"] if filtered["filtered"] else []
    metadata = ModelCardData(tags=tags or None, datasets=datasets or None).to_yaml()
    text = fill("model_section", {**filtered, "dataset": dataset, "metadata": metadata})
    return text if tags or datasets else text[text.index("<!--") :]
