"""What rendering says about every row, before any forward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.distributed import World, progress_bar
from saft_hf.embed.plan import KEY_BYTES
from saft_hf.embed.prefix import common_prefix, shared_start
from saft_hf.embed.row_renderer import row_renderer
from saft_hf.render import READOUTS, Renderer, Rendering
from saft_hf.render.rendering import see_response
from saft_hf.status import RowStatus

KEPT_BYTES = 64 * 2**20
SAMPLE = 2000
"""Rows, drawn at random, whose renderings a survey keeps on request: enough to see what scores follow besides harm."""

_STATUSES = tuple(RowStatus)
_CODES = {status: code for code, status in enumerate(_STATUSES)}


@dataclass(frozen=True)
class Survey:
    """What rendering says about each of N rows, before any forward.

    Attributes:
        keys: `uint8 [N, 16]`; rows with equal keys have equal vectors.
        identities: `uint8 [N, 16]`; rows with equal identities have equal tokens, responses too.
        lengths: `int32 [N]`, tokens to feed.
        codes: for each readout `uint8 [N]`, index into the statuses.
        prefix: `int32 [P]`, tokens with which all rows start that have any; None where none has.
        sample: row -> rendering, of up to `SAMPLE` rows drawn at random from all, where they can be read; on request.
        prompts: `uint8 [N, 16]`; rows with equal ones have the same prompt; on request.
    """

    keys: NDArray[np.uint8]
    identities: NDArray[np.uint8]
    lengths: NDArray[np.int32]
    codes: Mapping[str, NDArray[np.uint8]]
    prefix: NDArray[np.int32] | None
    sample: dict[int, Rendering] = field(default_factory=dict)
    prompts: NDArray[np.uint8] | None = None

    @property
    def usable(self) -> NDArray[np.bool_]:
        """`bool [N]`: whether at least one readout is defined."""
        ok = _CODES[RowStatus.OK]
        return np.asarray(np.stack([codes == ok for codes in self.codes.values()]).any(axis=0))

    def statuses(self, readouts: Sequence[str]) -> list[RowStatus]:
        """The status of every row where all these readouts are needed: the first that is not `ok`."""
        return [_STATUSES[code] for code in self._codes_of(readouts).tolist()]

    def status_counts(self, readouts: Sequence[str]) -> Counter[str]:
        """How many rows have each status where all these readouts are needed."""
        counts = np.bincount(self._codes_of(readouts), minlength=len(_STATUSES)).tolist()
        return Counter({status.value: count for status, count in zip(_STATUSES, counts, strict=True) if count})

    def _codes_of(self, readouts: Sequence[str]) -> NDArray[np.uint8]:
        codes = self.codes[readouts[0]]
        for readout in readouts[1:]:
            codes = np.where(codes == _CODES[RowStatus.OK], self.codes[readout], codes)
        return codes


class Kept:
    """Renderings by row, kept from the first time for the second, up to a number of bytes."""

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._rows: dict[int, Rendering] = {}
        self._room = most

    def put(self, first: int, renderings: Sequence[Rendering]) -> None:
        """Keep the renderings of neighbouring rows while there is room."""
        for row, rendering in enumerate(renderings, first):
            if self._room <= 0:
                return
            self._rows[row] = rendering
            self._room -= rendering.input_ids.nbytes + 512  # what Python adds for each

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, row: int) -> Rendering | None:
        """The rendering of a row, where it was kept."""
        return self._rows.get(row)


def survey_renderings(renderings: Sequence[Rendering], readouts: Sequence[str], *, prompts: bool = False) -> Survey:
    """Take from renderings what planning needs."""
    survey = _blank(len(renderings), readouts, prompts)
    for readout, codes in survey.codes.items():
        codes[:] = [_CODES[rendering.status_for(readout)] for rendering in renderings]
    rendered = [row for row, rendering in enumerate(renderings) if rendering.status is RowStatus.OK]
    identities = [renderings[row].key(READOUTS) for row in rendered]
    survey.identities[rendered] = _stacked(identities)
    # A key that covers the last response covers the row.
    keys = identities if see_response(readouts) else [renderings[row].key(readouts) for row in rendered]
    survey.keys[rendered] = _stacked(keys)
    survey.lengths[rendered] = [renderings[row].needed(readouts) for row in rendered]
    if survey.prompts is not None:
        survey.prompts[:] = _stacked([rendering.prompt_key() for rendering in renderings])
    return replace(survey, prefix=common_prefix([renderings[row] for row in np.flatnonzero(survey.usable).tolist()]))


def survey_dataset(
    dataset: Dataset,
    renderer: Renderer,
    readouts: Sequence[str],
    world: World,
    kept: Kept | None = None,
    *,
    sample: bool = False,
    prompts: bool = False,
    called: str = "rows",
) -> Survey:
    """Render every row once, each process its part; all get the whole survey.

    Args:
        dataset: the rows.
        renderer: rows -> tokens.
        readouts: where rows are to be read.
        world: the processes that work together.
        kept: takes renderings of this process's rows, as far as it can.
        sample: fill `Survey.sample`.
        prompts: fill `Survey.prompts`.
        called: what the progress bar calls the rows.
    """
    rows, total = renderer.reads(dataset), len(dataset)
    begin, end = (total * r // world.size for r in (world.rank, world.rank + 1))
    # Drawn from all rows before any is rendered: the same ones whatever the number of processes, and in every run.
    drawn = np.random.default_rng(0).choice(total, min(SAMPLE, total), replace=False).tolist() if sample else []
    what = f"Rendering {called}{f', 1 of {world.size} processes' if world.size > 1 else ''}"
    chosen, sampled = set(drawn), dict[int, Rendering]()

    def surveyed(renderings: list[Rendering]) -> tuple[list[Rendering], Survey]:
        return renderings, survey_renderings(renderings, readouts, prompts=prompts)

    def parts() -> Iterator[Survey]:
        with (
            row_renderer(rows, renderer, end - begin, surveyed) as render,
            progress_bar(end - begin, world, what, "rows") as bar,
        ):
            for window, (renderings, survey) in render(range(begin, end)):
                if kept is not None:
                    kept.put(window[0], renderings)
                for row, rendering, is_usable in zip(window, renderings, survey.usable.tolist(), strict=True):
                    if is_usable and row in chosen:
                        sampled[row] = rendering
                yield survey
                bar.update(len(window))

    with world.sync_errors("rendering"):
        own = replace(_joined(parts(), end - begin, readouts, prompts), sample=sampled)
    return own if world.size == 1 else _joined(world.gather(own), total, readouts, prompts)


def _joined(parts: Iterable[Survey], rows: int, readouts: Sequence[str], prompts: bool) -> Survey:
    """The surveys of neighbouring rows as one, filled part by part: a generator's never lie in memory together."""
    whole, first = _blank(rows, readouts, prompts), 0
    prefixes = []
    for part in parts:
        where = slice(first, first + len(part.lengths))
        for filled, new in zip(_columns(whole), _columns(part), strict=True):
            filled[where] = new
        whole.sample.update(part.sample)
        if part.prefix is not None:
            prefixes.append(part.prefix)
        first = where.stop
    if first != rows:
        raise AssertionError(f"{first} rows were rendered of {rows}; please report this")
    return replace(whole, prefix=reduce(shared_start, prefixes) if prefixes else None)


def _columns(survey: Survey) -> list[NDArray[Any]]:
    """What a survey holds for each row."""
    columns: list[NDArray[Any]] = [survey.keys, survey.identities, survey.lengths, *survey.codes.values()]
    return columns if survey.prompts is None else [*columns, survey.prompts]


def _stacked(keys: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)


def _blank(rows: int, readouts: Sequence[str], prompts: bool) -> Survey:
    return Survey(
        keys=np.zeros((rows, KEY_BYTES), dtype=np.uint8),
        identities=np.zeros((rows, KEY_BYTES), dtype=np.uint8),
        lengths=np.zeros(rows, dtype=np.int32),
        codes={readout: np.zeros(rows, dtype=np.uint8) for readout in readouts},
        prefix=None,
        prompts=np.zeros((rows, KEY_BYTES), dtype=np.uint8) if prompts else None,
    )
