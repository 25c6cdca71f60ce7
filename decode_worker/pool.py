"""Where a decode worker's KV lies: in memory that others can pull from, if that can be had, else in its own."""

from engine.block_growth import first_blocks
from engine.kv_pool import KVPool
from engine.loading import LoadedModel
from errors import DeviceError
from kv_transfer.checksum import start_summer
from kv_transfer.exported_pool import ExportedPool
from kv_transfer.local import start_driver
from settings.loading import Settings
from telemetry import get_logger

log = get_logger()


def open_pool(settings: Settings, worker_id: str, loaded: LoadedModel) -> tuple[KVPool, ExportedPool | None]:
    """The pool, and its export where others can pull from it: in host memory, of a worker that is one process.

    GPUs prefill fast, and no GPU has shown recorded steps on exported memory; of a worker that is cut every rank would
    have to export its part. A worker for which shared memory has no room serves all the same. Raises DeviceError.
    """
    layout, num_blocks, device = loaded.layout, loaded.num_blocks, loaded.model.device
    driver, place = start_driver(settings.kv_transfer, device)
    is_way_allowed = settings.kv_transfer.require in (None, driver.kind)
    if settings.decode.export_pool and is_way_allowed and device.type == "cpu" and loaded.ranks is None:
        try:
            exported = ExportedPool(
                settings.kv_transfer,
                driver,
                place,
                worker_id=worker_id,
                num_blocks=num_blocks,
                block_bytes=layout.block_bytes,
                layout_hash=layout.hash(loaded.model.model_hash),
                max_offers=settings.decode.max_running,
                summer=start_summer(settings.kv_transfer, device),
                first_blocks=first_blocks(settings.kv, layout.block_bytes, num_blocks),
                reach_hosts=False,  # who pulls from a stopping worker is on its host, or computes again
            )
        except DeviceError as error:
            log.warning(
                "decode_pool_not_exported", reason=str(error), then="when it stops, its requests are prefilled again"
            )
        else:
            return KVPool.over(layout, exported.sender.buffer), exported
    return KVPool.allocate(layout, num_blocks, device), None
