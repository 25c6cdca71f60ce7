"""The Lua scripts in broker/lua/, run by their hash. This file knows how a script is run, not what any of them does.

Each script is one atomic step of the protocol in docs/lifecycle.md. Redis forgets scripts when it restarts, so a hash
it does not know is answered by sending the source along. A line `-- include NAME` stands for the text of NAME.lua.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

Argument = str | bytes | int

_FOLDER = Path(__file__).parent / "lua"
_INCLUDE = re.compile(r"^-- include (\w+)$", re.MULTILINE)


def _source(name: str) -> str:
    text = (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda line: _source(line[1]), text)


class Script:
    """One script. Running it costs one round trip, two when the server has not seen it yet."""

    def __init__(self, name: str) -> None:
        self.source = _source(name)
        self.sha1 = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: Redis, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Any:
        """The script's answer. Raises redis errors."""
        try:
            return await client.evalsha(self.sha1, len(keys), *keys, *arguments)
        except NoScriptError:
            return await client.eval(self.source, len(keys), *keys, *arguments)

    def run_sync(self, client: SyncRedis, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """`run` for the heartbeat's thread."""
        try:
            return client.evalsha(self.sha1, len(keys), *keys, *arguments)
        except NoScriptError:
            return client.eval(self.source, len(keys), *keys, *arguments)


class Call(NamedTuple):
    """A script and what it is given."""

    script: Script
    keys: Sequence[Argument]
    arguments: Sequence[Argument]


async def run_in_order(client: Redis, calls: Sequence[Call]) -> list[Any]:
    """Their answers. One after the other on one connection, in one round trip, two when the server has not seen them
    all; others' commands may come between. Each has to bear that it is repeated. Raises redis errors.
    """
    pipeline = client.pipeline(transaction=False)
    for script, keys, arguments in calls:
        pipeline.evalsha(script.sha1, len(keys), *keys, *arguments)
    answers = await pipeline.execute(raise_on_error=False)
    if any(isinstance(answer, NoScriptError) for answer in answers):
        for script, keys, arguments in calls:
            pipeline.eval(script.source, len(keys), *keys, *arguments)
        answers = await pipeline.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


@cache
def load_script(name: str) -> Script:
    """The script in broker/lua/`name`.lua, read once per process."""
    return Script(name)
