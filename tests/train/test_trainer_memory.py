"""After `__init__`, the trainer holds no more memory than SFTTrainer."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_kit import make_args, make_tokenizer, pool_rows, save_model
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTTrainer

from saft_hf import SAFTSFTTrainer

KIT = Path(__file__).resolve().parent

# Half of these blocks, which the scoring model has, weigh a fifth of all that a process holds.
SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import psutil
from train_kit import make_args, pool_rows
from trl import SFTTrainer
from saft_hf import SAFTSFTTrainer

trainer_class = {"sft": SFTTrainer, "saft": SAFTSFTTrainer}[sys.argv[2]]
args = make_args(Path(sys.argv[3]) / sys.argv[2])
trainer = trainer_class(sys.argv[3] + "/model", args, train_dataset=pool_rows())
sum(float(weight.sum()) for weight in trainer.model.parameters())  # on a CPU weights are read when they are used
print("resident", psutil.Process().memory_info().rss)
"""


def resident(kind: str, folder: Path) -> int:
    """Bytes that a process holds with a trainer in it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", SCRIPT, str(KIT), kind, str(folder)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split("resident ")[1].split()[0])


def test_resident_memory_is_that_of_sft_trainer(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=320, max_position_embeddings=256, eos_token_id=0, pad_token_id=1, **SIZES)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    plain, saft = resident("sft", tmp_path), resident("saft", tmp_path)
    print(f"resident after __init__: SFTTrainer {plain / 2**20:.0f} MiB, SAFTSFTTrainer {saft / 2**20:.0f} MiB")
    assert saft <= 1.05 * plain


@pytest.mark.gpu
def test_memory_of_the_gpu_is_that_of_sft_trainer(tmp_path: Path) -> None:
    model, held = save_model(tmp_path / "model"), []
    # The first one warms up: a workspace of cuBLAS, which the process keeps, is nobody's model. Each has its own store.
    for number, trainer_class in enumerate((SAFTSFTTrainer, SFTTrainer, SAFTSFTTrainer)):
        gc.collect()
        before = torch.cuda.memory_allocated()
        args = make_args(tmp_path / str(number), use_cpu=False)
        trainer = trainer_class(model, args, train_dataset=pool_rows())
        gc.collect()
        held.append(torch.cuda.memory_allocated() - before)
        del trainer
    assert held[1] == held[2] > 0
