"""What processes answer that were given different things, call by call; run by `test_processes.py` with OUT STORE."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from saft_hf import ReferenceSource, SAFTScorer, SAFTSFTConfig, SAFTSFTTrainer
from saft_hf.assets import demo_folder, demo_rows_path


def calls(rank: int, store: str, out: str) -> dict[str, Callable[[], Any]]:
    """Argument that differs, and the call -> a call that every process makes, each with something else."""
    lines = Path(demo_rows_path()).read_text(encoding="utf-8").splitlines()
    rows = Dataset.from_list([json.loads(line) for line in lines[:120]])
    labelled, other = rows.select(range(60)), rows.shuffle(seed=rank)
    flipped = rows.map(lambda row, at: {"is_safe": row["is_safe"] ^ (at == 7 * rank)}, with_indices=True)

    own = Path(out, f"rank{rank}")
    own.mkdir()
    flipped.to_json(own / "reference.jsonl")
    os.chdir(own)  # where each has another file of one name

    def new(**options: Any) -> SAFTScorer:
        return SAFTScorer(str(demo_folder()), **{"method": "saft", "layer": 2, "cache_dir": store, **options})

    def fit(
        pool: Any = rows, of: Dataset | None = labelled, scorer: SAFTScorer | None = None, **told: Any
    ) -> SAFTScorer:
        return (scorer or new()).fit(pool, of, **{"on_undecided": "keep", **told})

    fitted = fit()
    kinds = [str(row % 2) for row in range(len(rows))]
    known = {"dataset": rows.add_column("kind", kinds), "fresh_labels": rows.select(range(60, 100)), "alpha": 0.2}

    def certify(**told: Any) -> Any:
        return fitted.certify(**{**known, **told})

    certificate = certify()
    parted = (fitted, new(layer=1).fit(rows, labelled, on_undecided="keep"))

    def train(pool: Any = rows, *, eval_dataset: Any = None, saft: dict[str, Any] | None = None, **told: Any) -> Any:
        args = SAFTSFTConfig(
            f"{out}/trainer",
            report_to="none",
            use_cpu=True,
            **{"saft_cache_dir": store, "saft_contamination": 0.1, "saft_layer": 2, "saft_method": "saft", **told},
        )
        return SAFTSFTTrainer(str(demo_folder()), args, train_dataset=pool, eval_dataset=eval_dataset, **(saft or {}))

    return {
        "pool of fit, other rows": lambda: fit(other),
        "pool of fit, other length": lambda: fit(rows.select(range(100 + rank))),
        "pool of fit, a stream": lambda: fit(other.to_iterable_dataset(), None, fit_rows=60),
        "labelled of fit, other rows": lambda: fit(of=other.select(range(60))),
        "labelled of fit, other labels": lambda: fit(of=flipped.select(range(60))),
        "labelled of fit, none": lambda: fit(of=labelled if rank else None),
        "reference of fit": lambda: fit(scorer=new(method="auto", layer=None, reference=flipped)),
        "reference of fit, a source": lambda: fit(
            scorer=new(method="auto", layer=None, reference=[ReferenceSource(rows, harmful=rank == 0)])
        ),
        "reference of fit, a file": lambda: fit(scorer=new(method="auto", layer=None, reference="reference.jsonl")),
        "k of fit": lambda: fit(scorer=new(k=1 + rank)),
        "method of fit": lambda: fit(scorer=new(method=("saft", "directed")[rank])),
        "max_length of fit": lambda: fit(scorer=new(max_length=500 + rank)),
        "aim of fit": lambda: fit(aim=("f1", None)[rank]),
        "label_column of fit": lambda: fit(label_column=("is_safe", None)[rank]),
        "on_undecided of fit": lambda: fit(on_undecided=("keep", "raise")[rank]),
        "dataset of score_dataset": lambda: fitted.score_dataset(other),
        "dataset of score_dataset, other length": lambda: fitted.score_dataset(rows.select(range(60 + rank))),
        "scorer of score_dataset": lambda: parted[rank].score_dataset(rows),
        "scorer of score_dataset, not fitted": lambda: (fitted, new())[rank].score_dataset(rows),
        "dataset of filter": lambda: fitted.filter(other),
        "dataset of filter, labels": lambda: fitted.filter(flipped, label_column="is_safe"),
        "scorer of filter": lambda: parted[rank].filter(rows),
        "threshold of filter": lambda: fitted.filter(rows, threshold=0.1 + rank),
        "on_error of filter": lambda: fitted.filter(rows, on_error=("exclude", "raise")[rank]),
        "on_undecided of filter": lambda: fitted.filter(rows, on_undecided=("keep", None)[rank]),
        "refusal_column of filter": lambda: fitted.filter(rows, refusal_column=("is_safe", None)[rank]),
        "certificate of filter": lambda: fitted.filter(rows, certificate=(certificate, None)[rank]),
        "dataset of certify": lambda: certify(dataset=other),
        "dataset of certify, strata": lambda: certify(
            dataset=rows.add_column("kind", kinds[::-1] if rank else kinds), stratify_by="kind"
        ),
        "fresh_labels of certify": lambda: certify(fresh_labels=known["fresh_labels"].shuffle(seed=rank)),
        "fresh_labels of certify, other labels": lambda: certify(
            fresh_labels=rows.map(
                lambda row, at: {"is_safe": row["is_safe"] ^ (at == 61 + rank)}, with_indices=True
            ).select(range(60, 100))
        ),
        "alpha of certify": lambda: certify(alpha=0.2 + rank / 10),
        "alpha of certify, by stratum": lambda: certify(alpha={"0": 0.1, "1": 0.1 + rank / 10}, stratify_by="kind"),
        "delta of certify": lambda: certify(delta=0.1 + rank / 10),
        "looks of certify": lambda: certify(looks=1 + rank),
        "threshold of certify": lambda: certify(threshold=0.1 + rank),
        "stratify_by of certify": lambda: certify(stratify_by=("kind", "category")[rank]),
        "on_error of certify": lambda: certify(on_error=("keep", "wrong")[rank]),
        "dataset of suggest_labels": lambda: fitted.suggest_labels(other),
        "uniform of suggest_labels": lambda: fitted.suggest_labels(rows, uniform=10 + rank),
        "kept_only of suggest_labels": lambda: fitted.suggest_labels(rows, uniform=10, kept_only=rank == 0),
        "seed of suggest_labels": lambda: fitted.suggest_labels(rows, uniform=10, seed=rank),
        "train_dataset of the trainer": lambda: train(other),
        "train_dataset of the trainer, scored": lambda: train(
            rows.add_column("saft_score", [float(rank)] * 120).add_column("saft_status", ["ok"] * 120),
            saft_trust_scores=True,
        ),
        "eval_dataset of the trainer": lambda: train(eval_dataset={"a": other}, saft_eval="score"),
        "saft_labelled of the trainer": lambda: train(saft={"saft_labelled": flipped}, saft_contamination=None),
        "saft_fresh_labels of the trainer": lambda: train(saft={"saft_fresh_labels": flipped}, saft_alpha=0.1),
        "saft_scorer of the trainer": lambda: train(saft={"saft_scorer": (f"{out}/a", f"{out}/b")[rank]}),
        "saft_reference of the trainer": lambda: train(saft={"saft_reference": flipped}),
        "saft_reference of the trainer, named": lambda: train(saft_reference=[("a.csv", "b.csv")[rank]]),
        "saft_contamination of the trainer": lambda: train(saft_contamination=0.1 + rank / 10),
        "saft_enabled of the trainer": lambda: train(saft_enabled=rank == 0),
    }


def main(out: str, store: str) -> None:
    """Make every call, and write down what each of them raised."""
    rank = PartialState(cpu=True).process_index
    logging.disable(logging.WARNING)
    answers = {}
    for name, call in calls(rank, store, out).items():
        print(rank, name, file=sys.stderr)  # the last one, where it hangs
        try:
            answers[name] = f"no error: {call()}"
        except Exception as error:
            answers[name] = f"{type(error).__name__}: {error}"
    Path(out, f"rank{rank}.json").write_text(json.dumps(answers), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(*sys.argv[1:])
