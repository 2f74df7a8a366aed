"""Tuned models on the Hub, whole and as adapters: read back as they were, with a card that says what was filtered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import HubServer
from server_kit import ROOT, TOKENS, User

# One process trains and pushes, another one reads: each has to load torch, transformers, trl and peft first.
TRAIN = """
from datasets import load_dataset
from peft import LoraConfig
from saft_hf import SAFTSFTConfig, SAFTSFTTrainer
from saft_hf.assets import demo_rows_path
from saft_hf.errors import SAFTError

model, store = hub_kit.words[:2]
pool = load_dataset("json", data_files=str(demo_rows_path()), split="train").select(range(200))


def make(name, peft_config=None, **options):
    args = SAFTSFTConfig(
        name, hub_model_id=f"alice/{name}", max_steps=2, report_to="none", save_strategy="no", use_cpu=True,
        hub_private_repo=True, saft_method="saft", saft_layer=2, saft_contamination=0.2, saft_cache_dir=store,
        **options,
    )
    return SAFTSFTTrainer(model=model, args=args, train_dataset=pool, peft_config=peft_config)


def tried(action):
    try:
        return str(action())
    except SAFTError as error:
        return f"{type(error).__name__}: {error}"


found = {}
whole = make("whole", saft_push_scorer=True, saft_push_dataset=True, hub_token="hf_alice_write")
whole.train()
found["whole"] = tried(lambda: whole.push_to_hub(dataset_name="alice/source"))
found["again"] = tried(lambda: whole.push_to_hub(dataset_name="alice/source"))
found["summary"] = whole.saft_summary
adapter = make("adapter", LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
adapter.args.save_strategy, adapter.args.save_steps = "steps", 1
adapter.train()
with open("adapter/README.md") as file:
    found["checkpoint_card"] = file.read()
found["adapter"] = tried(adapter.push_to_hub)
hub_kit.network.RETRY_SECONDS = 0.3
hub_kit.network.FIRST_WAIT = 0.2
found["broken"] = tried(lambda: adapter.push_to_hub("another", revision=None, tags=["more"]))
hub_kit.say(**found)
"""
READ = """
import torch
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM

model, home = hub_kit.words


def weights(loaded):
    return torch.cat([weight.float().flatten() for weight in loaded.state_dict().values()])


base = AutoModelForCausalLM.from_pretrained(model)
hub_kit.say(
    whole=bool((weights(AutoModelForCausalLM.from_pretrained("alice/whole")) != weights(base)).any()),
    same=all(
        torch.equal(weights(load("alice/" + name)), weights(load(f"{home}/{name}")))
        for name, load in (
            ("whole", AutoModelForCausalLM.from_pretrained),
            ("adapter", lambda at: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), at)),
        )
    ),
    rows=len(load_dataset("alice/whole-saft-rows", split="train")),
)
"""


@pytest.fixture(scope="module")
def runs(server: HubServer, demo_model: str, store_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("home")
    server.fault("status", status=503, path="alice/whole/commit/", times=2)
    server.fault("drop_response", path="alice/adapter/commit/")
    server.fault("status", status=500, path="alice/adapter/commit/", times=99)
    found = User(server, home).run(TRAIN, demo_model, store_dir).result
    server.clear_faults()
    read = User(server, tmp_path_factory.mktemp("other")).run(READ, demo_model, home).result
    return {**found, "read": read, "home": home}


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_whole_model_is_read_back_and_its_card_links_scorer_and_rows(runs: Any, repo: Any) -> None:
    assert runs["read"] == {"whole": True, "same": True, "rows": 160}
    there = repo("alice/whole", "models")
    assert there.settings["private"] is True
    assert there.commits() == ["End of training"]  # 503 twice, then pushed, then the same again
    card = there.card()
    assert card.count("## What was filtered") == 1
    assert "Of 200 rows of [alice/source](https://huggingface.co/datasets/alice/source), 40 were removed" in card
    assert "[alice/whole-saft-scorer](https://huggingface.co/alice/whole-saft-scorer)" in card
    assert "[alice/whole-saft-rows](https://huggingface.co/datasets/alice/whole-saft-rows)" in card
    assert "choi2024safety" in card
    data = front(card)
    assert {"saft", "sft", "trl"} <= set(data["tags"])
    assert data["datasets"] == ["alice/source", "alice/whole-saft-rows"]
    assert repo("alice/whole-saft-scorer", "models").settings["private"] is True
    rows = repo("alice/whole-saft-rows")
    assert rows.settings["private"] is True
    assert "[alice/whole-saft-scorer]" in rows.card()


def test_what_tells_of_single_rows_and_the_token_stay_here(runs: Any, repo: Any) -> None:
    for name in ("whole", "adapter"):
        files = repo(f"alice/{name}", "models").files()
        assert "README.md" in files
        assert not [file for file in files if "_saft" in file or "audit" in file]
        assert json.loads(files["saft_summary.json"])["removed"] == 40
        for token in TOKENS:
            assert not [file for file, content in files.items() if token.encode() in content]


def test_an_adapter_lands_once_although_the_reply_was_lost(runs: Any, repo: Any) -> None:
    there = repo("alice/adapter", "models")
    assert "adapter_model.safetensors" in there.files()
    assert there.commits() == ["End of training"]
    assert "## What was filtered" in there.card()
    assert "## What was filtered" in runs["checkpoint_card"]
    assert runs["checkpoint_card"].count("<!-- saft_hf:begin -->") == 1


def test_a_push_that_fails_says_where_the_model_is(runs: Any) -> None:
    assert runs["broken"].startswith("SAFTHubError: the model repository alice/adapter could not be reached")
    assert "Model and card are kept in adapter" in runs["broken"]
    assert "hf upload alice/adapter adapter" in runs["broken"]
    assert "\n" not in runs["broken"]


def test_the_round_trip_of_the_examples(hub: Any, repo: Any, tmp_path: Path) -> None:
    user = User(hub, tmp_path)
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "hub_roundtrip.py"), "alice"],
        env=user.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "## What was filtered" in repo("alice/saft-demo-model", "models").card()
    assert "saft-demo-rows" in repo("alice/saft-demo-model", "models").card()
    for name, kind in (("demo-scorer", "models"), ("demo-rows", "datasets"), ("demo-model-saft-rows", "datasets")):
        assert repo(f"alice/saft-{name}", kind).settings["private"] is True
    for token in TOKENS:
        assert token not in done.stdout + done.stderr
