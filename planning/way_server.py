"""The server that the way is measured at: the one that is named, or a `pdq serve` that lives as long as it takes."""

import sys
from collections.abc import Callable

import msgspec

from bench import lightllm_style
from bench.compare.run_server import running
from bench.http_stream import resolve
from bench.load import Load
from bench.peers.server import PORT, Server
from bench.peers.workshop import PeerFailed
from bench.prompts import PromptSource, prompt_source
from errors import PdqError
from planning.costs import StepCosts
from planning.way import measure_way
from settings.loading import Settings

IDLE_TIMEOUT_S = 120.0
OWN = Server("pdq serve", "16-bit", (sys.executable, "-m", "cli", "serve", "--port", PORT), "lightllm", is_peer=False)


async def measured_way(
    costs: StepCosts, settings: Settings, url: str | None, report: Callable[[str], None]
) -> StepCosts:
    """`costs` with the way, as a server shows it. Raises PdqError when it does not start or answer, ConfigError."""
    prompts: PromptSource = prompt_source(None, 1000, 30000)
    if url is not None:
        load = Load(await resolve(url, lightllm_style.PATH), lightllm_style, prompts, IDLE_TIMEOUT_S)
        return msgspec.structs.replace(costs, way=await measure_way(costs, settings, load, report))
    report("starting pdq serve")
    try:
        async with running(OWN) as server:
            return msgspec.structs.replace(costs, way=await measure_way(costs, settings, server.load(prompts), report))
    except PeerFailed as error:
        raise PdqError(str(error)) from None
