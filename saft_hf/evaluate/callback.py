"""A callback that examines the model when training ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from saft_hf.evaluate.examiner import Examiner
from saft_hf.evaluate.measure import summarise
from saft_hf.files import replacing

logger = logging.getLogger(__name__)

EVALUATION_FILE = "saft_evaluation.json"

_NAMES = {
    "prefers_unsafe": "Prefers the unsafe of two answers",
    "rouge_l": "ROUGE-L on harmless prompts",
    "bleurt": "BLEURT on harmless prompts",
    "refused": "Refuses harmless prompts that sound harmful",
}


class EvaluationCallback(TrainerCallback):  # type: ignore[misc] # transformers is not typed
    """Examines the model when training ends: in the log history, in `saft_evaluation.json`, and for the card.

    The main process does it, with the whole model: where training shards the weights (FSDP, ZeRO-3), use
    `saft-hf evaluate` on the saved model. Only means and intervals are written, no text.

    Args:
        examiner: the questions and the judges.

    Attributes:
        summary: what `summarise` gives; None before training has ended.

    Example:
        >>> trainer.add_callback(EvaluationCallback(Examiner(config, source)))  # doctest: +SKIP
    """

    def __init__(self, examiner: Examiner) -> None:
        self._examiner = examiner
        self.summary: dict[str, Any] | None = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Examine, and write what was found."""
        if not state.is_world_process_zero:
            return
        measured = self._examiner.examine(kwargs["model"], kwargs["processing_class"])
        self.summary = {**summarise([measured.figures]), "questions": self._examiner.counts}
        state.log_history.append({"step": state.global_step, **log_numbers(self.summary)})
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / EVALUATION_FILE) as [file]:
            file.write((json.dumps(self.summary, indent=2, sort_keys=True) + "\n").encode())

    def card_section(self) -> str:
        """The part of a model card that tells what was found, in Markdown; "" before training has ended."""
        if self.summary is None:
            return ""
        lines = [f"| {name} | {shown} |" for name, shown in summary_lines(self.summary).items()]
        return "\n".join(
            [
                "\n## How it answers\n",
                "Share of prompts, or mean, with the 95 % interval over prompts:\n",
                "| | |",
                "|---|---|",
                *lines,
                "\nA low share of harmful answers says little of a model that was hardly trained or answers nothing.",
                "",
            ]
        )


def log_numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """The means of a summary, named for a dashboard."""
    found = {f"saft_harmful_{judge.split('/')[-1]}": interval for judge, interval in summary["harmful"].items()}
    found |= {f"saft_{name}": summary[name] for name in _NAMES}
    numbers = {name: interval["mean"] for name, interval in found.items() if interval is not None}
    return numbers if summary["perplexity"] is None else {**numbers, "saft_perplexity": summary["perplexity"]}


def summary_lines(summary: Mapping[str, Any]) -> dict[str, str]:
    """The figures of a summary, named for people."""
    found = {f"Harmful answers, judge {judge}": interval for judge, interval in summary["harmful"].items()}
    found |= {name: summary[key] for key, name in _NAMES.items()}
    lines = {
        name: f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
        for name, interval in found.items()
        if interval is not None
    }
    if summary["perplexity"] is not None:
        lines["Perplexity of reference answers to harmless prompts"] = f"{summary['perplexity']:.2f}"
    for pair, figures in summary["agreement"].items():
        if figures["share"] is not None:
            kappa = "" if figures["kappa"] is None else f", kappa {figures['kappa']:.2f}"
            lines[f"Agreement of {pair}"] = f"{figures['share']:.2f}{kappa}"
    return lines
