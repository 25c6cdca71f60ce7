"""A prefill worker's side of the transfer in a process of its own: one JSON command per line in, one answer out."""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch

from kv_transfer.host_copy import copy_on_host
from kv_transfer.nixl_agent import NixlAgent
from kv_transfer.nixl_transport import NixlExporter
from kv_transfer.pair_exporter import PairExporter
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver
from settings.observability import LogSettings
from telemetry import configure_logging


def contents(seed: int, num_blocks: int, block_bytes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_blocks, block_bytes), dtype=torch.uint8, generator=generator)


def main() -> None:
    torch.set_num_threads(1)
    configure_logging(LogSettings(level="error"))  # stdout is for the answers
    directory, worker_id, num_blocks, block_bytes, layout_hash, max_offers, seed = json.loads(sys.argv[1])
    sender = KVSender.create(
        worker_id, num_blocks, block_bytes, layout_hash, max_offers, ShmDriver(Path(directory)) if directory else None
    )
    sender.buffer.copy_(contents(seed, num_blocks, block_bytes).flatten())
    exporter: NixlExporter | PairExporter | None = None
    answer({"pool": sender.pool})
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        if command == "offer":
            answer(msgspec.to_builtins(sender.offer(*arguments)))
        elif command == "withdraw":
            answer(sender.withdraw(*arguments))
        elif command == "export":
            host_id, kind, timeout_s = arguments
            exporter = start_exporter(kind, timeout_s, sender)
            export = sender.export(host_id, addresses={exporter.kind: exporter.address})
            answer(msgspec.to_builtins(export))
        elif command == "pairs":
            assert isinstance(exporter, PairExporter)
            answer(exporter.num_pairs)
        elif command == "overwrite":
            sender.buffer.fill_(arguments[0])
            answer(True)
        else:
            break
    if exporter is not None:
        exporter.close()
    sender.close()


def start_exporter(kind: str, timeout_s: float, sender: KVSender) -> NixlExporter | PairExporter:
    if kind == "nixl":
        agent = NixlAgent(sender.worker_id)
        return NixlExporter(agent, *sender.head, sender.buffer, sender.has_offers)
    return PairExporter("gloo", sender.head[0], sender.buffer, copy_on_host, host="127.0.0.1", timeout_s=timeout_s)


def answer(reply: Any) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
