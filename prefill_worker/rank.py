"""Rank 1 or up of a tensor-parallel prefill worker: its pool is exported, and rank 0 says what of it is on offer."""

from engine.kv_pool import KVPool
from engine.rank_process import RankProcess, run_rank
from kv_transfer.local import start_driver
from kv_transfer.network import start_exporters
from kv_transfer.self_test import self_test
from kv_transfer.sender import KVSender
from kv_transfer.transport import Exporter
from messages import Role


def serve(rank: RankProcess) -> None:
    """Compute until rank 0 closes."""
    loaded, settings = rank.loaded, rank.settings.kv_transfer
    driver, place = start_driver(settings, loaded.model.device)
    self_test(driver)
    exporters: list[Exporter] = []
    with KVSender.create(
        f"{rank.worker_id}-{rank.shard.rank}",
        rank.num_blocks,
        loaded.layout.block_bytes,
        loaded.layout.hash(loaded.model.model_hash),
        settings.max_offers,
        driver,
    ) as sender:
        try:
            exporters += start_exporters(settings, sender, driver)
            export = sender.export(place.host_id, place.device, {one.kind: one.address for one in exporters})
            rank.serve(KVPool.over(loaded.layout, sender.buffer), export)
        finally:
            for exporter in exporters:
                exporter.close()


if __name__ == "__main__":
    run_rank(Role.PREFILL, serve)
