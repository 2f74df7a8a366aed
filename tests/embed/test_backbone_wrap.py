"""An object is read in place: the base model's states come out, and the object is put back as it was."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from models import CONFIGS, LAYERS, dynamic_rope, save_tiny, tiny_model, token_ids
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from saft_hf.embed.architecture import needs_reload
from saft_hf.embed.backbone import Backbone
from saft_hf.errors import SAFTInputError

EVERY = range(LAYERS + 1)


def _lora(**options: Any) -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj", "up_proj"], lora_dropout=0.3, **options)


def _fill(model: nn.Module) -> None:
    """Give adapters and saved modules values that show if they are used."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_()


def _read(model: nn.Module) -> dict[int, torch.Tensor]:
    return Backbone.wrap(model, layers=EVERY).read(token_ids(), EVERY)


def _same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return all(torch.equal(one[layer], other[layer]) for layer in EVERY)


def _state(model: nn.Module) -> dict[str, Any]:
    """All that reading might disturb."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "modules": [
            (
                name,
                module.training,
                getattr(module, "_disable_adapters", None),
                getattr(module, "gradient_checkpointing", None),
                [list(getattr(module, hook)) for hook in hooks],
                sorted(module.__dict__),
            )
            for name, module in model.named_modules()
        ],
        "parameters": [(n, p.requires_grad, p.grad, p.sum().item()) for n, p in model.named_parameters()],
        "use_cache": model.config.use_cache,
        "generators": (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        ),
        "grad": torch.is_grad_enabled(),
    }


@pytest.mark.smoke
@pytest.mark.parametrize("raises", [False, True])
def test_everything_is_put_back(raises: bool) -> None:
    model = get_peft_model(tiny_model("llama"), _lora(modules_to_save=["lm_head"]))
    _fill(model)
    model.train()
    inner = model.get_base_model()
    inner.gradient_checkpointing_enable()
    inner.enable_input_require_grads()
    inner.model.layers[1].eval()
    inner.model.layers[0].self_attn.q_proj.enable_adapters(False)
    next(inner.model.layers[2].mlp.up_proj.lora_A.parameters()).requires_grad_(False)
    inner.model.layers[0].register_forward_hook(lambda *_: None)
    before = _state(model)
    backbone = Backbone.wrap(model, layers=EVERY)
    with backbone.reading():
        assert not any(module.training for module in model.modules())
        backbone.read(token_ids(), EVERY)
        # A model that draws random numbers must not shift the user's.
        random.random(), np.random.rand(), torch.rand(1)
    if raises:
        with pytest.raises(IndexError):
            backbone.read(torch.tensor([[-1]]), EVERY)
    assert not any(states.requires_grad for states in backbone.read(token_ids(), EVERY).values())
    assert _state(model) == before


@pytest.mark.parametrize("replicated", [False, True])
def test_an_object_can_be_trained_after_it_was_read(replicated: bool) -> None:
    config = dynamic_rope(CONFIGS["llama"]())  # the model writes frequencies into a buffer while it reads
    config.max_position_embeddings = 8
    model = LlamaForCausalLM(config)
    backbone = Backbone.wrap(model, layers=[LAYERS])
    with backbone.reading():
        reader = backbone.replica() if replicated else backbone
        assert reader is not None
        rotary = reader._text.rotary_emb
        before = rotary.inv_freq.clone()
        reader.read(token_ids(length=24), [LAYERS])
    assert not torch.equal(rotary.inv_freq, before)
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
    model(token_ids(length=24), labels=token_ids(length=24)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class _Packed(nn.Parameter):
    """As libraries that quantise keep their weights."""


def test_only_our_own_plain_weights_are_read_in_inference_mode(tmp_path: Path) -> None:
    def is_inference(backbone: Backbone | None) -> bool:
        assert backbone is not None
        return backbone.read(token_ids(), [LAYERS])[LAYERS].is_inference()

    model, packed, quantised = (tiny_model("llama") for _ in range(3))
    packed.lm_head.weight = _Packed(packed.lm_head.weight.data)
    quantised.hf_quantizer = object()  # as `from_pretrained` leaves it there
    found = {}
    for name, each in {"plain": model, "packed": packed, "quantised": quantised}.items():
        with Backbone.wrap(each, layers=EVERY).reading() as backbone:
            assert _same(backbone.replica().read(token_ids(), EVERY), backbone.read(token_ids(), EVERY))
            found[name] = is_inference(backbone), is_inference(backbone.replica())
    assert found == {"plain": (False, True), "packed": (False, False), "quantised": (False, False)}
    folder = save_tiny(model, tmp_path)
    assert is_inference(Backbone.load(folder, layers=EVERY))
    offloaded = {"embed_tokens": "cpu", "norm": "cpu", "rotary_emb": "cpu", "layers": "disk"}
    options = {"device_map": offloaded, "offload_folder": str(tmp_path / "offload")}
    assert not is_inference(Backbone.load(folder, layers=EVERY, **options))


def test_a_stopped_forward_leaves_no_hooks_and_later_blocks_do_not_run() -> None:
    model = tiny_model("llama")
    ran: list[int] = []
    for index, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    backbone = Backbone.wrap(model, layers=EVERY)
    backbone.read(token_ids(), [0, 2])
    assert ran == [0, 1]
    ran.clear()
    backbone.read(token_ids(), [0])
    assert ran == []


@pytest.mark.smoke
def test_adapters_are_off_while_reading_and_on_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers 5.24 asks for PEFT 0.22, which is not released; what it calls is in 0.21 too.
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.18.0")
    base = _read(tiny_model("llama"))
    plain = Backbone.wrap(tiny_model("llama"), layers=EVERY)

    model = get_peft_model(tiny_model("llama"), _lora(modules_to_save=["embed_tokens"]))
    _fill(model)
    with torch.no_grad():
        with_adapter = model.eval()(token_ids()).logits
        assert not torch.equal(with_adapter, tiny_model("llama")(token_ids()).logits)
        assert _same(_read(model), base)
        assert torch.equal(model(token_ids()).logits, with_adapter)
    assert Backbone.wrap(model, layers=EVERY).fingerprints == plain.fingerprints

    integrated = tiny_model("llama")
    integrated.add_adapter(_lora())
    _fill(integrated)
    assert _same(_read(integrated), base)
    assert Backbone.wrap(integrated, layers=EVERY).fingerprints == plain.fingerprints

    prompts = get_peft_model(tiny_model("llama"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert _same(_read(prompts), base)


def test_adapters_that_cannot_be_turned_off_are_refused() -> None:
    model = get_peft_model(tiny_model("llama"), _lora())
    _fill(model)
    model.merge_adapter()
    with pytest.raises(SAFTInputError, match=r"adapter 'default' is merged .*unmerge_adapter"):
        Backbone.wrap(model, layers=[1])
    model.unmerge_adapter()
    Backbone.wrap(model, layers=[1])
    rewritten = get_peft_model(tiny_model("llama"), _lora(init_lora_weights="pissa"))
    with pytest.raises(SAFTInputError, match="pissa"):
        Backbone.wrap(rewritten, layers=[1])


def test_wrappers_and_the_models_own_options() -> None:
    base = _read(tiny_model("mixtral"))
    chatty = tiny_model("mixtral")
    chatty.config.output_hidden_states = chatty.config.output_router_logits = True
    assert _same(_read(chatty), base)
    Backbone.wrap(chatty, layers=[1]).read(token_ids(), [1])
    # transformers 4 records router logits through patched forwards, which a stopped forward would leave behind.
    assert not any("forward" in vars(module) for module in chatty.modules())
    assert _same(_read(nn.DataParallel(tiny_model("mixtral"))), base)
    assert _same(_read(torch.compile(tiny_model("mixtral"))), base)
    with pytest.raises(SAFTInputError, match="Linear"):
        Backbone.wrap(nn.Linear(2, 2), layers=[1])
    with pytest.raises(SAFTInputError, match=f"L={LAYERS}"):
        Backbone.wrap(chatty, layers=[LAYERS + 1])


def test_an_offloaded_model_is_read_in_place() -> None:
    model = tiny_model("llama")
    plain = Backbone.wrap(tiny_model("llama"), layers=EVERY)
    cpu_offload(model, execution_device="cpu")
    assert next(model.parameters()).is_meta
    assert needs_reload(model) is None
    backbone = Backbone.wrap(model, layers=EVERY)
    assert backbone.device == torch.device("cpu")
    assert _same(backbone.read(token_ids(), EVERY), _read(tiny_model("llama")))
    assert backbone.fingerprints == plain.fingerprints
    assert next(model.parameters()).is_meta


def _on_meta(model: nn.Module) -> nn.Module:
    return model.to("meta")


def _partitioned(model: nn.Module) -> nn.Module:
    for index, parameter in enumerate(model.parameters()):
        parameter.ds_id = index
    return model


@pytest.mark.parametrize("spoil", [_on_meta, _partitioned])
def test_sharded_and_empty_objects_are_loaded_again(spoil: Any, tmp_path: Path) -> None:
    saved = tiny_model("llama")
    folder = save_tiny(saved, tmp_path)
    model = spoil(type(saved).from_pretrained(folder))
    assert needs_reload(model)
    backbone = Backbone.wrap(model, layers=[2])
    assert torch.equal(backbone.read(token_ids(), [2])[2], _read(saved)[2])
    for name in ("", str(tmp_path / "gone")):
        model.config._name_or_path = name
        with pytest.raises(SAFTInputError, match=r"cannot be read in place.*two steps.*saft-hf filter"):
            Backbone.wrap(model, layers=[2])


def test_a_peft_model_from_disk_keeps_its_frozen_adapters_frozen(tmp_path: Path) -> None:
    get_peft_model(tiny_model("llama"), _lora()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    assert not any(p.requires_grad for p in model.parameters())
    _read(model)
    assert not any(p.requires_grad for p in model.parameters())
