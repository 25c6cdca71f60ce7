"""A prefill worker's side of the transfer in a process of its own: one JSON command per line in, one answer out."""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch

from kv_transfer.nixl_agent import NixlAgent
from kv_transfer.nixl_transport import NixlExporter
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver


def contents(seed: int, num_blocks: int, block_bytes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_blocks, block_bytes), dtype=torch.uint8, generator=generator)


def main() -> None:
    torch.set_num_threads(1)
    directory, worker_id, num_blocks, block_bytes, layout_hash, max_offers, seed = json.loads(sys.argv[1])
    sender = KVSender.create(
        worker_id, num_blocks, block_bytes, layout_hash, max_offers, ShmDriver(Path(directory)) if directory else None
    )
    sender.buffer.copy_(contents(seed, num_blocks, block_bytes).flatten())
    answer({"pool": sender.pool})
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        if command == "offer":
            answer(msgspec.to_builtins(sender.offer(*arguments)))
        elif command == "withdraw":
            answer(sender.withdraw(*arguments))
        elif command == "export":
            agent = NixlAgent(worker_id)
            exporter = NixlExporter(agent, *sender.head, sender.buffer, lambda: sender.num_offers > 0)
            (host_id,) = arguments
            export = sender.export(host_id, addresses={exporter.kind: exporter.address})
            answer(msgspec.to_builtins(export))
        elif command == "overwrite":
            sender.buffer.fill_(arguments[0])
            answer(True)
        else:
            break
    sender.close()


def answer(reply: Any) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
