"""What a card computes is what a CPU computes, alone, shared, short of memory or in 16 bits: `make test-gpu`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from saft_hf import SAFTScorer, SAFTSFTConfig, SAFTSFTTrainer
from saft_hf.distributed import World
from saft_hf.embed import features
from saft_hf.embed.features import Features
from saft_hf.embed.source import ModelSource
from saft_hf.render import MEAN, START, Renderer

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
SCRIPT = Path(__file__).with_name("demo_run.py")
FAMILIES = {
    "llama": "LlamaConfig",
    "qwen2": "Qwen2Config",
    "mistral": "MistralConfig",
    "gpt2": "GPT2Config",
}
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


@pytest.fixture(scope="session", autouse=True)
def card() -> None:
    """Says which card the tests ran on."""
    print(f"\ncard: {torch.cuda.get_device_name()}, torch {torch.__version__}")


def model_of(family: str, vocabulary: int) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, FAMILIES[family])(vocab_size=vocabulary, **SIZES)
    return AutoModelForCausalLM.from_config(config).float().eval()


def vectors(
    model: Any, tokenizer: Any, rows: Dataset, folder: Path, device: str, budget: int = 2048, **options: Any
) -> dict[str, Any]:
    """States of two layers at two readouts, read in place on a device."""
    read = Features((2, 4), (START, MEAN))
    source = ModelSource(model.to(device), processing_class=tokenizer)
    options |= {"folder": folder, "world": World(), "device": torch.device(device), "token_budget": budget}
    extractor = source.extractor(Renderer(tokenizer), read, **options)
    embedded = extractor.embed(rows)
    return {name: embedded.states(name) for name in read.names}


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference of two rows by the length of the second."""
    return float((np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_of_a_card_are_those_of_the_cpu(
    family: str, tmp_path: Path, demo_pool: Dataset, demo_model: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    model, rows = model_of(family, len(tokenizer)), demo_pool.select(range(96))
    on_cpu = vectors(model, tokenizer, rows, tmp_path / "cpu", "cpu")
    on_card = vectors(model, tokenizer, rows, tmp_path / "card", DEVICE)
    again = vectors(model, tokenizer, rows, tmp_path / "again", DEVICE)
    in_16_bits = vectors(model.bfloat16(), tokenizer, rows, tmp_path / "bf16", DEVICE)
    for name, expected in on_cpu.items():
        assert np.isfinite(expected).all()
        assert distance(on_card[name], expected) < 1e-4, name
        assert np.array_equal(on_card[name], again[name]), name
        assert distance(in_16_bits[name], expected) < 3e-2, name  # eight bits of mantissa, four blocks


def test_a_system_prompt_is_read_once_on_a_card_too(tmp_path: Path, demo_pool: Dataset, demo_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    system = {"role": "system", "content": "Answer plainly, and say what you do not know. " * 20}
    rows = demo_pool.select(range(200)).map(lambda row: {"messages": [system, *row["messages"]]})
    model, folder = model_of("llama", len(tokenizer)), tmp_path / "card"
    expected = vectors(model, tokenizer, rows, tmp_path / "cpu", "cpu")
    found = vectors(model, tokenizer, rows, folder, DEVICE)
    whole = vectors(model, tokenizer, rows, tmp_path / "whole", DEVICE, shares_prefix=False)
    assert {path.name for path in folder.iterdir()} != {path.name for path in (tmp_path / "whole").iterdir()}
    for name, value in expected.items():
        assert distance(found[name], value) < 1e-4, name
        assert distance(whole[name], value) < 1e-4, name


def run(out: Path, *, vector_dtype: str = "float32", workers: int = 0, **environment: str) -> Any:
    """Fit, score and filter the demo in one process."""
    out.mkdir()
    words = [sys.executable, str(SCRIPT), str(out), vector_dtype, str(workers)]
    one_thread = {"OMP_NUM_THREADS": "1"}  # as torchrun has it: sums on the host have the same last bits
    done = subprocess.run(
        words, env={**os.environ, **one_thread, **environment}, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(out / "rank0.npz")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process on the card finds; its workers score new rows, too."""
    return run(tmp_path_factory.mktemp("alone") / "out", workers=2)


def test_decisions_of_a_card_are_those_of_the_cpu(alone: Any, tmp_path: Path) -> None:
    on_cpu = run(tmp_path / "cpu", ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="")
    assert str(alone["device"]).startswith(DEVICE)
    assert str(on_cpu["device"]) == "cpu"
    np.testing.assert_allclose(alone["scores"], on_cpu["scores"], atol=1e-3)
    assert np.array_equal(alone["kept"], on_cpu["kept"])


def test_workers_that_take_a_card_by_their_rank_score_as_the_parent(alone: Any) -> None:
    np.testing.assert_allclose(alone["mapped"], alone["new"], rtol=0, atol=1e-5 * np.abs(alone["scores"]).max())


def test_two_processes_on_one_card_find_what_one_does(alone: Any, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [*launcher, str(SCRIPT), str(tmp_path), "float32", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        found = np.load(tmp_path / f"rank{rank}.npz")
        assert int(found["size"]) == 2
        for name in ("scores", "new", "kept", "threshold"):
            assert np.array_equal(found[name], alone[name]), name


def test_vectors_in_16_bits_decide_alike(alone: Any, tmp_path: Path) -> None:
    halves = run(tmp_path / "out", vector_dtype="float16")
    np.testing.assert_allclose(halves["scores"], alone["scores"], atol=0.02)
    assert len(np.setxor1d(halves["kept"], alone["kept"])) <= 5


def test_a_batch_that_does_not_fit_is_split(
    tmp_path: Path, demo_pool: Dataset, demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    sizes = SIZES | {"hidden_size": 512, "intermediate_size": 16384}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).eval()
    expected = vectors(model, tokenizer, demo_pool, tmp_path / "whole", DEVICE, budget=16384)
    failed, forward = [], features._forward

    def counted(*args: Any) -> Any:
        try:
            return forward(*args)
        except torch.OutOfMemoryError:
            failed.append(len(args[1]))
            raise

    monkeypatch.setattr(features, "_forward", counted)
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    # A batch of 16,384 tokens holds some 2 GiB of feed-forward activations in float32.
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / whole)
    try:
        found = vectors(model, tokenizer, demo_pool, tmp_path / "split", DEVICE, budget=16384)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert failed
    for name, value in expected.items():
        assert distance(found[name], value) < 1e-4, name


def trained(folder: Path, model: Any, rows: Dataset, labelled: Dataset, **options: Any) -> SAFTSFTTrainer:
    """Filter and train one step with LoRA."""
    args = SAFTSFTConfig(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=4,
        report_to="none",
        save_strategy="no",
        saft_cache_dir=str(folder / "store"),
        **options,
    )
    lora = LoraConfig(r=4, target_modules="all-linear")
    trainer = SAFTSFTTrainer(model, args, train_dataset=rows, saft_labelled=labelled, peft_config=lora)
    trainer.train()
    return trainer


def test_filtering_and_a_step_of_lora_leave_the_scoring_model_behind(
    tmp_path: Path, demo_pool: Dataset, demo_labelled: Dataset, demo_model: str
) -> None:
    trainer = trained(tmp_path, demo_model, demo_pool, demo_labelled)
    assert trainer.model.device.type == DEVICE
    assert 0 < len(trainer.saft_result.kept) < len(demo_pool)
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_a_model_in_4_bits_is_read_and_trained(
    tmp_path: Path, demo_pool: Dataset, demo_labelled: Dataset, demo_model: str
) -> None:
    pytest.importorskip("bitsandbytes")
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    plain = SAFTScorer(demo_model, cache_dir=tmp_path / "plain").fit(demo_pool, demo_labelled)
    quantised = SAFTScorer(demo_model, quantization_config=four_bits, cache_dir=tmp_path / "four")
    quantised.fit(demo_pool, demo_labelled)
    one, other = (np.asarray(s.score_dataset(demo_pool)["saft_score"]) for s in (plain, quantised))
    assert np.corrcoef(one, other)[0, 1] > 0.9
    init = {"quantization_config": four_bits, "device_map": {"": 0}}
    trainer = trained(tmp_path / "train", demo_model, demo_pool, demo_labelled, model_init_kwargs=init)
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])
