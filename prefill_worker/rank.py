"""Rank 1 or up of a tensor-parallel prefill worker: its pool is exported, and rank 0 says what of it is on offer."""

from engine.kv_pool import KVPool
from engine.rank_process import RankProcess, run_rank
from kv_transfer.exported_pool import ExportedPool
from kv_transfer.local import start_driver
from kv_transfer.self_test import self_test
from messages.worker_status import Role


def serve(rank: RankProcess) -> None:
    """Compute until rank 0 closes."""
    loaded, settings = rank.loaded, rank.settings.kv_transfer
    driver, place = start_driver(settings, loaded.model.device)
    self_test(driver)
    with ExportedPool(
        settings,
        driver,
        place,
        worker_id=f"{rank.worker_id}-{rank.shard.rank}",
        num_blocks=rank.num_blocks,
        block_bytes=loaded.layout.block_bytes,
        layout_hash=loaded.layout.hash(loaded.model.model_hash),
        max_offers=settings.max_offers,
    ) as exported:
        rank.serve(KVPool.over(loaded.layout, exported.sender.buffer), exported.export)


if __name__ == "__main__":
    run_rank(Role.PREFILL, serve)
