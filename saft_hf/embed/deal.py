"""Missing leaves -> processes: each takes the next one when it is ready for it, so that they end about together."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from saft_hf.embed.store import Store
from saft_hf.embed.world import World


@contextmanager
def dealt(missing: list[int], store: Store, world: World) -> Iterator[Iterator[int]]:
    """The leaves that this process is to fill, each taken when it is asked for. Collective.

    Where all processes see the same files, one that has filled its own leaves goes on with the others' last ones: a
    busy neighbour, or a resumed run that misses one process's leaves only, keeps the others waiting for a few leaves at
    most. Else each fills its own. Who fills a leaf does not change its bits where all have the same hardware.

    Args:
        missing: the leaves among this process's own that are not in the store.
        store: where they go.
        world: the processes that work together.

    Yields:
        The leaves, in the order in which to fill them.
    """
    reported = world.gather(missing)
    if world.size == 1 or not any(reported) or not store.is_shared(world):
        yield iter(missing)
        return
    run_id = world.share(secrets.token_hex(8))
    others = [reported[(world.rank + step) % world.size] for step in range(1, world.size)]
    # One that another run has filled meanwhile is left alone; its owner sees whether it is whole.
    stolen = (leaf for theirs in others for leaf in reversed(theirs) if not store.path(leaf).exists())
    try:
        yield (leaf for leaf in chain(missing, stolen) if store.claim(leaf, run_id))
    finally:
        if world.is_main:
            store.forget_claims(run_id)
