"""Missing leaves -> processes: each takes the next one when it is ready for it, so that all end together."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from saft_hf.embed.store import Store
from saft_hf.embed.world import World


@contextmanager
def dealt(missing: Sequence[int], store: Store, world: World) -> Iterator[Iterator[int]]:
    """The leaves that this process is to fill, each taken when it is asked for. Collective.

    Where all processes see the same files, one that has filled its own leaves goes on with the others' last ones: a
    slower card, a busy neighbour or a resumed run that misses one process's leaves only keeps nobody waiting. Else
    each fills its own. Who fills a leaf does not change what stands in it.

    Args:
        missing: the leaves among this process's own that are not in the store.
        store: where they go.
        world: the processes that work together.

    Yields:
        The leaves, in the order in which to fill them.
    """
    reported = world.gather(list(missing))
    if world.size == 1 or not any(reported) or not store.is_shared(world):
        yield iter(missing)
        return
    if world.is_main:
        store.forget_claims()  # should another run be at work here, both may fill a leaf, and alike
    run = world.share(secrets.token_hex(8))
    others = [reported[(world.rank + step) % world.size] for step in range(1, world.size)]
    order = [*missing, *(leaf for theirs in others for leaf in reversed(theirs))]
    try:
        yield (leaf for leaf in order if store.claim(leaf, run))
    finally:
        if world.is_main:
            store.forget_claims(run)
