"""No prompt is in two roles, and pools are what they are said to be."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from datasets import Dataset
from evaluate_kit import demo_source
from hypothesis import given
from hypothesis import strategies as st

from saft_hf import SAFTInputError
from saft_hf.evaluate.pools import Dialogue, ExperimentRows, prompt_key, read_rows, role_of

ROLES = ("pool", "judge", "pairs", "questions")
texts = st.text("abc ", min_size=1, max_size=6)


def _row(prompt: str, harmful: bool) -> Dialogue:
    return Dialogue([{"role": "user", "content": prompt}], "answer", harmful)


@given(st.lists(st.tuples(texts, st.booleans())), st.lists(texts, max_size=4), st.integers(0, 5))
def test_a_prompt_has_one_role_whatever_the_other_rows(
    rows: list[tuple[str, bool]], asked: list[str], seed: int
) -> None:
    labelled = [_row(prompt, harmful) for prompt, harmful in rows]
    source = ExperimentRows(labelled, [labelled[::2]], labelled[1::2], [_row(prompt, False) for prompt in asked], seed)
    everything = [*labelled, *source.safe_prompts]
    keys = {role: {prompt_key(row.prompt) for row in source.of(everything, role)} for role in ROLES}
    assert not any(keys[one] & keys[other] for one, other in combinations(ROLES, 2))
    assert sum(len(source.of(everything, role)) for role in ROLES) == len(everything)
    assert {prompt_key(row.prompt) for row in source.safe_prompts} <= keys["questions"]
    assert [row for role in ROLES for row in source.of(labelled[:1], role)] == labelled[:1]


@given(texts)
def test_case_and_white_space_make_no_other_prompt(text: str) -> None:
    shouted = [{"role": "user", "content": f"  {text.upper()}\n"}]
    assert prompt_key(shouted) == prompt_key([{"role": "user", "content": text}])


def test_roles_have_their_shares_and_depend_on_the_seed() -> None:
    prompts = [[{"role": "user", "content": str(i)}] for i in range(4000)]
    roles = [role_of(prompt) for prompt in prompts]
    assert roles.count("pool") / 4000 == pytest.approx(0.6, abs=0.03)
    assert roles.count("questions") / 4000 == pytest.approx(0.1, abs=0.02)
    assert roles != [role_of(prompt, seed=1) for prompt in prompts]


def test_a_pool_has_its_share_and_its_labels(demo_pool: Dataset) -> None:
    source = demo_source(demo_pool)
    pool = source.pool("hard", 0.25, 80, 30, 0.05, seed=3)
    assert len(pool.rows) == 80
    assert pool.harmful.sum() == 20
    assert pool.demonstrations.sum() >= 4
    assert not (pool.harmful & pool.demonstrations).any()
    assert len(set(pool.labelled.tolist())) == 30
    again, other = (source.pool("hard", 0.25, 80, 30, 0.05, seed=seed) for seed in (3, 4))
    assert again.rows == pool.rows
    assert np.array_equal(again.labelled, pool.labelled)
    assert other.rows != pool.rows
    labels = pool.labelled_dataset["is_harmful"]
    assert labels[:] == pool.harmful[pool.labelled].tolist()
    easy = source.pool("easy", 0.25, 40, 10, 0.0, seed=0)
    assert {row.answer for row in easy.rows if not row.harmful} <= {row.answer for row in source.benign[0]}
    with pytest.raises(SAFTInputError, match="are there for pools"):
        source.pool("hard", 0.5, 5000, 30, 0.0, seed=0)
    with pytest.raises(SAFTInputError, match="medium"):
        source.pool("medium", 0.5, 50, 30, 0.0, seed=0)


@given(
    sources=st.integers(1, 4),
    refusals=st.booleans(),
    share=st.sampled_from([0.0, 0.1, 0.25]),
    size=st.integers(8, 60),
    seed=st.integers(0, 3),
)
def test_a_mixed_pool_has_equal_parts_and_a_harmless_one_no_harm(
    sources: int, refusals: bool, share: float, size: int, seed: int
) -> None:
    def source(name: str, harmful: bool = False) -> list[Dialogue]:
        return [Dialogue([{"role": "user", "content": f"{name} {i}"}], name, harmful) for i in range(150)]

    benign = [source(f"source {i}") for i in range(sources)]
    rows = ExperimentRows(source("bad", True), benign, source("refused") if refusals else [], [])
    names = [*(f"source {i}" for i in range(sources)), *(["refused"] if refusals else [])]
    pool = rows.pool("mixed", share, size, 5, 0.0, seed)
    counts = [sum(row.answer == name for row in pool.rows) for name in names]
    assert len(pool.rows) == size
    assert int(pool.harmful.sum()) == round(share * size)
    assert sum(counts) == size - round(share * size)
    assert max(counts) - min(counts) <= 1
    harmless = rows.pool("harmless", share, size, 5, 0.0, seed)
    assert {row.answer for row in harmless.rows} == {"source 0"}
    assert not harmless.harmful.any()


def test_pairs_are_two_answers_to_one_prompt(demo_pool: Dataset) -> None:
    held_out = demo_source(demo_pool).held_out(5, 6, 7, 3)
    assert [len(things) for things in vars(held_out).values()] == [5, 6, 7, 3, 0]
    assert all(safe[:-1] == unsafe[:-1] and safe != unsafe for safe, unsafe in held_out.pairs)


def test_every_shape_is_read() -> None:
    expected = [Dialogue([{"role": "user", "content": "Hi"}], "Hello", False)]
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    shapes = [
        {"messages": [chat]},
        {"prompt": ["Hi"], "response": ["Hello"]},
        {"prompt": [chat[:1]], "completion": [chat[1:]]},
        {"instruction": ["Hi"], "input": [""], "output": ["Hello"]},
    ]
    for columns in shapes:
        assert read_rows(Dataset.from_dict(columns), labelled=False) == expected
    labelled = Dataset.from_dict({"prompt": ["Hi"], "response": ["Hello"], "is_safe": [False]})
    assert read_rows(labelled, labelled=True)[0].harmful
    with pytest.raises(SAFTInputError, match="no known shape"):
        read_rows(Dataset.from_dict({"body": ["Hi"]}), labelled=False)
