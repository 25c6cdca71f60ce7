"""The transports between hosts, started as the settings say. Knows which there are; each is a file of its own."""

from collections.abc import Sequence

from kv_transfer.driver import Driver
from kv_transfer.sender import KVSender
from kv_transfer.transport import Exporter, Puller
from settings import TransferSettings


def start_exporters(settings: TransferSettings, sender: KVSender) -> list[Exporter]:
    """Make the sender's pool reachable from other hosts. Raises DeviceError."""
    if settings.network == "none":
        return []
    from kv_transfer.nixl_agent import NixlAgent  # two seconds to load, for who wants it
    from kv_transfer.nixl_transport import NixlExporter

    return [NixlExporter(NixlAgent(sender.worker_id), *sender.head, sender.buffer, lambda: sender.num_offers > 0)]


def start_pullers(
    settings: TransferSettings, worker_id: str, layout_hash: str, block_bytes: int, driver: Driver
) -> Sequence[Puller]:
    """What pulls from other hosts into memory of `driver`'s kind. Raises DeviceError."""
    if settings.network == "none":
        return []
    from kv_transfer.nixl_agent import NixlAgent
    from kv_transfer.nixl_transport import NixlPuller

    return [
        NixlPuller(
            NixlAgent(worker_id),
            layout_hash,
            block_bytes,
            driver.copy_within,
            device=driver.device_of_memory,
            staging_bytes=settings.staging_bytes,
            timeout_s=settings.timeout_s,
        )
    ]
