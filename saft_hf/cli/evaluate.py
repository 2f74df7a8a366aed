"""`saft-hf evaluate`: how one model answers harmful and harmless prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saft_hf.cli.arguments import parse_as
from saft_hf.cli.experiment import COMMON as COMMON
from saft_hf.cli.experiment import GROUPS as GROUPS
from saft_hf.cli.experiment import load_source
from saft_hf.cli.table import print_table
from saft_hf.evaluate.config import EvaluationConfig
from saft_hf.evaluate.examiner import Examiner
from saft_hf.evaluate.metrics import EVALUATION_FILE, ModelEvaluation, summarise
from saft_hf.evaluate.tuning import load
from saft_hf.files import write_json
from saft_hf.records import to_plain

KINDS = (EvaluationConfig,)


def run(argv: Sequence[str]) -> None:
    """Ask one model the questions that `saft-hf experiment` holds out, and print the metrics.

    Raises:
        SAFTInputError: an option is unknown or missing, or the data are not what they must be.
    """
    config = parse_as(EvaluationConfig, "evaluate", argv)
    config.check()
    folder = Path(config.output_dir or "")
    folder.mkdir(parents=True, exist_ok=True)
    examiner = Examiner(config, load_source(config))
    model = load(config)
    metrics, texts = examiner.examine(model.model, model.tokenizer)
    evaluation = ModelEvaluation(
        **vars(summarise([metrics])),
        model=Path(config.model_name_or_path or "").name,
        questions=examiner.counts,
        judges=examiner.accuracies,
    )
    write_json(folder / EVALUATION_FILE, to_plain(evaluation))
    if config.keep_text:
        write_json(folder / "texts.json", texts)
    print_table({**evaluation.lines(), "questions": examiner.counts, "files": folder})
