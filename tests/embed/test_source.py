"""Where the model comes from, on several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saft_hf.distributed import World
from saft_hf.embed.source import ModelSource
from saft_hf.errors import SAFTInputError


class Asked(World):
    """A world of one that keeps what it told the others."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def gather(self, value: Any) -> list[Any]:
        self.told.append(value)
        return [value]


def test_a_process_that_cannot_load_the_model_says_so_once(tmp_path: Path) -> None:
    world = Asked()
    with pytest.raises(SAFTInputError):
        ModelSource(str(tmp_path / "missing")).fingerprint((1,), world)
    # The others ask once whether all is well; a second answer, or none, would be taken for a digest.
    assert [report.split(":")[0] for report in world.told] == ["SAFTInputError"]
