"""Several processes of one run on this machine, started as a cluster's launcher starts them: by environment alone."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def start(
    words: Sequence[Sequence[object]],
    *,
    threads: int = 1,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[subprocess.Popen]:
    """Start one Python process for each list of words.

    Args:
        words: script and arguments of each rank.
        threads: torch threads of each.
        log: file for what they say; nowhere by default.
        environment: variables, before all others.
    """
    # Below the ports that the system gives to connections: torch takes it only seconds later.
    port = next(filter(_is_free, random.SystemRandom().sample(range(20_000, 32_000), 100)))
    common = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false" if threads == 1 else "true",
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **(environment or {}),
    }
    started = []
    for rank, own in enumerate(words):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(words), "LOCAL_WORLD_SIZE": len(words)}
        variables = common | ({name: str(value) for name, value in place.items()} if len(words) > 1 else {})
        said = subprocess.DEVNULL if log is None else log.open("a")
        command = [sys.executable, *map(str, own)]
        started.append(subprocess.Popen(command, env=variables, stdout=said, stderr=said))
    return started


def _is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


def finish(processes: Sequence[subprocess.Popen], timeout: float) -> None:
    """Wait for all of them.

    Raises:
        RuntimeError: one failed, or they took too long; none is left running.
    """
    try:
        codes = [process.wait(timeout) for process in processes]
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the processes did not end within {timeout:.0f} s") from error
    finally:
        kill(processes)
    if any(codes):
        raise RuntimeError(f"the processes ended with {codes}")


def kill(processes: Sequence[subprocess.Popen]) -> None:
    """`kill -9` all of them."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()
