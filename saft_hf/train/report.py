"""What the trainer tells of its rows: in the log, and in the model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

Numbers = dict[str, float]


class FilterCallback(TrainerCallback):  # type: ignore[misc] # transformers is not typed
    """Logs what was filtered when training begins, and for a stream adds up the counts whenever the trainer logs.

    Args:
        begin: called when training begins; gives the numbers to log.
        count: called on every process when the trainer is about to log, and when training ends; None without a stream.
        log: the trainer's `log`.
    """

    def __init__(
        self, begin: Callable[[], Numbers], count: Callable[[], None] | None, log: Callable[[Numbers], None]
    ) -> None:
        self._begin = begin
        self._count = count
        self._log = log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log once, before the first step."""
        if numbers := self._begin():
            self._log(numbers)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add up the counts of all processes, which all come by here."""
        if self._count is not None and (control.should_log or control.should_training_stop):
            self._count()


def log_numbers(summary: Mapping[str, Any]) -> Numbers:
    """The figures of a summary that are plain numbers, named for a dashboard."""
    names = ("rows", "kept", "removed", "errored", "threshold")
    numbers = {f"saft_{name}": summary[name] for name in names if isinstance(summary.get(name), int | float)}
    quantiles = {f"saft_score_q{name}": value for name, value in summary.get("score_quantiles", {}).items()}
    return {**numbers, **quantiles, "saft_seconds": summary["saft_seconds"]}


def card_section(summary: Mapping[str, Any]) -> str:
    """The part of a model card that tells what was filtered, in Markdown."""
    if not summary["filtered"]:
        why = summary.get("refusal") or summary.get("why", "no threshold could be chosen")
        return f"\n## What was filtered\n\nThe training rows were **not filtered** by SAFT: {why}.\n"
    if "rows" not in summary:
        told = "The training rows were a stream, filtered while the model trained."
        counts = ""
    else:
        told = f"Of {summary['rows']:,} rows, {summary['removed']:,} were removed as harmful before training."
        counts = f" {summary['errored']:,} could not be scored." if summary["errored"] else ""
    decided = f"Rows with a SAFT score above {summary['threshold']:.6g} were taken for harmful"
    source = summary.get("threshold_from")
    lines = [
        "\n## What was filtered\n",
        f"{told}{counts} {decided}" + (f" (threshold from: {source})." if source else "."),
        "\nScores come from the model's own hidden states ([SAFT](https://arxiv.org/abs/2410.10014)). A filter makes "
        "mistakes in both directions: harmful rows may be left, and harmless ones may be missing.",
    ]
    return "\n".join(lines) + "\n"
