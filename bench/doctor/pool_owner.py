"""`python -m bench.doctor.pool_owner DEVICE NUM_BLOCKS BLOCK_BYTES NETWORK`: a prefill worker's end of a transfer.

Allocates and fills a pool on the device as a worker does, offers every block, and says how to reach them; at the first
line on stdin it withdraws the offer and says so, at the end of stdin it ends.
"""

import sys

import msgspec
import torch

from kv_transfer.local import start_driver
from kv_transfer.network import start_exporters
from kv_transfer.sender import KVSender
from messages.kv_transfer import KVHandle, PoolExport
from settings.kv import TransferSettings

LAYOUT = "doctor"


class Offer(msgspec.Struct):
    """The first line that the owner says, as JSON."""

    export: PoolExport
    handle: KVHandle


def contents(num_blocks: int, block_bytes: int) -> torch.Tensor:
    """What the pool holds: uint8 [num_blocks, block_bytes], the same in every process."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (num_blocks, block_bytes), dtype=torch.uint8, generator=generator)


def scattered(num_blocks: int, seed: int) -> list[int]:
    """All blocks, no two neighbours in order but by chance."""
    return torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed)).tolist()


def main() -> None:
    """See the module."""
    device, num_blocks, block_bytes = torch.device(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    settings = TransferSettings.model_validate({"network": sys.argv[4]})
    driver, place = start_driver(settings, device)
    with KVSender.create("doctor-owner", num_blocks, block_bytes, LAYOUT, 1, driver) as sender:
        sender.buffer.copy_(contents(num_blocks, block_bytes).flatten())
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # an offer stands for blocks that are filled
        exporters = start_exporters(settings, sender, driver)
        export = sender.export(place.host_id, place.device, {one.kind: one.address for one in exporters})
        _say(Offer(export, sender.offer("doctor", scattered(num_blocks, 1), 1)))
        if sys.stdin.readline():
            _say(sender.withdraw("doctor"))
            sys.stdin.read()
        for exporter in exporters:
            exporter.close()


def _say(answer: object) -> None:
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
