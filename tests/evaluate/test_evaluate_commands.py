"""The commands give the metrics of the Python API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from saft_hf.assets import demo_rows_path
from saft_hf.cli.arguments import parse_as
from saft_hf.cli.experiment import load_source
from saft_hf.cli.main import main
from saft_hf.evaluate.config import ExperimentConfig
from saft_hf.evaluate.metrics import EVALUATION_FILE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def words(demo_model: str, tmp_path: Path) -> list[str]:
    values = {
        "model_name_or_path": demo_model,
        "labelled_name": demo_rows_path(),
        "benign_name": demo_rows_path(),
        "safe_prompts_name": demo_rows_path(),
        "output_dir": tmp_path / "out",
        "prompts": 3,
        "benign_rows": 3,
        "safe_prompts": 3,
        "max_new_tokens": 5,
        "judges": "refusal",
    }
    return [str(word) for name, value in values.items() for word in (f"--{name}", value)]


def test_one_model_is_evaluated(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *words]) == 0
    found = json.loads((tmp_path / "out" / EVALUATION_FILE).read_text())
    assert found["questions"] == {"harmful": 3, "pairs": 0, "benign": 3, "safe": 3}
    said = capsys.readouterr().out
    assert f"{found['harmful']['refusal']['mean']:.3f}" in said
    assert f"{found['perplexity']:.2f}" in said
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"instruction": f"How do I do it, case {i}?"}) + "\n" for i in range(5)))
    assert main(["evaluate", *words, "--harmful_prompts", f"{more},name=Others"]) == 0
    beside = json.loads((tmp_path / "out" / EVALUATION_FILE).read_text())
    assert beside["questions"] == {**found["questions"], "Others": 3}
    assert beside["harmful"] == found["harmful"]
    assert 0 <= beside["sets"]["Others"]["refusal"]["mean"] <= 1
    assert "Others, judge refusal" in capsys.readouterr().out
    assert main(["evaluate", *words[2:]]) == 2
    assert "--model_name_or_path" in capsys.readouterr().err


def test_an_experiment_from_yaml(
    words: list[str], demo_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "pools": ["easy"],
        "shares": [0.25],
        "rows": 24,
        "labelled_rows": 12,
        "seeds": [0],
        "arms": ["none", "oracle"],
    }
    place = words.index("--safe_prompts_name")  # every prompt would be a question, and none be left for pools
    words = words[:place] + words[place + 2 :]
    training = {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_checkpointing": False}
    config = tmp_path / "experiment.yaml"
    config.write_text(yaml.safe_dump({**options, "training": training}))
    assert main(["experiment", "--config", str(config), *words]) == 0
    assert str(tmp_path / "out" / "report.html") in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out" / "experiment.json").read_text())["runs"]) == 2
    assert main(["experiment", "--config", str(config), *words, "--arms", "magic"]) == 2
    assert "magic" in capsys.readouterr().err


CONFIGS = sorted(path.stem for path in (ROOT / "examples" / "contamination").glob("*.yaml"))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_ready_configs_can_be_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "examples" / "contamination" / f"{name}.yaml"
    nowhere = str(tmp_path / "nowhere.jsonl")
    assert main(["experiment", "--config", str(path), "--labelled_name", nowhere]) == 2
    assert f"there is no file {nowhere}" in capsys.readouterr().err


def test_the_small_config_finds_what_it_needs_in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = parse_as(ExperimentConfig, "experiment", ["--config", "examples/contamination/small.yaml"])
    config.check()
    assert AutoConfig.from_pretrained(config.model_name_or_path).num_hidden_layers == 4
    rows = load_source(config)
    assert not any(row.harmful for row in rows.benign[0])  # the file has labels, and harmful rows
    pool = rows.pool(config.pools[0], config.shares[0], config.rows, config.labelled_rows, config.demonstrations, 0)
    assert (len(pool.rows), pool.harmful.sum(), len(pool.labelled)) == (200, 50, 60)
    held = rows.held_out(config.prompts, config.pairs, config.benign_rows, config.safe_prompts)
    assert (len(held.harmful), len(held.benign)) == (config.prompts, config.benign_rows)
