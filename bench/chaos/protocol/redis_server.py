"""The Redis of a simulated cluster: fakeredis, whose Lua runs the scripts of broker/lua/, one command a step.

A link is one connection. What a client has sent lies on it until the server gets to it, and the answer until it is
delivered; either can be lost on the way. Blocking reads wait on the simulation's clock. Knows no key of ours.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import redis
from fakeredis import FakeServer
from fakeredis._socket import FakeSocket
from redis.exceptions import ConnectionError

from bench.chaos.protocol.clock import Clock

Command = list[bytes]
_BLOCKING = (b"XREAD", b"XREADGROUP")


class Link:
    """One connection of `owner`, a simulated process."""

    def __init__(self, server: "SimulatedRedis", owner: Any, name: str) -> None:
        self.server, self.owner, self.name = server, owner, name
        self.socket = FakeSocket(server.fake, 0, client_class=redis.Redis, client_info={"resp": 2})
        self.sent: deque[list[Command]] = deque()  # each a command, or a transaction
        self.answers: deque[Any] = deque()
        self.is_open = True
        self.reader: Callable[[Any], None] | None = None  # takes the next answer
        self.blocked_until_s: float | None = None  # its first command waits at the server
        self.renewing: frozenset[tuple[str, bytes]] = (
            frozenset()
        )  # what its sender worked on when it sent the last command
        self._seen: list[Any] = []

    def __str__(self) -> str:
        return self.name

    def send(self, commands: list[Command]) -> None:
        """On the wire; nobody has read it yet."""
        if not self.is_open:
            raise ConnectionError("the connection was lost")
        self.renewing = self.owner.renewing
        unit: list[Command] = []
        is_transaction = False
        for command in commands:
            unit.append(command)
            word = command[0].upper()
            is_transaction = word == b"MULTI" or (is_transaction and word != b"EXEC")
            if not is_transaction:
                self.sent.append(unit)
                unit = []

    @property
    def can_serve(self) -> bool:
        """Whether the server has something to do here."""
        if not self.sent:
            return False
        return self.blocked_until_s is None or self.blocked_until_s <= self.server.clock.now_s

    @property
    def can_deliver(self) -> bool:
        """Whether an answer is here and somebody waits for it."""
        return self.reader is not None and bool(self.answers)

    def deliver(self) -> None:
        """The reader gets its answer."""
        reader, self.reader = self.reader, None
        assert reader is not None
        reader(self.answers.popleft())

    def drop(self, error: Exception, *, forget: bool = False) -> None:
        """The connection is lost. What was sent and not served may be served all the same, unless `forget`."""
        if not self.is_open:
            return
        self.is_open = False
        self.server.links.remove(self)
        self.answers.clear()
        if self.reader is not None:
            self.answers.append(error)
        if self.blocked_until_s is not None:
            self.sent.popleft()  # a client that is gone waits for nothing
            self.blocked_until_s = None
        if forget:
            self.sent.clear()
        if self.sent:
            self.server.orphans.append(self)
        else:
            self.socket.close()

    def forget(self) -> None:
        """Nothing of what was sent arrives any more."""
        self.sent.clear()
        self.socket.close()


class SimulatedRedis:
    """`on_served(link, command, answer)` is called after every command."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.fake = FakeServer(version=(7,))
        self.links: list[Link] = []
        self.orphans: list[Link] = []  # their clients are gone, what they sent is not
        self.on_served: Callable[[Link, Command, Any], None] = lambda link, command, answer: None

    def open(self, owner: Any, name: str) -> Link:
        """A new connection."""
        link = Link(self, owner, name)
        self.links.append(link)
        return link

    def serve(self, link: Link) -> None:
        """Run the first of what the link has sent, whole transactions at once."""
        unit = link.sent[0]
        blocked_until_s, link.blocked_until_s = link.blocked_until_s, None
        for command in unit:
            if command[0].upper() in _BLOCKING and b"BLOCK" in command:
                at = command.index(b"BLOCK")
                if not self._run(link, [*command[:at], *command[at + 2 :]], may_wait=True):
                    if blocked_until_s is None:
                        blocked_until_s = self.clock.now_s + int(command[at + 1]) / 1000
                    if blocked_until_s > self.clock.now_s:
                        link.blocked_until_s = blocked_until_s
                        link._seen = self._last_ids(command)
                        return
                    link.answers.append(None)
            else:
                self._run(link, command)
        link.sent.popleft()
        if link in self.orphans and not link.sent:
            self.orphans.remove(link)
            link.socket.close()
        for other in list(self.links):
            if other.blocked_until_s is not None and self._last_ids(other.sent[0][0]) != other._seen:
                self.serve(other)  # as Redis does, before the next command

    def restart(self) -> None:
        """Every connection is lost, and what was sent; data stays; scripts and subscriptions are forgotten."""
        for link in list(self.links):
            link.drop(ConnectionError("Redis restarted"), forget=True)
        for link in self.orphans:
            link.forget()
        self.orphans.clear()
        self.fake.script_cache.clear()

    def _run(self, link: Link, command: Command, *, may_wait: bool = False) -> Any:
        socket = link.socket
        socket._process_command(list(command))
        answer = None
        for answer in self._read(socket):
            if answer or not may_wait:
                link.answers.append(answer)
        self.on_served(link, command, answer)
        for other in self.links:
            if other is not link and other.socket._pubsub:
                other.answers.extend(self._read(other.socket))
        return answer

    @staticmethod
    def _read(socket: Any) -> list[Any]:
        answers = []
        while not socket.responses.empty():
            answers.append(socket.responses.get_nowait())
        return answers

    # -- looking at the data without a command -----------------------------------------------------------------------

    def value(self, key: str | bytes) -> Any:
        """fakeredis' object under the key; None when there is none."""
        item = self.fake.dbs[0].get(key.encode() if isinstance(key, str) else key)
        return None if item is None else item.value

    def fields(self, key: str | bytes) -> dict[bytes, bytes]:
        """A hash; empty when there is none. Not to be changed."""
        value = self.value(key)
        return {} if value is None else value._values

    def entries(self, key: str | bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """A stream's (entry id, fields)."""
        value = self.value(key)
        if value is None:
            return []
        return [
            (entry_id.encode(), dict(zip(fields[::2], fields[1::2], strict=True)))
            for entry_id, fields in value._values_dict.items()
        ]

    def length(self, key: str | bytes) -> int:
        """Entries of a stream."""
        value = self.value(key)
        return 0 if value is None else len(value)

    def pending(self, queue: str, group: str) -> dict[Any, Any]:
        """What a group's consumers have, by entry id; empty when there is no group."""
        stream = self.value(queue)
        found = None if stream is None else stream.group_get(group.encode())
        return {} if found is None else found.pel

    def request_keys(self) -> list[bytes]:
        """Keys that belong to one request."""
        return [name for name in list(self.fake.dbs[0]) if b"}:{" in name]

    def expires_s(self, key: bytes) -> float | None:
        """When the key goes, in Unix time; None when it stays."""
        item = self.fake.dbs[0].get(key)
        return None if item is None else item.expireat

    def _last_ids(self, command: Command) -> list[Any]:
        names = command[[word.upper() for word in command].index(b"STREAMS") + 1 :]
        values = [self.value(name) for name in names[: len(names) // 2]]
        return [None if value is None else (id(value), value.last_id) for value in values]
