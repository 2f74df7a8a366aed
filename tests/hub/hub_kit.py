"""What the processes of the tests import: logs in full, short waits, and results as JSON."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from saft_hf.errors import SAFTError
from saft_hf.hub import network
from saft_hf.hub.push import Destination, push_folder

logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
network.FIRST_WAIT = 0.05
network.RETRY_SECONDS = 20.0

words = sys.argv[1:]


def say(**found: Any) -> None:
    print(json.dumps(found, default=str))


def push(folder: str, repo_id: str, repo_type: str = "dataset", **options: Any) -> None:
    """Push, and say the commit or the error."""
    try:
        info = push_folder(folder, Destination(repo_id, repo_type, **options))
    except SAFTError as error:
        say(error=type(error).__name__, message=str(error))
    else:
        say(oid=info.oid, pr_url=info.pr_url, pr_revision=info.pr_revision)
