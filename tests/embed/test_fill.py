"""Shards are filled alike however many threads read, in whatever order, and by whichever process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from models import VOCAB, tiny_model, token_ids
from safetensors.numpy import load_file
from transformers import PreTrainedTokenizerFast

from saft_hf.distributed import World
from saft_hf.embed import extract, fill
from saft_hf.embed.backbone import Backbone
from saft_hf.embed.extract import Embedded, Extractor
from saft_hf.embed.features import Features, feature_name
from saft_hf.embed.source import ModelSource
from saft_hf.embed.store import Store
from saft_hf.embed.survey import Kept
from saft_hf.errors import SAFTInputError
from saft_hf.render import MEAN, START, Renderer

FEATURES = Features((1, 2), (START, MEAN))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows() -> Dataset:
    draw = np.random.default_rng(0)
    ids = [draw.integers(3, VOCAB, int(draw.integers(4, 40))).tolist() for _ in range(120)]
    return Dataset.from_dict({"input_ids": ids, "completion_mask": [[0, 0] + [1] * (len(row) - 2) for row in ids]})


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    vocab = {f"t{number}": number for number in range(VOCAB)}
    core = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="t0", eos_token="t1")


def extractor(folder: Path, features: Features = FEATURES, **options: Any) -> Extractor:
    source = ModelSource(tiny_model("llama"), processing_class=tokenizer())
    renderer = Renderer(source.tokenizer, **options)
    return source.extractor(renderer, features, folder=folder, world=World(), token_budget=64)


def vectors_of(embedded: Embedded) -> dict[str, np.ndarray]:
    return {name: embedded.states(name) for name in FEATURES.names}


def test_bits_do_not_depend_on_the_number_of_threads(tmp_path: Path, rows: Dataset, threads: Any) -> None:
    found = {}
    for count in (1, 2, 3):
        threads(count)
        found[count] = vectors_of(extractor(tmp_path / str(count)).embed(rows))
        assert torch.get_num_threads() == count
    assert np.isfinite(found[1][feature_name(2, MEAN)]).all()
    for count in (2, 3):
        for name in FEATURES.names:
            assert np.array_equal(found[1][name], found[count][name]), (count, name)


def test_several_threads_do_read_side_by_side(
    tmp_path: Path, rows: Dataset, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting, read_batch = threading.Barrier(2, timeout=20), fill.read_batch
    met = threading.Event()

    def met_first(backbone: Any, renderings: Any, features: Any, prefix: Any) -> Any:
        if not met.is_set():
            meeting.wait()  # times out where batches are read one after the other
            met.set()
        return read_batch(backbone, renderings, features, prefix)

    monkeypatch.setattr(fill, "read_batch", met_first)
    threads(2)
    extractor(tmp_path).embed(rows)


def test_a_process_that_fails_takes_what_is_left_so_that_the_others_end(
    tmp_path: Path, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands = []

    @contextmanager
    def steal_shards(missing: list[int], *_: Any) -> Iterator[Iterator[int]]:
        hands.append(iter(missing))
        yield hands[-1]

    monkeypatch.setattr(extract, "steal_shards", steal_shards)
    monkeypatch.setattr(fill, "read_batch", lambda *_: (_ for _ in ()).throw(RuntimeError("the machine is on fire")))
    with pytest.raises(RuntimeError, match="on fire"):
        extractor(tmp_path).embed(rows)
    assert [list(hand) for hand in hands] == [[]]


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_in_a_reader_reaches_the_caller_and_whole_leaves_stay(
    tmp_path: Path, rows: Dataset, threads: Any, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    read_batch, calls = fill.read_batch, []

    def failing(backbone: Any, renderings: Any, features: Any, prefix: Any) -> Any:
        calls.append(len(renderings))
        if len(calls) == 30:
            raise RuntimeError("the machine is on fire")
        return read_batch(backbone, renderings, features, prefix)

    monkeypatch.setattr(fill, "read_batch", failing)
    threads(count)
    with pytest.raises(RuntimeError, match="on fire"):
        extractor(tmp_path).embed(rows)
    assert torch.get_num_threads() == count
    monkeypatch.setattr(fill, "read_batch", read_batch)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert kept
    resumed = vectors_of(extractor(tmp_path).embed(rows))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    expected = vectors_of(extractor(tmp_path / "other").embed(rows))
    assert all(np.array_equal(resumed[name], expected[name]) for name in FEATURES.names)


def test_a_replica_shares_weights_and_nothing_else() -> None:
    model = tiny_model("llama")
    backbone = Backbone.wrap(model, layers=[1, 2])
    with backbone.reading():
        replica = backbone.replica()
        assert replica is not None
        assert {id(p) for p in replica._open.parameters()} == {id(p) for p in model.parameters()}
        assert not {id(m) for m in replica._open.modules()} & {id(m) for m in model.modules()}
        one, other = backbone.read(token_ids(), [1, 2]), replica.read(token_ids(), [1, 2])
    assert all(torch.equal(one[layer], other[layer]) for layer in (1, 2))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("again_at_most", [1, 64])
def test_rows_that_were_kept_are_not_rendered_again(
    tmp_path: Path, rows: Dataset, monkeypatch: pytest.MonkeyPatch, again_at_most: int
) -> None:
    monkeypatch.setattr(fill, "_RENDERED_AGAIN", again_at_most)
    made = extractor(tmp_path)
    rendered: list[int] = []
    render = Renderer.__call__

    def counted(self: Renderer, batch: Any) -> Any:
        rendered.append(len(batch["input_ids"]))
        return render(self, batch)

    monkeypatch.setattr(Renderer, "__call__", counted)
    embedded = made.embed(rows)
    first = embedded.plan.shard_slice(0)
    assert sum(rendered) == len(rows) + min(first.stop - first.start, again_at_most)
    rendered.clear()
    monkeypatch.setattr(Kept.__init__, "__defaults__", (0,))
    again = extractor(tmp_path / "other").embed(rows)
    assert sum(rendered) == len(rows) + embedded.plan.num_unique
    assert all(np.array_equal(vectors_of(embedded)[name], vectors_of(again)[name]) for name in FEATURES.names)


def test_a_renderer_that_draws_at_random_is_found(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    made = extractor(tmp_path, formatting_func=lambda row: " ".join(f"t{n}" for n in draw.integers(3, VOCAB, 9)))
    with pytest.raises(SAFTInputError, match="other tokens the second time"):
        made.embed(Dataset.from_dict({"number": list(range(20))}))


def test_a_store_of_one_process_is_shared_and_leaves_no_mark(tmp_path: Path) -> None:
    store = Store(tmp_path / "new", FEATURES.names)
    with store.run(World()) as run:
        assert store.is_shared(World(), run)
    assert not list((tmp_path / "new").iterdir())


def test_shards_hold_what_is_read_back(tmp_path: Path, rows: Dataset) -> None:
    embedded = extractor(tmp_path).embed(rows)
    shard = load_file(embedded.store.path(0))
    assert set(shard) == {"keys", *FEATURES.names}
    assert (shard["keys"] == embedded.plan.keys[embedded.plan.shard_slice(0)]).all()


class Bar:
    """What a progress bar is told."""

    def __init__(self, total: int, what: str, initial: int) -> None:
        self.total, self.what, self.n, self.disable = total, what, initial, False

    def update(self, rows: int) -> None:
        self.n += rows

    def close(self) -> None:
        pass


def test_progress_says_what_the_store_had_and_counts_what_other_processes_wrote(
    rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Bar] = []

    def bar(total: int, world: World, what: str, unit: str, *, initial: int = 0) -> Bar:
        bars.append(Bar(total, what, initial))
        return bars[-1]

    monkeypatch.setattr(fill, "progress_bar", bar)
    reader = extractor(tmp_path)
    embedded = reader.embed(rows)
    plan, store = embedded.plan, embedded.store
    assert (bars[-1].what, bars[-1].n, bars[-1].total) == ("Embedding rows", plan.num_unique, plan.num_unique)
    assert plan.num_shards > 1
    gone = len(plan.shard_keys(0))
    store.path(0).unlink()
    before = len(bars)
    reader.embed(rows)
    assert len(bars) == before + 1
    stored = plan.num_unique - gone
    assert bars[-1].what == (f"Embedding rows ({stored} in the store)" if stored else "Embedding rows")
    assert bars[-1].n == plan.num_unique
    reader.embed(rows)  # nothing is missing
    assert len(bars) == before + 1

    two = type("Two", (World,), {"size": 2, "rank": 0})()
    progress = fill._Progress(fill.Filler(reader.renderer, FEATURES, two, Kept()), plan, store, 0)
    progress.wrote(1)  # the other one has written all the rest meanwhile
    assert bars[-1].n == plan.num_unique
