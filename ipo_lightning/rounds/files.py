"""The files in the store that a round trains on."""

from ipo_lightning.parallel.workers import Workers
from ipo_lightning.storage.layout import RoundData
from ipo_lightning.storage.records import Pair
from ipo_lightning.storage.store import LostBlob, Store


def check_files(data: RoundData, store: Store, workers: Workers) -> None:
    """Check the files that a round trains on by their hashes; each rank reads its share of them.

    Raises:
        LostBlob: one was damaged or is missing; on all ranks alike.
    """
    rows = [(one.winner_latents, one.loser_latents) if isinstance(one, Pair) else (one.latents,)
            for one in (*data.rows, *data.real)]  # fmt: skip
    files = {("latents", name): None for row in rows for name in row}
    files |= {("text", name): None for name in data.texts.values()}
    for kind, name in [*files][workers.rank :: workers.world]:
        store.has_blob(kind, name, ".safetensors")
    workers.barrier()
    lost = workers.agree(lambda: [one for one in files if not store.lists(*one, ".safetensors")])
    if lost:
        raise LostBlob(f"{store.path(*lost[0], '.safetensors')} is missing or was damaged")
