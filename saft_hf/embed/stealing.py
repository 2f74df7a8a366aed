"""Missing shards -> processes: each takes the next one when it is ready for it, so that they end about together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from saft_hf.distributed import World
from saft_hf.embed.store import Store


@contextmanager
def steal_shards(missing: list[int], store: Store, world: World) -> Iterator[Iterator[int]]:
    """The shards that this process is to fill, each taken when it is asked for. Collective.

    Where all processes see the same files, one that has filled its own shards goes on with the others' last ones: a
    busy neighbour, or a resumed run that misses one process's shards only, keeps the others waiting for a few shards at
    most. Else each fills its own. Who fills a shard does not change its bits where all have the same hardware.

    Args:
        missing: the shards among this process's own that are not in the store.
        store: where they go.
        world: the processes that work together.

    Yields:
        The shards, in the order in which to fill them.
    """
    reported = world.gather(missing)
    if not any(reported):
        yield iter(())
        return
    with store.run(world) as run:
        if world.size == 1 or not store.is_shared(world, run):
            yield iter(missing)
            return
        others = [reported[(world.rank + step) % world.size] for step in range(1, world.size)]
        # One that another run has filled meanwhile is left alone; its owner sees whether it is whole.
        stolen = (shard for theirs in others for shard in reversed(theirs) if not store.path(shard).exists())
        yield (shard for shard in chain(missing, stolen) if store.claim(shard, run))
