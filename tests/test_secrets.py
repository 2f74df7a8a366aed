"""A token that was planted everywhere appears in no text that an object of ours makes of itself."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
from datasets import Dataset

from saft_hf import SAFTScorer, SAFTSFTConfig
from saft_hf.cli.arguments import Arguments, parse
from saft_hf.errors import SAFTHubError
from saft_hf.hub import Destination, Repository, with_retries
from saft_hf.train.inputs import FilterArgs, loading_options
from saft_hf.train.record import Record

TOKEN = "planted0123456789"


def texts(root: Any) -> Iterator[tuple[str, str]]:
    """`repr`, `str` and formatted text of everything of this package that can be reached from an object."""
    seen, open_ = set(), [root]
    while open_:
        value = open_.pop()
        if id(value) in seen or isinstance(value, type | ModuleType | Dataset | str | bytes):
            continue
        seen.add(id(value))
        if type(value).__module__.startswith("saft_hf"):
            for shown in (repr(value), str(value), f"{value}", f"{[value]}"):
                yield type(value).__name__, shown
        if isinstance(value, dict):
            open_ += value.values()
        elif isinstance(value, list | tuple | set):
            open_ += value
        elif isinstance(value, FunctionType):
            open_ += [cell.cell_contents for cell in value.__closure__ or ()]
        elif type(value).__module__.startswith("saft_hf"):
            slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
            open_ += [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]


def config(folder: Path) -> SAFTSFTConfig:
    secrets = {"hub_token": TOKEN, "model_init_kwargs": {"token": TOKEN}}
    options = {**secrets, "report_to": "none", "use_cpu": True, "bf16": False}
    return SAFTSFTConfig(output_dir=str(folder), **options)


def test_no_object_shows_a_token(demo_model: str, demo_pool: Dataset, store_dir: Path, tmp_path: Path) -> None:
    rows = demo_pool.select(range(40))
    options = {"method": "saft", "layer": 2, "contamination": 0.2, "cache_dir": store_dir, "token": TOKEN}
    scorer = SAFTScorer(demo_model, **options).fit(rows)
    scorer(rows[:3])
    result = scorer.filter(rows)
    scorer.save_pretrained(tmp_path / "scorer")
    loaded = SAFTScorer.from_pretrained(tmp_path / "scorer", token=TOKEN)
    args = config(tmp_path)
    filter_args = FilterArgs(model=demo_model, args=args, scorer=scorer)
    assert loading_options(filter_args, distributed=False)["token"] == TOKEN  # it is planted
    objects: dict[str, Any] = {
        "scorers": [SAFTScorer(demo_model, **options), scorer, loaded, copy.copy(scorer)],
        "results": [result, Record(rows, result.summary, result, scorer)],
        "config": [args, filter_args],
        "hub": [Destination("me/rows", "dataset", token=TOKEN), Repository("me/rows", token=TOKEN)],
        "shell": [parse("filter", ["--dataset_name", "x"]), Arguments()],
    }
    kinds = set()
    for name, shown in texts(objects):
        kinds.add(name)
        assert TOKEN not in shown, f"{name}: {shown[:2000]}"
    assert {"SAFTScorer", "ModelSource", "Extractor", "RowReader", "FilterResult", "Summary", "Fit"} <= kinds
    assert {"SAFTSFTConfig", "FilterArgs", "Record", "Destination", "Repository", "Arguments"} <= kinds


@pytest.mark.parametrize("broken", [f"{TOKEN}\n", f" {TOKEN}", TOKEN + "\u00e9"])
def test_a_token_that_cannot_be_sent_is_refused_unseen(demo_pool: Dataset, broken: str) -> None:
    # Sent all the same, it would stand in the client's error.
    for call in (
        lambda: SAFTScorer("nobody/nothing", token=broken, method="saft").fit(demo_pool),
        lambda: SAFTScorer.from_pretrained("nobody/nothing", token=broken),
    ):
        with pytest.raises(SAFTHubError, match="the token holds") as caught:
            call()
        assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_no_error_of_the_network_shows_a_token() -> None:
    """One that looks like none, in the words of whatever client."""

    def fail() -> None:
        raise ConnectionError(f"the header {TOKEN} was not sent")

    with pytest.raises(SAFTHubError, match=r"the header \[token\] was not sent") as caught:
        with_retries(fail, Repository("a/b", token=TOKEN), seconds=0)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
