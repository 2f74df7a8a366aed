"""The plugin of axolotl against its interface, and that against axolotl's sources; the package pins other versions."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from saft_hf import SAFTInputError, SAFTScorer

MASKED = -100
AXOLOTL = find_spec("axolotl")


class Config(dict[str, Any]):
    """As axolotl's DictDefault: what is missing is None."""

    __getattr__ = dict.get
    __setattr__ = dict.__setitem__

    def __missing__(self, key: str) -> None:
        return None


class BasePlugin:
    """The part of axolotl's that is called before the model is loaded."""

    def register(self, cfg: Config) -> None: ...
    def get_input_args(self) -> str | None: ...
    def load_datasets(self, cfg: Config, preprocess: bool = False) -> Any: ...


@dataclass
class TrainDatasetMeta:
    train_dataset: Dataset
    eval_dataset: Dataset | None = None
    total_num_steps: int | None = None


def calculate_total_num_steps(cfg: Config, train_dataset: Dataset, update: bool = True) -> int:
    """As axolotl does without packing: tokens are counted in the table itself, once."""
    if not cfg.total_num_tokens:
        cfg.total_num_tokens = sum(map(len, train_dataset.data.column("input_ids").to_pylist()))
    return len(train_dataset) * cfg.num_epochs // cfg.batch_size


@pytest.fixture(scope="module")
def tokenised(demo_pool: Dataset, demo_model: str) -> Dataset:
    """The demo's rows as axolotl prepares them: token ids, and labels that mask the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model)

    def tokenise(row: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer.apply_chat_template(row["messages"], return_dict=False)
        start = len(tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_dict=False))
        labels = [MASKED] * start + ids[start:]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, "length": len(ids)}

    return demo_pool.select(range(120)).map(tokenise, remove_columns=demo_pool.column_names)


@pytest.fixture
def plugin(tokenised: Dataset, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Our module, beside an axolotl that loads the rows."""
    loaders = {
        "axolotl": {},
        "axolotl.common": {},
        "axolotl.common.datasets": {
            "TrainDatasetMeta": TrainDatasetMeta,
            "load_datasets": lambda *, cfg: TrainDatasetMeta(
                tokenised, None, calculate_total_num_steps(cfg, tokenised)
            ),
        },
        "axolotl.integrations": {},
        "axolotl.integrations.base": {"BasePlugin": BasePlugin},
        "axolotl.loaders": {"load_tokenizer": lambda cfg: AutoTokenizer.from_pretrained(cfg.base_model)},
        "axolotl.utils": {},
        "axolotl.utils.trainer": {"calculate_total_num_steps": calculate_total_num_steps},
    }
    for name, content in loaders.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module("saft_hf.integrations.axolotl")
    del sys.modules["saft_hf.integrations.axolotl"]


@pytest.fixture
def cfg(demo_model: str, store_dir: Path, tmp_path: Path) -> Config:
    return Config(
        base_model=demo_model,
        sequence_len=512,
        output_dir=str(tmp_path / "out"),
        batch_size=4,
        num_epochs=2,
        saft_cache_dir=str(store_dir),
    )


def test_rows_are_those_of_the_filter(
    plugin: ModuleType, cfg: Config, tokenised: Dataset, demo_model: str, store_dir: Path
) -> None:
    cfg.update(saft_contamination=0.25, saft_method="saft", saft_layer=2)
    loaded = plugin.SAFTPlugin().load_datasets(cfg, preprocess=False)
    scorer = SAFTScorer(demo_model, layer=2, method="saft", contamination=0.25, max_length=512, cache_dir=store_dir)
    expected = scorer.fit(tokenised).filter(tokenised)
    assert len(expected.removed) == 30
    assert loaded.train_dataset.to_list() == expected.kept.to_list()
    assert loaded.total_num_steps == len(expected.kept) * 2 // 4
    assert cfg.total_num_tokens == sum(map(len, expected.kept["input_ids"]))
    summary = json.loads((Path(cfg.output_dir) / "saft_summary.json").read_text())
    assert (summary["kept"], summary["removed"]) == (90, 30)
    assert (Path(cfg.output_dir) / "_saft" / "audit.parquet").exists()
    assert plugin.SAFTPlugin().load_datasets(Config(cfg, max_steps=3), preprocess=False).total_num_steps == 3


def test_a_fitted_scorer_is_named_in_the_yaml(
    plugin: ModuleType, cfg: Config, scorer: SAFTScorer, tokenised: Dataset, tmp_path: Path
) -> None:
    scorer.save_pretrained(tmp_path / "scorer")
    cfg.saft_scorer = str(tmp_path / "scorer")
    loaded = plugin.SAFTPlugin().load_datasets(cfg)
    # Fitted on raw rows: the tokens are the same ones.
    assert loaded.train_dataset.to_list() == scorer.filter(tokenised).kept.to_list()


def test_axolotl_goes_on_where_there_is_nothing_to_filter(plugin: ModuleType, cfg: Config) -> None:
    one = plugin.SAFTPlugin()
    assert one.load_datasets(cfg, preprocess=True) is None
    assert one.load_datasets(Config(cfg, saft_enabled=False)) is None
    with pytest.raises(SAFTInputError, match="`rl: dpo`"):
        one.load_datasets(Config(cfg, rl="dpo"))


def test_the_yaml_is_checked_by_axolotls_own_schema(plugin: ModuleType) -> None:
    module, _, name = plugin.SAFTPlugin().get_input_args().rpartition(".")
    own = getattr(importlib.import_module(module), name)

    pydantic = pytest.importorskip("pydantic")

    class Base(pydantic.BaseModel):
        base_model: str

    class Merged(Base, own):  # type: ignore[misc, valid-type] # made at run time, as axolotl does
        pass

    assert Merged(base_model="x", saft_layer=2).saft_layer == 2
    assert Merged(base_model="x").saft_enabled is True
    with pytest.raises(pydantic.ValidationError, match="saft_layer"):
        Merged(base_model="x", saft_layer="half")
    assert not {"saft_label_column", "saft_push_scorer", "saft_alpha"} & Merged.model_fields.keys()


@pytest.mark.skipif(AXOLOTL is None, reason="axolotl is not installed: pip install --no-deps axolotl")
def test_the_interface_is_that_of_the_real_package(plugin: ModuleType) -> None:
    """Its sources are read, not run: it pins other versions than ours."""
    assert AXOLOTL is not None
    assert AXOLOTL.submodule_search_locations is not None
    [root] = map(Path, AXOLOTL.submodule_search_locations)

    def definition(module: str, name: str) -> Any:
        [found] = [each for each in ast.parse((root / module).read_text()).body if getattr(each, "name", None) == name]
        return found

    def arguments(function: Any) -> list[str]:
        return [each.arg for each in (*function.args.args, *function.args.kwonlyargs)]

    methods = {
        each.name: each for each in definition("integrations/base.py", "BasePlugin").body if hasattr(each, "name")
    }
    own = {name for name in vars(plugin.SAFTPlugin) if not name.startswith("__")}
    assert own == {"get_input_args", "load_datasets"}
    for name in own | {"register"}:
        assert list(inspect.signature(getattr(plugin.SAFTPlugin, name)).parameters) == arguments(methods[name]), name
    meta = definition("common/datasets.py", "TrainDatasetMeta").body
    fields = [each.target.id for each in meta if isinstance(each, ast.AnnAssign)]
    assert fields == list(TrainDatasetMeta.__dataclass_fields__)
    assert "cfg" in arguments(definition("common/datasets.py", "load_datasets"))
    steps = arguments(definition("utils/trainer.py", "calculate_total_num_steps"))
    assert steps == list(inspect.signature(calculate_total_num_steps).parameters)
    assert arguments(definition("loaders/tokenizer.py", "load_tokenizer")) == ["cfg"]
    assert "load_tokenizer" in (root / "loaders/__init__.py").read_text()
