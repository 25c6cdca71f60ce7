"""A request has to come within a time: its head, and then its body. Else a few clients that send a byte now and then
would hold their connections for ever; uvicorn bounds only the pause between two requests.

Knows uvicorn's HTTP protocol and h11's states; knows no route.
"""

import asyncio
from typing import Any

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

_ARRIVING = (h11.IDLE, h11.SEND_BODY)  # the client's part is not whole
_MESSAGE = "the request did not come in time"


class TimedProtocol(H11Protocol):
    """uvicorn's, with a clock that runs while a request is on its way: 408, then the connection is closed."""

    def __init__(self, *args: Any, arrival_timeout_s: float, **more: Any) -> None:
        super().__init__(*args, **more)
        self._arrival_timeout_s = arrival_timeout_s
        self._clock: asyncio.TimerHandle | None = None
        self._timed_cycle: RequestResponseCycle | None = None  # the clock began anew with this one

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._follow()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def _follow(self) -> None:
        is_arriving = not self.transport.is_closing() and self.conn.their_state in _ARRIVING
        if not is_arriving or self.cycle is not self._timed_cycle:
            self._stop_clock()
        self._timed_cycle = self.cycle
        if is_arriving and self._clock is None:
            self._clock = self.loop.call_later(self._arrival_timeout_s, self._on_timeout)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _on_timeout(self) -> None:
        self._clock = None
        if self.transport.is_closing():
            return
        is_body_late = self.cycle is not None and not self.cycle.response_complete
        is_head_late = bool(self.conn.trailing_data[0])  # else it has sent nothing, and needs no answer
        if is_body_late:
            self.cycle.disconnected = True  # whatever the application says is dropped from now on
            self.cycle.message_event.set()
        if (is_body_late or is_head_late) and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse()
        self.transport.close()

    def _refuse(self) -> None:
        body = orjson.dumps({"message": _MESSAGE})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (h11.Response(status_code=408, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            data = self.conn.send(event)
            if data:
                self.transport.write(data)
