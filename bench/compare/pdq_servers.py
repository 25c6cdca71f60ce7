"""pdq as columns of the table: `pdq serve` with one worker of each role, once per variant of its settings.

Another variant is one more line. It must not know what a setting does.
"""

import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers.server import CACHES, PORT, Server, Weights


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings to measure pdq with."""

    name: str
    weights: Weights
    environment: Mapping[str, str] = field(default_factory=dict)


VARIANTS = (
    Variant("pdq", "16-bit"),
    Variant("pdq int4", "4-bit", {"PDQ_MODEL__WEIGHTS": "int4"}),
)


def pdq_servers(model_dir: Path) -> list[Server]:
    """The variants. Its first start compiles the kernels of a CPU."""
    command = (sys.executable, "-m", "cli", "serve", "--model", str(model_dir), "--port", PORT)
    return [
        Server(
            name=variant.name,
            weights=variant.weights,
            command=command,
            style="lightllm",
            environment=variant.environment,
            cache_environment={"PDQ_MODEL__CACHE_DIR": CACHES},
            versions={"pdq": importlib.metadata.version("pdq"), "torch": importlib.metadata.version("torch")},
            is_peer=False,
        )
        for variant in VARIANTS
    ]
