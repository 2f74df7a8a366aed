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
