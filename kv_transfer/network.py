"""The transports between hosts, started as the settings say. Knows which there are; each is a file of its own."""

from collections.abc import Callable, Sequence

import torch

from kv_transfer.checksum import BlockSummer
from kv_transfer.copy_runs import BlockCut
from kv_transfer.driver import Driver
from kv_transfer.host import routable_address
from kv_transfer.pair_exporter import PairExporter
from kv_transfer.pair_group import backend_for
from kv_transfer.pair_puller import PairPuller
from kv_transfer.sender import KVSender
from kv_transfer.transport import Exporter, Puller
from settings.kv import TransferSettings, TransportKind


def network_kind(settings: TransferSettings, device: torch.device) -> TransportKind | None:
    """The transport between hosts that a worker on this device starts."""
    if settings.network == "nccl":
        return backend_for(device)
    return None if settings.network == "none" else settings.network


def start_exporters(settings: TransferSettings, sender: KVSender, driver: Driver) -> list[Exporter]:
    """Make the sender's pool reachable from other hosts. Raises DeviceError."""
    if settings.network == "none":
        return []
    if settings.network == "nccl":
        return [
            PairExporter(
                backend_for(driver.device_of_memory),
                sender.head[0],
                sender.buffer,
                driver.copy_within,
                host=settings.address or routable_address(),
                staging_bytes=settings.staging_bytes,
                timeout_s=settings.timeout_s,
            )
        ]
    from kv_transfer.nixl_agent import NixlAgent  # two seconds to load, for who wants it
    from kv_transfer.nixl_transport import NixlExporter

    return [NixlExporter(NixlAgent(sender.worker_id), *sender.head, sender.buffer, sender.has_offers)]


def start_pullers(
    settings: TransferSettings, name: str, driver: Driver, summer: BlockSummer | None = None
) -> Callable[[str, BlockCut], Sequence[Puller]]:
    """What makes the pullers, by layout hash and cut, that fetch from other hosts into memory of `driver`'s.

    `name` is this process's alone. Raises DeviceError.
    """
    if settings.network == "none":
        return lambda layout_hash, cut: []
    if settings.network == "nccl":
        return lambda layout_hash, cut: [
            PairPuller(
                backend_for(driver.device_of_memory),
                cut,
                driver.copy_within,
                device=driver.device_of_memory,
                staging_bytes=settings.staging_bytes,
                timeout_s=settings.timeout_s,
                summer=summer,
            )
        ]
    from kv_transfer.nixl_agent import NixlAgent
    from kv_transfer.nixl_transport import NixlPuller

    agent = NixlAgent(name)
    return lambda layout_hash, cut: [
        NixlPuller(
            agent,
            layout_hash,
            cut,
            driver.copy_within,
            device=driver.device_of_memory,
            staging_bytes=settings.staging_bytes,
            timeout_s=settings.timeout_s,
            summer=summer,
        )
    ]
