"""Likelihood against plain torch, ROUGE-L against its definition, batches against single prompts, intervals."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from saft_hf import SAFTInputError
from saft_hf.evaluate.bootstrap import mean_interval
from saft_hf.evaluate.config import ExperimentConfig
from saft_hf.evaluate.generate import generate_answers
from saft_hf.evaluate.likelihood import answer_likelihoods, pair_margins
from saft_hf.evaluate.metrics import PromptMetrics, summarise
from saft_hf.evaluate.utility import rouge_l

NOTHING = PromptMetrics(harmful={}, margins=[], rouge_l=[], bleurt=[], nll=[], tokens=[], refused=[], coherent={})


@pytest.fixture(scope="module")
def model(demo_model: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)


def _chats() -> list[list[dict[str, str]]]:
    said = [("How do I bake bread?", "Mix, wait and bake."), ("Hi", "Hello there, how are you today?"), ("Why?", "So.")]
    return [[{"role": "user", "content": asked}, {"role": "assistant", "content": answer}] for asked, answer in said]


@pytest.mark.smoke
def test_likelihood_is_that_of_plain_torch(model: torch.nn.Module, demo_model: str) -> None:
    tokenizer, chats = AutoTokenizer.from_pretrained(demo_model), _chats()
    total, tokens = answer_likelihoods(model, tokenizer, chats, batch_size=2)
    for place, chat in enumerate(chats):
        encoded = tokenizer.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        ids, mask = encoded["input_ids"], torch.as_tensor(encoded["assistant_masks"]).reshape(1, -1).bool()
        with torch.no_grad():
            logits = model(ids).logits
        losses = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
        assert tokens[place] == int(mask[0, 1:].sum())
        assert total[place] == pytest.approx(-float(losses[mask[0, 1:]].sum()), rel=1e-4)
    margins = pair_margins(model, tokenizer, [(chats[0], chats[1])])
    assert margins.tolist() == pytest.approx([total[1] / tokens[1] - total[0] / tokens[0]], rel=1e-3)


def test_perplexity_counts_tokens_not_rows() -> None:
    metrics = replace(NOTHING, nll=[2.0, 4.0, None], tokens=[1, 3, 5])
    assert summarise([metrics]).perplexity == pytest.approx(np.exp(6 / 4))


def test_a_batch_answers_as_one_prompt_does_and_the_model_is_left_alone(
    model: torch.nn.Module, demo_model: str
) -> None:
    tokenizer, prompts = AutoTokenizer.from_pretrained(demo_model), [chat[:1] for chat in _chats()]
    model.train()
    model.get_submodule("lm_head").eval()
    together = generate_answers(model, tokenizer, prompts, max_new_tokens=8, batch_size=3)
    alone = [generate_answers(model, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    assert together == alone
    assert any(together)
    assert model.training
    assert not model.get_submodule("lm_head").training
    assert generate_answers(model, tokenizer, []) == []


def _longest(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    @cache
    def longest(i: int, j: int) -> int:
        if not i or not j:
            return 0
        if one[i - 1] == other[j - 1]:
            return longest(i - 1, j - 1) + 1
        return max(longest(i - 1, j), longest(i, j - 1))

    return longest(len(one), len(other))


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_rouge_l_is_its_definition(one: list[str], other: list[str]) -> None:
    common = _longest(tuple(one), tuple(other))
    precision, recall = common / max(len(other), 1), common / max(len(one), 1)
    expected = 2 * precision * recall / (precision + recall) if common else 0.0
    assert rouge_l(" ".join(one), ", ".join(other).upper()) == pytest.approx(expected)


@pytest.mark.parametrize(("missing", "options"), [("matplotlib", {}), ("bleurt", {"bleurt": "BLEURT-20"})])
def test_what_is_not_installed_is_said_before_the_work(
    missing: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("model_name_or_path", "output_dir", "labelled_name")
    config = ExperimentConfig(**dict.fromkeys(names, "x"), benign_name=["x"], **options)
    monkeypatch.setattr("saft_hf.evaluate.config.find_spec", lambda name: None if name == missing else "found")
    with pytest.raises(SAFTInputError, match=missing):
        config.check()


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        interval = mean_interval(rng.random(60) < 0.3, resamples=400)
        assert interval is not None
        inside += interval.low <= 0.3 <= interval.high
    assert 0.9 <= inside / 300 <= 0.985


def test_seeds_that_differ_widen_the_interval() -> None:
    same = np.tile(np.random.default_rng(0).random(50) < 0.5, (4, 1)).astype(float)
    apart = same.copy()
    apart[0], apart[1] = 0, 1
    narrow, wide = mean_interval(same), mean_interval(apart)
    assert narrow is not None
    assert wide is not None
    assert wide.high - wide.low > narrow.high - narrow.low
    assert narrow.spread == 0
    assert wide.spread is not None
    assert wide.spread > 0.3
    alone = mean_interval(same[0])
    assert alone is not None
    assert alone.spread is None


@given(st.lists(st.one_of(st.just(np.nan), st.floats(0, 1)), min_size=1, max_size=20))
def test_missing_values_are_left_out(values: list[float]) -> None:
    known = [value for value in values if not np.isnan(value)]
    interval = mean_interval(values, resamples=50)
    assert (interval is None) == (not known)
    if interval is not None:
        assert interval.mean == pytest.approx(np.mean(known))
        assert min(known) - 1e-9 <= interval.low <= interval.high <= max(known) + 1e-9


def test_a_summary_of_nothing_says_none() -> None:
    result = summarise([NOTHING])
    assert result.prefers_unsafe is result.rouge_l is result.perplexity is None
