"""`saft-hf sft`: from YAML and files to a tuned model, and through `accelerate launch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from train_kit import losses, make_args, options_for, pool_rows, save_model

from saft_hf import SAFTHubError, SAFTInputError, SAFTSFTTrainer
from saft_hf.cli import sft


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    pool_rows("messages").to_json(tmp_path / "rows.jsonl")
    return {
        "model_name_or_path": save_model(tmp_path / "model"),
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "dtype": "float32",
        **options_for(tmp_path),
    }


def written(folder: Path, config: dict[str, Any], **more: Any) -> str:
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump({**config, **more}))
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_yaml_and_words_train_as_python_does(streaming: bool, config: dict[str, Any], tmp_path: Path) -> None:
    done: list[SAFTSFTTrainer] = []
    train = sft.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "train", lambda *arguments: done.append(train(*arguments)))
        name = config["dataset_name"]
        if streaming:  # what `load_dataset` streams is a folder or a Hub id
            (tmp_path / "rows").mkdir()
            Path(name).rename(tmp_path / "rows" / "train.jsonl")
            name = str(tmp_path / "rows")
        words = ["--dataset_name", name, "--use_peft", "--lora_r", "4", "--saft_contamination", "0.1"]
        torch.manual_seed(3)  # TRL 1.10 draws adapters from whatever state it finds
        sft.run(["--config", written(tmp_path, config, dataset_streaming=streaming), *words])
    import peft

    rows = pool_rows("messages").to_iterable_dataset() if streaming else pool_rows("messages")
    # The options that `trl sft` gives to an adapter.
    adapter = peft.LoraConfig(r=4, lora_alpha=32, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
    args = make_args(tmp_path / "python", saft_contamination=0.1, model_init_kwargs={"dtype": "float32"})
    torch.manual_seed(3)
    same = SAFTSFTTrainer(config["model_name_or_path"], args, train_dataset=rows, peft_config=adapter)
    same.train()
    assert losses(done[0]) == losses(same)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert json.loads((tmp_path / "out" / "saft_summary.json").read_text())["filtered"] is True
    if not streaming:
        assert done[0].saft_result is not None
        assert len(done[0].saft_result.removed) == 4


def test_labels_from_the_rows_or_from_a_file(config: dict[str, Any], tmp_path: Path) -> None:
    del config["saft_contamination"]
    path = written(tmp_path, config)
    summaries = []
    rows = ["--labelled_rows", "24", "--saft_method", "saft"]
    for words in (rows, ["--labelled_name", config["dataset_name"], "--saft_method", "auto"]):
        sft.run(["--config", path, *words])
        summaries.append(json.loads((tmp_path / "out" / "saft_summary.json").read_text()))
        known = json.loads((tmp_path / "out" / "_saft" / "summary.json").read_text())["provenance"]
        assert (known["input"], known["seed"]) == (
            config["dataset_name"],
            42 if "--labelled_rows" in words else None,
        )
        assert summaries[-1]["provenance"]["input"] is None  # what is pushed names no folder of this machine
    assert [summary["threshold_from"] for summary in summaries] == ["f1", "fpr=0.05"]
    with pytest.raises(SAFTInputError, match="not both"):
        sft.run(["--config", path, "--labelled_rows", "24", "--labelled_name", "x"])
    with pytest.raises(SAFTInputError, match="`--labelled_rows` must be 1 to 40"):
        sft.run(["--config", path, "--labelled_rows", "41"])


def test_options_of_accelerate_launch_go_to_it(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sft, "launch_command", seen.append)
    path = written(tmp_path, config, num_processes=2)
    sft.run(["--accelerate_config", "multi_gpu", "--config", path, "--saft_k", "2", "--main_process_port", "0"])
    (options,) = seen
    assert options.config_file.endswith("multi_gpu.yaml")
    assert (options.num_processes, options.main_process_port, options.module) == (2, 0, True)
    assert [options.training_script, *options.training_script_args] == [
        *("saft_hf", "sft", "--config", path, "--saft_k", "2")
    ]
    # In the processes that were launched, the YAML's options for the launcher are passed over.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(sft, "train", lambda *_: seen.append("trained"))
    sft.run(["--config", path])
    assert seen[1:] == ["trained"]
    with pytest.raises(SAFTInputError, match="--saft_laier"):
        sft.run(["--config", path, "--saft_laier", "3"])


def test_what_is_missing_is_named(config: dict[str, Any], tmp_path: Path) -> None:
    for name in ("model_name_or_path", "dataset_name"):
        path = written(tmp_path, {key: value for key, value in config.items() if key != name})
        with pytest.raises(SAFTInputError, match=f"--{name}"):
            sft.run(["--config", path])


def test_one_file_is_not_trained_and_evaluated_on_alike(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SAFTInputError, match=r"rows\.jsonl is one table, without a split 'test'"):
        sft.run(["--config", written(tmp_path, config, eval_strategy="steps", eval_steps=1)])


@pytest.mark.parametrize("launched", [False, True])
@pytest.mark.parametrize("place", ["yaml", "words"])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("saft_contaminaton", "Did you mean `saft_contamination` of `saft-hf sft`"),
        ("aim", "Did you mean `saft_aim` of `saft-hf sft`"),
        ("saft_labelled_rows", "Did you mean `labelled_rows` of `saft-hf sft`"),
        ("lerning_rate", "Did you mean `learning_rate` of `saft-hf sft`"),
    ],
)
def test_an_option_of_nobody_is_refused_before_anything_runs(
    name: str, hint: str, place: str, launched: bool, config: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sft, "train", lambda *_: pytest.fail("it trained"))
    monkeypatch.setattr(sft, "launch_command", lambda *_: pytest.fail("it launched"))
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    more, words = ({name: 1}, []) if place == "yaml" else ({}, [f"--{name}", "1"])
    # An option of the launcher may stand in the YAML.
    path = written(tmp_path, config, num_processes=2, **more)
    with pytest.raises(SAFTInputError, match=rf"does not take --{name} .*{hint}"):
        sft.run(["--config", path, *words])


def test_a_cpu_needs_no_word_about_precision(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(sft, "train", lambda *arguments: seen.append(arguments[-1]))
    bare = {name: value for name, value in config.items() if name not in ("use_cpu", "bf16")}
    sft.run(["--config", written(tmp_path, bare)])
    sft.run(["--config", written(tmp_path, bare, use_cpu=True, bf16=True)])
    assert [args.bf16 for args in seen] == [False, True]


def test_a_push_that_cannot_succeed_stops_before_anything_is_loaded(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sft, "SAFTSFTTrainer", lambda **_: pytest.fail("it trained"))
    path = written(tmp_path, config, push_to_hub=True, dataset_name="/no/such/rows.jsonl")
    with pytest.raises(SAFTHubError, match=r"HF_HUB_OFFLINE is set.*the model repository out"):
        sft.run(["--config", path])
