"""The signals that end `pdq serve`: the first asks, the second insists. Knows no child."""

import asyncio
import signal


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP (the terminal was closed) as two events."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()

    def listen(self) -> None:
        """From now on, on the running loop."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self.hear)

    def hear(self) -> None:
        """A signal came."""
        (self.insisted if self.asked.is_set() else self.asked).set()
