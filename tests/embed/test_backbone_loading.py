"""Loading by name: only what is needed, with the user's options, on every rank, or a clear refusal."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers.integrations.deepspeed as hf_deepspeed
from models import LAYERS, save_tiny, tiny_model, token_ids
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BitsAndBytesConfig, LlamaModel, T5Config
from transformers.modeling_utils import is_fsdp_enabled

import saft_hf.embed.loading as loading
from saft_hf.embed.backbone import Backbone
from saft_hf.errors import SAFTInputError


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tiny_model("llama").bfloat16(), tmp_path_factory.mktemp("llama"))


def _weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    assert backbone._model is not None
    return backbone._model.state_dict()


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["llama", "llava"])
def test_only_what_is_needed_is_loaded(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tiny(tiny_model(name), tmp_path)
    backbone = Backbone.load(folder, layers=[1], device="cpu")
    weights = _weights(backbone)
    assert not [key for key in weights if "layers.1." in key or "lm_head" in key or "vision" in key]
    block = sum(t.numel() for key, t in weights.items() if "layers.0." in key)
    assert sum(t.numel() for t in weights.values()) == block + 61 * 32 + 32  # one block, embeddings, final norm
    assert all(not t.is_meta for t in weights.values())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_nothing_but_the_needed_weights_is_read_from_disk(
    llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The cut blocks' tensors hold the wrong shapes: reading them would raise.
    tensors = load_file(Path(llama) / "model.safetensors")
    for key in tensors:
        if "layers.1." in key or "layers.2." in key:
            tensors[key] = torch.zeros(1)
    (tmp_path / "config.json").write_text((Path(llama) / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    cut = Backbone.load(str(tmp_path), layers=[1], device="cpu")
    assert cut.fingerprints == Backbone.load(llama, layers=[1], device="cpu").fingerprints


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("bfloat16", torch.bfloat16), (torch.float16, torch.float16)],
)
def test_dtype(llama: str, dtype: Any, expected: torch.dtype) -> None:
    backbone = Backbone.load(llama, layers=[1], dtype=dtype, device="cpu")
    assert backbone.read(token_ids(), [1])[1].dtype == expected
    assert {t.dtype for t in _weights(backbone).values()} == {expected}


def test_options_reach_from_pretrained(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class _StopError(Exception):
        pass

    seen: dict[str, Any] = {}

    def from_pretrained(cls: type, name: str, **options: Any) -> None:
        seen.update(options, name=name)
        raise _StopError

    monkeypatch.setattr(LlamaModel, "from_pretrained", classmethod(from_pretrained))
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(_StopError):
        Backbone.load(
            llama,
            layers=[2],
            revision="main",
            dtype="auto",
            attn_implementation="eager",
            quantization_config=quantization,
            device_map="auto",
            token="t",
            use_safetensors=True,
        )
    assert seen["quantization_config"] is quantization
    assert (seen["name"], seen["revision"], seen["token"]) == (llama, "main", "t")
    assert (seen["attn_implementation"], seen["device_map"], seen["dtype"]) == ("eager", "auto", "auto")
    assert seen["use_safetensors"] is True
    assert seen["config"].num_hidden_layers == LAYERS


def test_attention_and_device_map_are_used(llama: str) -> None:
    backbone = Backbone.load(llama, layers=[2], attn_implementation="eager", device_map={"": "cpu"})
    assert backbone._text.config._attn_implementation == "eager"
    assert backbone.device == torch.device("cpu")
    plain = Backbone.load(llama, layers=[2], device="cpu").read(token_ids(), [2])[2]
    torch.testing.assert_close(backbone.read(token_ids(), [2])[2].float(), plain, rtol=0.1, atol=0.1)


def test_pickled_weights_are_refused_on_request(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert Backbone.load(str(tmp_path), layers=[1], device="cpu").num_layers == LAYERS
    with pytest.raises(OSError, match="safetensors"):
        Backbone.load(str(tmp_path), layers=[1], device="cpu", use_safetensors=True)


def test_bad_layers_names_and_checkpoints(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layers in ([LAYERS + 1], [-1], [True], [1.5], []):
        with pytest.raises(SAFTInputError, match=f"L={LAYERS}"):
            Backbone.load(llama, layers=layers, device="cpu")
    with pytest.raises(SAFTInputError, match="layer=3: this backbone reads layers"):
        Backbone.load(llama, layers=[1], device="cpu").read(token_ids(), [3])
    with pytest.raises(SAFTInputError, match="no model config"):
        Backbone.load(str(tmp_path / "nowhere"), layers=[1])
    T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(SAFTInputError, match="encoder-decoder"):
        Backbone.load(str(tmp_path / "t5"), layers=[1])
    tensors = load_file(Path(llama) / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    (tmp_path / "config.json").write_text((Path(llama) / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SAFTInputError, match=r"no weights for .*up_proj"):
        Backbone.load(str(tmp_path), layers=[1], device="cpu")
    monkeypatch.setattr(loading, "free_bytes", lambda device: 10_000)
    with pytest.raises(SAFTInputError, match=r"billion weights, .* GB free"):
        Backbone.load(llama, layers=[1], device="cpu")


def test_generators_are_untouched_by_loading(llama: str) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    Backbone.load(llama, layers=[2], device="cpu")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.fixture
def as_second_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `from_pretrained` sees on a rank that FSDP's `cpu_ram_efficient_loading` gives no weights."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setenv("LOCAL_RANK", "1")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.smoke
def test_fsdp_leaves_real_weights_on_every_rank(
    llama: str, as_second_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "layers.1.mlp.up_proj.weight"
    real = load_file(Path(llama) / "model.safetensors")[f"model.{name}"].float()
    switch_on: list[bool] = []
    plain_init = LlamaModel.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        switch_on.append(is_fsdp_enabled())
        plain_init(self, *args, **options)

    monkeypatch.setattr(LlamaModel, "__init__", init)
    backbone = Backbone.load(llama, layers=[2], device="cpu")
    assert is_fsdp_enabled(), "the switch is on again afterwards"
    assert not any(switch_on)
    assert switch_on
    assert torch.equal(_weights(backbone)[name], real)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    first_rank = Backbone.load(llama, layers=[2], device="cpu")
    assert backbone.fingerprints == first_rank.fingerprints
    weights = first_rank._blocks[1].get_parameter("mlp.up_proj.weight")
    with torch.no_grad():
        weights.zero_()
    del first_rank.__dict__["fingerprints"]
    assert backbone.fingerprints != first_rank.fingerprints


class _ZeRO3:
    """Stands for transformers' `HfDeepSpeedConfig`; with it, loading would import deepspeed."""

    config: dict[str, Any] = {}  # noqa: RUF012

    def is_zero3(self) -> bool:
        return True


def test_zero3_is_off_while_loading_and_on_again_afterwards(llama: str, tmp_path: Path) -> None:
    zero3 = _ZeRO3()
    hf_deepspeed.set_hf_deepspeed_config(zero3)
    try:
        with pytest.raises(Exception, match="deepspeed"):
            AutoModel.from_pretrained(llama)
        Backbone.load(llama, layers=[1], device="cpu")
        assert hf_deepspeed._hf_deepspeed_config_weak_ref() is zero3
        with pytest.raises(SAFTInputError):
            Backbone.load(llama, layers=[99], device="cpu")
        (tmp_path / "config.json").write_text((Path(llama) / "config.json").read_text())
        with pytest.raises(OSError, match=r"model\.safetensors"):
            Backbone.load(str(tmp_path), layers=[1], device="cpu")
        assert hf_deepspeed._hf_deepspeed_config_weak_ref() is zero3
    finally:
        hf_deepspeed.unset_hf_deepspeed_config()


def test_fingerprint_names_the_weights(llama: str) -> None:
    def load(layers: list[int], **options: Any) -> Backbone:
        return Backbone.load(llama, layers=layers, device="cpu", **options)

    all_layers = load([0, 1, 2, 3])
    assert len(set(all_layers.fingerprints.values())) == 4
    assert load([1]).fingerprints[1] == all_layers.fingerprints[1]
    assert load([1, 2]).fingerprints[2] == load([2], dtype="bfloat16").fingerprints[2] == all_layers.fingerprints[2]

    one_element = load([1, 2])
    with torch.no_grad():
        one_element._blocks[1].get_parameter("mlp.up_proj.weight").view(-1)[7] += 1.0
    assert one_element.fingerprints[1] == all_layers.fingerprints[1]
    assert one_element.fingerprints[2] != all_layers.fingerprints[2]


def test_closed_backbone_says_so(llama: str) -> None:
    backbone = Backbone.load(llama, layers=[1], device="cpu")
    backbone.close()
    with pytest.raises(SAFTInputError, match="closed"):
        backbone.read(token_ids(), [1])
