"""`kill -9` whole commands at random moments, and run them again: the same results, and nothing left over.

    python examples/benchmarks/kill_and_resume.py                           # 30 kills: a quarter of an hour
    python examples/benchmarks/kill_and_resume.py --kills 2 --jobs filter push

Each command runs on the demo's rows until it is killed, after a random number of changes to its files and some
milliseconds, and is then run again, with another number of processes half of the time. After some kills it may end:
what it wrote is compared with a run that nobody killed. Pushes go to a Hub on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, disable_progress_bars, load_dataset
from launch import finish, kill, start
from safetensors.numpy import load_file

from saft_hf import SAFTScorer
from saft_hf.assets import demo_folder, demo_rows_path

KILLS_IN_A_ROUND = 5
ROUNDING = 2e-4
"""Largest difference of a weight that was trained on another number of processes: sums in another order, in 16 bits.
SFTTrainer's own, resumed on two processes in place of one without a kill, differ by 5e-5."""
REPOSITORY, TOKEN = "alice/kept", "hf_alice_write"
_OF_THIS_RUN = {"provenance", "seconds", "dataset_repo"}
"""Fields of a summary with times, paths, and digests of files that hold these."""


@dataclass
class Job:
    """A command, and where all that it writes goes."""

    name: str
    base: Path
    folder: Path
    hub: str

    @property
    def out(self) -> Path:
        """Where its results go."""
        return self.folder / "out"

    def words(self, size: int) -> list[str]:
        """What to type, to start or to go on, with a number of processes."""
        fit = {"model_name_or_path": demo_folder(), "labelled_rows": 100, "method": "saft", "layer": 2}
        fit |= {"readout": "response_mean"}
        use = {"scorer": self.base / "scorer"}
        rows = {"dataset_name": demo_rows_path(), "output_dir": self.out, "cache_dir": self.folder / "store"}
        options: dict[str, Any] = {
            "score": {**rows, **fit},
            "filter": {**rows, **fit},
            "filter --scorer": {**rows, **use},
            "certify": {**rows, **use, "fresh_labels": self.base / "fresh.jsonl", "alpha": 0.3},
            "push": {**rows, **use, "push_to_hub": REPOSITORY},
            "sft": {
                "model_name_or_path": demo_folder(),
                "dataset_name": demo_rows_path(),
                "output_dir": self.out,
                "labelled_rows": 100,
                "saft_method": "saft",
                "saft_layer": 2,
                "saft_cache_dir": self.folder / "store",
                "max_steps": 6,
                "save_steps": 2,
                "per_device_train_batch_size": 4 // size,
                # Adam turns the rounding of a gradient near zero into a whole step, one way or the other.
                "optim": "sgd",
                "learning_rate": 0.1,
                "report_to": "none",
                "use_cpu": True,
            },
        }[self.name]
        if self.name == "sft" and (done := [path.parent for path in self.out.glob("*/trainer_state.json")]):
            options["resume_from_checkpoint"] = max(done, key=lambda path: int(path.name.split("-")[1]))
        command = {"filter --scorer": "filter", "push": "filter"}.get(self.name, self.name)
        return [
            "-m",
            "saft_hf",
            command,
            *(str(each) for name, value in options.items() for each in (f"--{name}", value)),
        ]

    def start(self, size: int) -> list[Any]:
        """Start it on a number of processes."""
        environment = {"HF_HOME": str(self.folder / "home"), "HF_DATASETS_CACHE": str(self.base / "datasets")}
        if self.name == "push":
            environment |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": self.hub, "HF_TOKEN": TOKEN}
            environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return start([self.words(size)] * size, log=self.folder / "log", environment=environment)

    def files(self) -> dict[str, int]:
        """Every file that there is, with the time at which it was written."""
        found = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(folder, name)  # noqa: PTH118 - thousands of times a second
                with suppress(FileNotFoundError):  # gone since it was listed
                    if name != "log":
                        found[os.path.relpath(path, self.folder)] = os.stat(path).st_mtime_ns  # noqa: PTH116 - likewise
        return found

    def run(self, size: int, die_at: int | None, draw: random.Random) -> int | None:
        """Run it; kill it after so many changes of its files.

        Returns:
            How many changes were seen; None where it was killed.
        """
        processes, before, changes = self.start(size), self.files(), 0
        while any(process.poll() is None for process in processes):
            after = self.files()
            changes += after != before
            before = after
            if changes == die_at:
                time.sleep(draw.random() * 0.05)
                if any(process.poll() is None for process in processes):
                    kill(processes)
                    return None
            time.sleep(0.003)
        try:
            finish(processes, timeout=10)
        except RuntimeError as error:
            sys.exit(f"{self.name}: {error}\n{(self.folder / 'log').read_text()[-4000:]}")
        return changes

    def results(self) -> dict[str, Any]:
        """Everything that it wrote, without what is of one run only."""
        found = {path: value for path in self.out.rglob("*") for path, value in _content(path, self.out)}
        if self.name == "push":
            target = self.folder / "pushed"
            _download(self.hub, target)
            found |= {f"pushed/{path}": value for each in target.rglob("*") for path, value in _content(each, target)}
        return found

    def left_over(self) -> list[str]:
        """What no run should leave: anything hidden, and pushes that are done."""
        mine = [name for name in self.files() if not name.startswith(("pushed/", "home/hub/"))]  # locks of the client
        hidden = [name for name in mine if any(part.startswith(".") for part in Path(name).parts)]
        return hidden + [name for name in mine if name.startswith("home/saft/pushes/")]


def _download(hub: str, target: Path) -> None:
    """Every file of the repository; without the Hub's client, which may be offline here."""

    def get(path: str) -> bytes:
        request = urllib.request.Request(f"{hub}/{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request) as answer:
            return bytes(answer.read())

    for each in json.loads(get(f"api/datasets/{REPOSITORY}/tree/main?recursive=true")):
        if each["type"] == "file":
            (target / each["path"]).parent.mkdir(parents=True, exist_ok=True)
            (target / each["path"]).write_bytes(get(f"datasets/{REPOSITORY}/resolve/main/{each['path']}"))


def _content(path: Path, root: Path) -> Iterator[tuple[str, Any]]:
    """Name -> what it holds, in a form that two runs have in common; nothing for what is of one run."""
    name = path.relative_to(root).as_posix()
    inside = {parent.name for parent in path.relative_to(root).parents}
    if path.is_dir() or any(part.startswith((".", "checkpoint-")) for part in (name, *inside)):
        return
    elif path.suffix == ".parquet":
        yield name, pq.read_table(path).to_pylist()
    elif path.name in ("saft_summary.json", "summary.json") or path.name.startswith("summary-"):
        yield name, {key: value for key, value in json.loads(path.read_text()).items() if key not in _OF_THIS_RUN}
    elif path.name == "model.safetensors":
        yield name, load_file(path)
    elif path.name not in ("training_args.bin", "README.md", "trainer_state.json"):
        yield name, path.read_bytes()


def same(one: Any, other: Any) -> bool:
    """Whether two results are the same; weights up to rounding."""
    if isinstance(one, dict) and all(isinstance(value, np.ndarray) for value in one.values()):
        return one.keys() == other.keys() and all(np.allclose(one[n], other[n], atol=ROUNDING) for n in one)
    return repr(one) == repr(other)


def prepare(base: Path) -> None:
    """A fitted scorer, and labels that it was not fitted on."""
    rows = load_dataset("json", data_files=str(demo_rows_path()), split="train", cache_dir=str(base / "datasets"))
    scorer = SAFTScorer(str(demo_folder()), method="directed", cache_dir=base / "store")
    scorer.fit(rows, rows.shuffle(seed=0).select(range(100)))
    scorer.save_pretrained(base / "scorer")
    fresh = scorer.suggest_labels(rows, uniform=150)
    harmful = [not rows[row]["is_safe"] for row in fresh["saft_row"]]
    Dataset.from_list([{**row, "is_harmful": label} for row, label in zip(fresh, harmful, strict=True)]).to_json(
        base / "fresh.jsonl"
    )


@contextmanager
def own_hub(folder: Path) -> Iterator[str]:
    """A Hub on this machine, for the time being."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "hub"))
    from hub_server import HubServer

    with HubServer(folder) as hub:
        yield hub.url


def main() -> None:
    """Kill, run again, compare."""
    names = ("score", "filter", "filter --scorer", "certify", "push", "sft")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--jobs", nargs="+", default=names, choices=names)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    disable_progress_bars()
    draw = random.Random(options.seed)
    killed = redone = wrong = left = 0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        prepare(base)
        for number, name in enumerate(options.jobs):
            kills = (options.kills + number) // len(options.jobs)
            with own_hub(base / f"hub-{number}") as hub:
                whole = Job(name, base, base / f"whole-{number}", hub)
                whole.folder.mkdir()
                total = whole.run(1, None, draw)
                assert total is not None
                expected = whole.results()
            done = 0
            while done < kills:
                size = draw.choice([1, 2])
                with own_hub(base / f"hub-{number}-{done}") as hub:
                    job = Job(name, base, base / f"job-{number}-{done}", hub)
                    job.folder.mkdir()
                    for _ in range(min(KILLS_IN_A_ROUND, kills - done)):
                        before = job.files()
                        if job.run(size, draw.randrange(1, max(2, total)), draw) is None:
                            done += 1
                        after = job.files()
                        redone += sum(after.get(path) != stamp for path, stamp in before.items() if is_shard(path))
                        size = draw.choice([size, 3 - size])
                    before = job.files()
                    job.run(size, None, draw)
                    after = job.files()
                    redone += sum(after.get(path) != stamp for path, stamp in before.items() if is_shard(path))
                    found, rest = job.results(), job.left_over()
                differing = [path for path in {*found, *expected} if not same(found.get(path), expected.get(path))]
                wrong += len(differing)
                left += len(rest)
                print(f"{name}: {done} of {kills} kills, ended on {size} process(es); other: {differing}; left: {rest}")
                sys.stdout.flush()
            killed += done
    print(f"{killed} kills; vectors read twice: {redone}; results that differ: {wrong}; files left over: {left}")
    if redone or wrong or left:
        sys.exit(1)


def is_shard(path: str) -> bool:
    """Whether a file holds vectors, under its own name."""
    return path.startswith("store/") and path.endswith(".safetensors")


if __name__ == "__main__":
    main()
