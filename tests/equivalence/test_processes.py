"""Any number of processes, with one disk or with one each, killed or not: the same decisions, to the bit."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from probe_kit import write_probe_rows

from saft_hf.assets import demo_folder, demo_rows_path

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parents[1] / "examples" / "benchmarks"
SCRIPT = HERE / "fit_and_score.py"
ROWS = 300
TASK = (demo_folder(), 2, demo_rows_path(), ROWS)


@pytest.fixture(scope="module")
def launch() -> ModuleType:
    """Starts processes by environment alone, as the launcher of a cluster does."""
    spec = importlib.util.spec_from_file_location("launch", BENCHMARKS / "launch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(
    launch: ModuleType, folder: Path, stores: list[Path], script: Path = SCRIPT, task: tuple[object, ...] = TASK
) -> list[dict[str, np.ndarray]]:
    """What each of as many processes as there are stores answers."""
    log = folder.with_suffix(".log")
    processes = launch.start([[script, folder, store, *task] for store in stores], log=log)
    try:
        launch.finish(processes, timeout=240)
    except RuntimeError as error:
        pytest.fail(f"{error}\n{log.read_text()[-3000:]}")
    found = []
    for rank in range(len(stores)):
        with np.load(folder / f"rank{rank}-0.npz") as saved:
            found.append({name: saved[name] for name in saved.files})
    return found


@pytest.fixture(scope="module")
def one(launch: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("one")
    [answer] = answers(launch, folder / "out", [folder / "store"])
    return answer


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("size", "shared"), [pytest.param(3, False, id="3-without-a-shared-disk"), pytest.param(4, True, id="4")]
)
def test_more_processes_give_the_bits_of_one(
    launch: ModuleType, one: dict[str, np.ndarray], tmp_path: Path, size: int, shared: bool
) -> None:
    stores = [tmp_path / ("store" if shared else f"machine{rank}") for rank in range(size)]
    found = answers(launch, tmp_path / "out", stores)
    for answer in found:
        assert answer["world"] == size
        for name in set(one) - {"world"}:
            assert np.array_equal(answer[name], one[name], equal_nan=one[name].dtype.kind == "f"), name
    # Each shard lies on one disk: no process embedded what another had.
    shards = [(path.parent.name, path.name) for store in set(stores) for path in store.rglob("[0-9]*.safetensors")]
    assert len(shards) == len(set(shards)) > size


@pytest.mark.timeout(300)
def test_a_probe_has_the_same_bits_on_more_processes(launch: ModuleType, tmp_path: Path) -> None:
    write_probe_rows(tmp_path)
    found = [
        answers(launch, tmp_path / f"out{size}", [tmp_path / f"store{size}"] * size, HERE / "fit_probe.py", (tmp_path,))
        for size in (1, 2)
    ]
    one = found[0][0]
    assert 0 < (one["codes"] == 1).sum() < len(one["codes"])
    for answer in found[1]:
        assert answer["world"] == 2
        for name in set(one) - {"world"}:
            assert np.array_equal(answer[name], one[name], equal_nan=one[name].dtype.kind == "f"), name


@pytest.mark.timeout(600)
def test_killed_and_run_again_is_as_if_nothing_had_happened() -> None:
    """Two kills of a command that scores, saves and pushes; the script's own default kills all commands."""
    words = [sys.executable, BENCHMARKS / "kill_and_resume.py", "--kills", "2", "--jobs", "push"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills; vectors read twice: 0; results that differ: 0; files left over: 0" in done.stdout


@pytest.mark.timeout(300)
def test_processes_that_were_given_different_things_all_raise_the_same_error(
    launch: ModuleType, tmp_path: Path
) -> None:
    """Every public call in which processes work together, with something else on the second one."""
    script, log = HERE / "fit_on_other_rows.py", tmp_path / "log"
    processes = launch.start([[script, tmp_path / "out", tmp_path / "store"]] * 2, log=log)
    try:
        launch.finish(processes, timeout=240)
    except RuntimeError as error:
        pytest.fail(f"{error}\n{log.read_text()[-3000:]}")
    first, second = (json.loads((tmp_path / "out" / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert len(first) > 45
    for name, answer in first.items():
        argument = name.split(" of ")[0]
        assert answer.startswith(f"SAFTInputError: `{argument}` differs between the 2 processes"), name
