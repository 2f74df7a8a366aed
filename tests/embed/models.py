"""Tiny random models of many architectures, with weights large enough that every block matters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import nn

VOCAB = 61
LAYERS = 3

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OPT: dict[str, Any] = {"ffn_dim": 48, "dropout": 0.1, "layerdrop": 0.5}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": LAYERS,  # as many as the text part has: they must not be mistaken for it
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def _sized(name: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(tf, name)(**(_SIZES | more))


def _gemma3() -> Any:
    text = _SIZES | {"head_dim": 8, "sliding_window": 4, "layer_types": _TYPES}
    return tf.Gemma3Config(text_config=text, vision_config=_VISION, mm_tokens_per_image=4)


def _llava() -> Any:
    return tf.LlavaConfig(
        text_config=tf.LlamaConfig(**_SIZES),
        vision_config=tf.CLIPVisionConfig(**_VISION),
        image_token_index=60,
    )


_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": _sized("LlamaConfig"),
    "qwen2": _sized("Qwen2Config"),
    "qwen3": _sized("Qwen3Config", head_dim=8),
    "mistral": _sized("MistralConfig", sliding_window=4),
    "mistral_full": _sized("MistralConfig", sliding_window=None),
    "gemma": _sized("GemmaConfig", head_dim=8),
    "gemma2": _sized("Gemma2Config", head_dim=8, sliding_window=4, layer_types=_TYPES),
    "gemma3_text": _sized("Gemma3TextConfig", head_dim=8, sliding_window=4, layer_types=_TYPES),
    "gemma3n_text": _sized(
        "Gemma3nTextConfig",
        head_dim=8,
        sliding_window=4,
        num_hidden_layers=4,
        intermediate_size=[48] * 4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
    ),
    "phi": _sized("PhiConfig", resid_pdrop=0.1),
    "phi3": _sized("Phi3Config"),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": _sized("GPTNeoXConfig"),
    "opt": _sized("OPTConfig", **_OPT),
    "opt_post_norm": _sized("OPTConfig", **_OPT, do_layer_norm_before=False, word_embed_proj_dim=16),
    "falcon": lambda: tf.FalconConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4, alibi=False
    ),
    "bloom": lambda: tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=LAYERS, n_head=4),
    "mixtral": _sized("MixtralConfig", num_local_experts=LAYERS, num_experts_per_tok=2),
    "qwen2_moe": _sized(
        "Qwen2MoeConfig",
        num_experts=LAYERS,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        decoder_sparse_step=2,
    ),
    "olmoe": _sized("OlmoeConfig", num_experts=4, num_experts_per_tok=2),
    "gpt_oss": _sized(
        "GptOssConfig",
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=_TYPES,
        sliding_window=4,
        rope_scaling=None,
    ),
    "jamba": _sized(
        "JambaConfig",
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        num_experts=4,
        num_experts_per_tok=2,
        use_mamba_kernels=False,
        mamba_dt_rank=4,
    ),
    "gemma3": _gemma3,
    "llava": _llava,
}


def dynamic_rope(config: Any) -> Any:
    """The config with rotary frequencies that depend on the length of the row, in either form that transformers has."""
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    config.rope_scaling = scaling
    if hasattr(config, "rope_parameters"):
        config.rope_parameters = {**scaling, "rope_theta": 10000.0}
    return config


def tiny_model(architecture: str, seed: int = 0) -> Any:
    """A tiny causal language model in eval mode, the same for the same seed, in float32."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    config = CONFIGS[architecture]()
    auto = tf.AutoModelForImageTextToText if hasattr(config, "vision_config") else tf.AutoModelForCausalLM
    model = auto.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.set_rng_state(state)
    return model.eval()


def save_tiny(model: nn.Module, folder: Path) -> str:
    """Save a model, and give its folder's name."""
    model.save_pretrained(folder)
    return str(folder)


def token_ids(rows: int = 2, length: int = 11, seed: int = 0) -> torch.Tensor:
    """Random ordinary token ids, int64 [rows, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB - 2, (rows, length), generator=generator)
