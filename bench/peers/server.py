"""What a comparison has to know of a server: how it is started, how it is asked, which row it competes in.

Pure data; who starts it is `bench/compare/run_server.py`. It must not know how a server came onto this machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Weights = Literal["16-bit", "4-bit"]

PORT = "{port}"  # in a command: replaced by the port that the server is to listen on
CACHES = "{caches}"  # in `cache_environment`: replaced by a directory that the first start finds empty


@dataclass(frozen=True, slots=True)
class Server:
    """One column of the table."""

    name: str
    weights: Weights
    command: tuple[str, ...]
    style: str  # a bench.options.StyleName
    environment: Mapping[str, str] = field(default_factory=dict)
    model_name: str = ""  # OpenAI style: what requests call it
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # OpenAI style
    cache_environment: Mapping[str, str] = field(default_factory=dict)  # empty: every start is as the first
    versions: Mapping[str, str] = field(default_factory=dict)
    is_peer: bool = True
