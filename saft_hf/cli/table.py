"""What a command says when it is done: figures with a word on each, and commands that may come next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

from saft_hf.cli.arguments import Arguments
from saft_hf.result import KEPT, SCORER
from saft_hf.summary import Summary

_WIDTH, _NAMES = 79, 30

_GLOSS = {
    "kept": "to train on",
    "removed": "likely harmful, by score or label",
    "errored": "could not be read; the audit says why",
    "threshold": "rows with a score above it are removed",
    "harmful before": "share among all rows, from the labels",
    "harmful left": "expected among the kept rows",
    "harmless lost": "expected among the removed rows",
    "precision": "share of the removed rows that are harmful",
    "recall": "share of the harmful rows that are removed",
    "AUROC": "0.5 is chance, 1 ranks all harmful rows first",
    "fit: AUROC, out of fold": "0.5 is chance, 1 ranks all harmful rows first",
    "fit: to be expected": "on average over draws of the labels",
    "pool: harmful": "estimated, with a 90 % interval, of the kinds that the reference knows",
}
_UNSEEN = "on sources that it has not seen"
_METHODS = {
    "saft": "as published",
    "directed": "a direction learned from the labels",
    "auto": "what the labels and the reference set say together",
    "reference": "what a reference set says",
}

_NEXT = {
    "filter": {
        "Look at the rows, removed ones first": "saft-hf review --folder {out} {rows}",
        "Draw rows to label, to certify what is left": "saft-hf suggest-labels --scorer {scorer} {rows} "
        "--output_dir {labels}",
        "Train on the kept rows": "trl sft --model_name_or_path {model} --dataset_name {kept} --output_dir tuned",
    },
    "score": {
        "Keep the rows up to the threshold": "saft-hf filter --scorer {scorer} {rows} --output_dir {filtered}",
        "Draw rows to label": "saft-hf suggest-labels --scorer {scorer} {rows} --output_dir {labels}",
        "Train on the rows that the scorer keeps": "saft-hf sft --model_name_or_path {model} {rows} "
        "--saft_scorer {scorer} --output_dir tuned",
    },
    "fit-reference": {
        "Filter rows with it, without a label": "saft-hf filter --model_name_or_path {model} --reference {out} "
        "--dataset_name ROWS --output_dir {filtered}",
    },
    "certify": {
        "Train on the certified rows": "trl sft --model_name_or_path {model} --dataset_name {kept} --output_dir tuned",
        "Look at the rows, removed ones first": "saft-hf review --folder {out} {rows}",
        "Push the certified rows": "saft-hf filter --scorer {scorer} {rows} --push_to_hub USER/NAME "
        "--output_dir {filtered}",
    },
}
"""Command -> what may come next, and the words for it."""


def print_table(rows: Mapping[str, Any]) -> None:
    """Print names and values in two columns, in lines of at most 79 characters."""
    width = min(max(map(len, rows)), _NAMES)
    for name, value in rows.items():
        lines = wrap(str(value), _WIDTH - width - 4, break_on_hyphens=False, break_long_words=False) or [""]
        print(f"  {name:<{width}}  {lines[0]}")
        for line in lines[1:]:
            print(f"{'':{width + 4}}{line}")


def print_summary(summary: Summary, **more: Any) -> None:
    """Print what a person wants to know of a filter, more lines below, and what is known of the fit, called so."""
    fit, at = summary.fit, "by stratum" if summary.filtered and summary.threshold_from != "labels" else "none"
    if summary.threshold is not None:
        at = f"{summary.threshold:.6g}"
    lines: dict[str, Any] = {"undecided": summary.undecided, "rows": summary.rows}
    for name in ("kept", "removed", "errored"):
        lines[name] = _share(getattr(summary, name), summary.rows)
    lines["statuses"] = ", ".join(f"{status}: {rows}" for status, rows in summary.statuses.items()) or None
    if expected := summary.expected:
        lines |= {
            "harmful before": expected.before,
            "harmful left": f"about {expected.left}, {expected.after:.1%}",
            "harmless lost": f"about {expected.lost}",
        }
    lines["threshold"] = at if at == "none" else f"{at} (from {summary.threshold_from})"
    if (shown := summary.demonstrations).rows:
        lines["demonstrations"] = f"{shown.rows} mixed in, {shown.share:.1%} of the kept rows"
    method = summary.method and _METHODS.get(summary.method)
    lines |= {
        **more,
        "method": f"{summary.method} ({method})" if method else summary.method,
        "read at": f"layer {', '.join(map(str, summary.layers))}: {', '.join(summary.readouts)}",
        "k": summary.k,
    }
    if fit:
        lines |= {"fit: rows": fit.pool.rows or None, "fit: labels": fit.labels}
    if fit and fit.test:
        lines["fit: AUROC, out of fold"] = f"{fit.test.auroc:.3f} (p = {fit.test.p_value:.3g})"
    if fit and fit.expected and summary.threshold_from in (fit.aim, "contamination"):
        expects = fit.expected
        lines["fit: to be expected"] = f"{expects.recall:.0%} of harmful rows removed, {expects.fpr:.1%} of benign ones"
    if fit and fit.mixture and not summary.undecided:
        lines["pool: harmful"] = f"{fit.mixture.share:.1%}, {fit.mixture.low:.1%} to {fit.mixture.high:.1%}"
    if fit and fit.probe:
        for source in fit.probe.sources:
            lines[f"from {source.name}"] = f"{source.harmful} of {source.harmful + source.benign} rows are harmful"
        held_out, unseen = fit.probe.held_out_auroc, "on prompts that it has not seen, of sources that it has"
        lines["probe: AUROC"] = f"{fit.probe.auroc:.3f}: {unseen}" if held_out is None else f"{held_out:.3f}: {_UNSEEN}"
    print_table(
        {
            name: f"{value}: {_GLOSS[name]}" if name in _GLOSS and value != "none" else value
            for name, value in lines.items()
            if value is not None
        }
    )
    if fit and fit.probe and not fit.pool.rows:
        print("\nRows above the cut, by a probe that has not seen them")
        print_table(
            {
                f"{part.source}, {'harmful' if part.harmful else 'benign'}": f"{part.above:.1%} of {part.rows}: "
                + (_UNSEEN if part.left_out else "on unseen prompts of the same source")
                for part in fit.probe.components
            }
        )
    for column, shares in summary.by.items():
        print()
        removed = {value: _share(share.removed, share.rows) for value, share in shares.items()}
        print_table({f"removed, {column}={value!r}": share for value, share in removed.items()})


def _share(some: int | None, rows: int | None) -> str | None:
    if some is None or not rows:
        return None if some is None else str(some)
    return f"{some} of {rows} ({some / rows:.1%})"


def print_next(command: str, args: Arguments, model: str) -> None:
    """Print what may come next after a command, as commands to copy.

    Args:
        command: its name.
        args: its options.
        model: that the scorer reads.
    """
    out = Path(args.output_dir or "")
    names = ("dataset_name", "dataset_config", "dataset_train_split", "prompt_column", "response_column", "parse_json")
    given = {name: getattr(args, name) for name in names}
    words = [(f"--{name}", str(value)) for name, value in given.items() if value != getattr(Arguments, name)]
    places = {"out": out, "kept": out / KEPT, "scorer": out / SCORER, "labels": f"{out}-labels", "model": model}
    quoted = {name: shlex.quote(str(place)) for name, place in {**places, "filtered": f"{out}-filtered"}.items()}
    print("\nNext")
    for what, template in _NEXT[command].items():
        rows = shlex.join(word for pair in words for word in pair)
        print(f"  {what}:\n    {template.format(rows=rows, **quoted)}")
