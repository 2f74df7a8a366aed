"""Cards for the Hub: a `Summary`, put into the Jinja templates of `model_cards/`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from saft_hf.hub.merge import size_category
from saft_hf.summary import HUB_ID, DatasetSource, Summary
from saft_hf.version import versions

_HERE = Path(__file__).resolve()
# In a wheel the templates lie inside the package; in a checkout, at its top level.
_FOLDERS = (_HERE.parents[1] / "model_cards", _HERE.parents[2] / "model_cards")

_TAGS = ["saft", "data-filtering"]
_REASONS = {
    ("kept", "score"): "kept: score up to the threshold",
    ("kept", "unlike"): "kept: unlike anything in the reference, whatever the score",
    ("kept", "label"): "kept: a person labelled them harmless",
    ("kept", "no_decision"): "kept: nothing was decided",
    ("removed", "score"): "removed: score above the threshold",
    ("removed", "label"): "removed: a person labelled them harmful",
    ("kept", "mark"): "kept: a person who reviewed them kept them",
    ("removed", "mark"): "removed: a person who reviewed them removed them",
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
_THRESHOLDS = {
    "f1": "the best F1 on labelled rows",
    "given": "given by hand",
    "certificate": "the largest set of rows that fresh labels certify",
    "reference": "a reference set of rows known to be harmful or benign, not labels of these rows",
    "labels": "no threshold was chosen: people's labels alone decided",
    "none": "no threshold was chosen",
}

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)
_MARKUP = re.compile(r"[\\`*_{}\[\]()<>#|!~$&]")
# Renderers make links of bare addresses even where their signs are escaped; in code they do not.
_LITERAL = re.compile(r"(`[^`]+`|\S*(?:://|www\.|@)\S*)")


def scorer_card(summary: Summary, *, repo_id: str | None = None) -> str:
    """The card of a fitted scorer: `model_cards/scorer.md.jinja`.

    Args:
        summary: of the fit.
        repo_id: where the scorer is pushed to; None for a local folder.

    Returns:
        Markdown with YAML front matter, ready to be saved as `README.md`.

    Raises:
        jinja2.UndefinedError: the summary is not of a fit.

    Examples:
        >>> Path("README.md").write_text(scorer_card(scorer.summary_))  # doctest: +SKIP
    """
    model = _hub_id(summary.model)
    title = f"SAFT scorer for {model}" if model else "SAFT scorer"
    shown: dict[str, Any] = {}
    if summary.fit and summary.fit.test and summary.fit.labels:
        result = EvalResult(
            task_type="text-classification",
            dataset_type="labelled-rows",
            dataset_name=f"{summary.fit.labels.rows} labelled rows of the pool",
            metric_type="roc_auc",
            metric_name="AUROC, out of fold",
            metric_value=summary.fit.test.auroc,
        )
        shown = {"model_name": title, "eval_results": [result]}
    metadata = ModelCardData(base_model=model, library_name="saft_hf", tags=_TAGS, **shown)
    return _fill("scorer", summary, metadata=metadata.to_yaml(), title=title, repo_id=repo_id)


def dataset_card(
    summary: Summary,
    repo_id: str | None,
    *,
    config: str,
    split: str,
    data_files: str,
    dataset_info: Mapping[str, Any],
    picture: str | None = None,
    audit: str | None = None,
    removed_rows: str | None = None,
) -> str:
    """The card of rows that are saved or pushed: `model_cards/dataset.md.jinja`.

    Args:
        summary: of the filter; one with `statuses` says that the rows were scored, and none was removed.
        repo_id: where they go; None for a folder on this machine.
        config: their configuration.
        split: their split.
        data_files: pattern of their files.
        dataset_info: columns, splits and sizes of this configuration, as `datasets` writes them into a card.
        picture: path of the histogram in the repository; None, here and below, where there is none.
        audit: path of the audit.
        removed_rows: path of the removed rows.

    Returns:
        Markdown with front matter that names the split's files, ready for `merge_cards`.
    """
    source = summary.source
    metadata = DatasetCardData(
        license=source.license if source and source.license and _LICENSE.fullmatch(source.license) else None,
        size_categories=[size_category(dataset_info)],
        tags=_TAGS,
        source_datasets=_hub_ids(source.dataset if source else None),
        dataset_info=dict(dataset_info),
        configs=[{"config_name": config, "data_files": [{"split": split, "path": data_files}]}],
    )
    title = repo_id.split("/")[-1] if repo_id else "Filtered rows"
    where = {"repo_id": repo_id, "title": title, "config": config, "split": split}
    files = {"picture": picture, "audit": audit, "removed_rows": removed_rows}
    return _fill("dataset", summary, metadata=metadata.to_yaml(), trained=False, **where, **files)


def data_folder(config: str) -> str:
    """The folder that `datasets` puts the shards of a configuration in."""
    return "data" if config == "default" else config


def model_section(summary: Summary) -> str:
    """What a tuned model's card says about its rows: `model_cards/model_section.md.jinja`.

    Args:
        summary: of the training run.

    Returns:
        Markdown with front matter, for `merge_cards` into the card that TRL wrote.
    """
    datasets = _hub_ids(summary.source.dataset if summary.source else None, summary.dataset_repo)
    tags = ["saft"] if summary.filtered else None
    metadata = ModelCardData(tags=tags, datasets=datasets).to_yaml()
    text = _fill("model_section", summary, metadata=metadata, trained=True, picture=None)
    return text if tags or datasets else text[text.index("<!--") :]


def _fill(name: str, summary: Summary, **values: Any) -> str:
    """Fill a template of `model_cards/`; a name that it asks for and that is not there is an error."""
    known = {"counts": _counts(summary), "threshold_source": _threshold_source(summary), "versions": versions()}
    template = _environment().get_template(f"{name}.md.jinja")
    return template.render(summary=summary, fit=summary.fit, **known, **values)


@cache
def _environment() -> Environment:
    environment = Environment(  # noqa: S701 - Markdown, not HTML: `text` and `code` escape what comes from outside
        loader=FileSystemLoader(_FOLDERS),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": _code, "text": _text, "link": _link, "origin": _origin}
    return environment


def _counts(summary: Summary) -> list[tuple[str, int]]:
    """What became of the rows, and of how many."""
    if summary.statuses:
        return [
            ("with a score" if status == "ok" else f"without: {_STATUSES.get(status, status)}", count)
            for status, count in summary.statuses.items()
        ]
    shown, added = summary.demonstrations, []
    if shown.rows:
        source = f", from {shown.source}" if shown.source else ""
        what = "mixed in as demonstrations, safe answers to harmful requests: `source: demonstration`"
        added = [(f"{what}{source}; {shown.share:.1%} of the kept rows", shown.rows)]
    if summary.reasons:
        return [
            (_REASONS.get((decision, reason)) or f"could not be scored: {_STATUSES.get(reason, reason)}", count)
            for decision, reasons in summary.reasons.items()
            for reason, count in reasons.items()
        ] + added
    totals = {"kept": summary.kept, "removed": summary.removed, "errored": summary.errored}
    return [(decision, count) for decision, count in totals.items() if count] + added


def _threshold_source(summary: Summary) -> str | None:
    fit, source = summary.fit, summary.threshold_from
    if source == "contamination" and fit and fit.contamination is not None:
        share = f"an expected harmful share of {fit.contamination:.1%}"
        return f"{share}, on labelled rows" if fit.expected else share
    if source == "certificate" and summary.certificate is None:
        return "a set that fresh labels certified, of rows that may not be these"
    return _THRESHOLDS.get(source, f"the aim `{source}`, on labelled rows") if source else None


# -- what comes from outside must not become Markdown ------------------------------------------------------------------


def _line(value: object) -> str:
    """One line of signs that can be seen: no line breaks, nothing that turns the direction of writing around."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(value)).split())


def _code(value: object) -> str:
    # A bar ends a table's cell even in code, and a comment's start could be taken for that of a section.
    return "`" + (_line(value).replace("`", "'").replace("|", "¦").replace("<!--", "<! --") or " ") + "`"


def _text(value: object) -> str:
    """Show a value as plain text, code in it as code. It must not start a line: a dash there would be a list."""
    parts = _LITERAL.split(_line(value))
    return "".join(_code(part.strip("`")) if i % 2 else _escape(part) for i, part in enumerate(parts))


def _escape(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", text)


def _hub_id(name: str | None) -> str | None:
    return name if name and HUB_ID.fullmatch(name) else None


def _hub_ids(*names: str | None) -> list[str] | None:
    return [name for name in names if name and _hub_id(name)] or None


def _link(name: str, kind: str = "") -> str:
    return f"[{_escape(name)}](https://huggingface.co/{kind}{name})" if _hub_id(name) else _code(name)


def _origin(source: DatasetSource) -> str:
    """Where rows come from, with a link."""
    parts = {"configuration": source.config, "split": source.split, "revision": source.revision}
    shown = ", ".join(f"{what} {_code(value)}" for what, value in parts.items() if value)
    return _link(source.dataset, "datasets/") + (f" ({shown})" if shown else "")
