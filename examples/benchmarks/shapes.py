"""Models to measure: by name, or Llama shapes with random weights, made on the device in seconds."""

from __future__ import annotations

import os
import resource
import sys
import time
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from saft_hf.embed.architecture import find_blocks, find_text

SHAPES: dict[str, dict[str, int]] = {
    "llama-0": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1},
    "llama-0.1b": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "llama-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
"""Next to nothing, and sizes of a 0.1B model, TinyLlama 1.1B and Llama 2 7B; the vocabulary has 32,000 tokens."""


def config_of(name: str) -> Any:
    """The config of a shape, or of a model by name."""
    return LlamaConfig(vocab_size=32000, **SHAPES[name]) if name in SHAPES else AutoConfig.from_pretrained(name)


def whole_model(name: str, device: str, dtype: torch.dtype) -> Any:
    """The causal language model with its head, in eval mode."""
    if name not in SHAPES:
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device).eval()
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config_of(name), dtype=dtype)
    return model.eval()


def weights_run(name: str, layer: int) -> dict[str, int]:
    """Weights that a token is multiplied with: up to a layer, and in the whole model with its head."""
    config = config_of(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    blocks = find_blocks(find_text(model), config.num_hidden_layers)
    each = [sum(p.numel() for p in block.parameters() if p.ndim > 1) for block in blocks]
    head = model.get_output_embeddings().weight.numel()
    return {"ours": sum(each[:layer]), "plain": sum(each) + head}


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of one large product in this dtype on this device: the best of five."""
    size = 8192 if device.startswith("cuda") else 2048
    # Random numbers: a card that multiplies ones draws less power, and runs faster than it ever does on data.
    one = torch.randn((size, size), device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        settle(device)
        begin = time.perf_counter()
        _ = one @ one
        settle(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def settle(device: str) -> None:
    """Wait for what was launched."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak_mib(device: str = "cpu") -> float:
    """Peak memory of this process on the device, in MiB; resident memory on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def forget_peak(device: str) -> None:
    """Begin a new peak on the device; that of a process in memory stays."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def cpu_seconds() -> float:
    """Processor seconds of this process so far, with all threads, and of its children that have ended."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system
