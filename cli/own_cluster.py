"""A `pdq serve` of this user on this machine, as its state directory tells: where its Redis and its API listen.

So that `pdq status` needs no address where there is one such cluster. Knows directories and sockets, and asks Redis
nothing.
"""

import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cli.embedded_redis import redis_url, socket_path

STATE_PREFIX = "pdq-"
_API_URL_NAME = "api_url"
_CONNECT_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True)
class OwnCluster:
    """Running, or so it seems."""

    redis_url: str
    api_url: str


def note_api_url(state_dir: Path, url: str) -> None:
    """Let others of this user find the API."""
    (state_dir / _API_URL_NAME).write_text(url, encoding="utf-8")


def find_own_clusters() -> list[OwnCluster]:
    """Those whose Redis can be connected to, in the order of their directories' names."""
    found = []
    for state_dir in sorted(
        path.parent for folder in folders() for path in folder.glob(f"{STATE_PREFIX}*/{_API_URL_NAME}")
    ):
        try:
            # Whoever else may write to that folder is not to say which Redis we believe.
            if state_dir.stat().st_uid == os.getuid() and _listens(socket_path(state_dir)):
                url = (state_dir / _API_URL_NAME).read_text(encoding="utf-8").strip()
                found.append(OwnCluster(redis_url(state_dir), url))
        except OSError:
            continue  # it has ended meanwhile
    return found


def folders() -> set[Path]:
    """Where state directories are made: a temporary folder whose name is too long for a socket gives way to /tmp."""
    return {Path(tempfile.gettempdir()), Path("/tmp")}


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
