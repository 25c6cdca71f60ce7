"""A pool that other workers can pull from: its memory, the ways that lead to it, and what is said of both.

Set up alike in whatever process owns one: a worker of either role, or a rank of a worker that is cut. Knows transports;
knows no model and no block table.
"""

from collections.abc import Sequence
from types import TracebackType

import msgspec

from kv_transfer.checksum import BlockSummer
from kv_transfer.driver import Driver
from kv_transfer.network import start_exporters
from kv_transfer.selection import Place
from kv_transfer.sender import KVSender
from kv_transfer.transport import Exporter
from messages.kv_transfer import PoolExport
from settings.kv import TransferSettings


class ExportedPool:
    """`sender` makes the offers and has the memory. Use as a context manager, or `close()`."""

    def __init__(
        self,
        settings: TransferSettings,
        driver: Driver,
        place: Place,
        *,
        worker_id: str,
        num_blocks: int,
        block_bytes: int,
        layout_hash: str,
        max_offers: int,
        summer: BlockSummer | None = None,
        reach_hosts: bool = True,
        first_blocks: int | None = None,
    ) -> None:
        """`first_blocks`: see `KVSender.create`. `reach_hosts`: whether other hosts can pull too, where
        `settings` have a network.

        Raises DeviceError.
        """
        self.sender = KVSender.create(
            worker_id, num_blocks, block_bytes, layout_hash, max_offers, driver, summer, first_blocks
        )
        self._exporters: list[Exporter] = []
        try:
            if reach_hosts:
                self._exporters += start_exporters(settings, self.sender, driver)
            addresses = {exporter.kind: exporter.address for exporter in self._exporters}
            self.export = self.sender.export(place.host_id, place.device, addresses)
        except BaseException:
            self.close()
            raise

    def lead(self, others: Sequence[PoolExport]) -> None:
        """Of a rank 0: from here on, what is offered stands in the other ranks' pools too. Raises KVTransferFailed."""
        for other in others:
            self.sender.follow(other)
        self.export = msgspec.structs.replace(self.export, ranks=tuple(others))

    def close(self) -> None:
        """No longer reachable."""
        for exporter in self._exporters:
            exporter.close()
        self.sender.close()

    def __enter__(self) -> "ExportedPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
