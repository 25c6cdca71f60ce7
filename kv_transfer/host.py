"""Which host this is, as far as shared memory goes, and by which address others reach it. Knows files of Linux."""

import os
import socket
from pathlib import Path


def host_id() -> str:
    """Equal in exactly the processes that see the same /dev/shm: this boot of this machine, and that mount."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat('/dev/shm').st_dev}"


def routable_address() -> str:
    """This host's address on the way to other networks; 127.0.0.1 where no way leads there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: connecting a datagram socket only looks up the route. The address is nobody's (RFC 5737).
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address
