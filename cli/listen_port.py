"""Whether the port of the API can be had, asked before anything is started. Knows sockets."""

import errno
import socket

from errors import ConfigError


def reserve_port(host: str, port: int) -> int:
    """`port`, or a free one for 0, on which `host` can be listened on now. Raises ConfigError with what to do."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server will do it: connections of an earlier one that are still closing do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
            bound: int = probe.getsockname()[1]
            return bound
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is in use: end what listens there, or choose another with --port "
                f"(`make serve PORT={port + 1 if port < 65535 else port - 1}`) or PDQ_API__PORT"
            ) from None
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
