"""What two processes do where one of them fails alone; run by `test_trainer_processes.py` with FOLDER."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))

from accelerate import PartialState
from train_kit import make_args, pool_rows

from saft_hf import SAFTSFTTrainer
from saft_hf.train import filtering, record

NOTHING = {"saft_method": None, "saft_contamination": None}


def failing(function: Callable[..., Any], fails: Callable[..., bool], where: str) -> Callable[..., Any]:
    """The function, but for an error at its end where `fails` says so of its arguments."""

    def call(*args: Any, **kwargs: Any) -> Any:
        answer = function(*args, **kwargs)
        if fails(*args):
            raise OSError(28, "No space left on device", where)
        return answer

    return call


def main(folder: Path) -> None:
    rank, rows, told = PartialState(cpu=True).process_index, pool_rows("messages"), {}

    def trainer(name: str, **options: Any) -> SAFTSFTTrainer:
        data = rows.to_iterable_dataset(num_shards=1) if name == "stream" else rows
        return SAFTSFTTrainer(str(folder / "model"), make_args(folder / name, **options), train_dataset=data)

    def attempt(name: str, call: Callable[[], Any]) -> None:
        print(rank, name, file=sys.stderr)  # the last one, where it hangs
        try:
            told[name] = f"no error: {call()}"
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"

    real = filtering.decide_rows
    filtering.decide_rows = failing(real, lambda *_: rank == 1, "/home/someone/rows")
    alone = trainer("alone", **NOTHING)
    told["alone"] = [alone.saft_summary.filtered, len(alone.train_dataset), alone.saft_summary.undecided]
    write = record.write_json
    filtering.decide_rows = failing(real, lambda *_: True, "/home/someone/rows")
    record.write_json = failing(write, lambda *_: rank == 0, "summary.json")
    attempt("summary", lambda: trainer("summary", **NOTHING))
    filtering.decide_rows, record.write_json = real, write
    stream = trainer("stream", max_steps=1)
    record.write_json = failing(write, lambda *_: rank == 0, "summary.json")
    attempt("stream", stream.train)
    record.write_json = write
    saving = trainer("saving", save_strategy="steps", save_steps=1)
    record.write_json = failing(write, lambda *_: rank == 0, "saft_decisions.json")
    attempt("saving", saving.train)
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
