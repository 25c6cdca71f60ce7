"""What the owners of handles say of their pools: asked once, checked, and remembered.

Knows the registry and the seal; does not know what is pulled.
"""

from broker.client import Broker
from kv_transfer.seal import NotAuthentic, Seal
from messages.kv_transfer import KVHandle, PoolExport
from telemetry import get_logger

log = get_logger()

MAX_EXPORTS = 1024  # owners that are remembered


class Exports:
    """One per worker."""

    def __init__(self, broker: Broker, seal: Seal) -> None:
        self._broker, self._seal = broker, seal
        self._known: dict[tuple[str, int], PoolExport] = {}  # by pool and epoch

    async def find(self, handle: KVHandle) -> PoolExport | None:
        """What the handle's owner says of its pool; asked once, since it never changes. None when it is gone."""
        key = (handle.pool, handle.pool_epoch)
        if key not in self._known:
            status = await self._broker.registry.find(handle.worker_id)
            if status is None or status.export is None:
                return None
            try:
                self._seal.check_export(status.export)
            except NotAuthentic as error:
                log.warning("kv_export_refused", owner=handle.worker_id, reason=str(error))
                return None
            self._known[key] = status.export
            if len(self._known) > MAX_EXPORTS:
                del self._known[next(iter(self._known))]
        return self._known[key]
