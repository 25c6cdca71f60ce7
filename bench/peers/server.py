"""What a comparison has to know of a server: how it is started, how it is asked, which row it competes in.

Pure data; who starts it is `bench/compare/run_server.py`. It must not know how a server came onto this machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Weights = Literal["16-bit", "4-bit"]
Style = Literal["lightllm", "openai"]  # the API it speaks

PORT = "{port}"  # in a command: replaced by the port that the server is to listen on
CACHES = "{caches}"  # in `cache_environment`: replaced by a directory that the first start finds empty


@dataclass(frozen=True, slots=True)
class Server:
    """One column of the table."""

    name: str
    weights: Weights
    command: tuple[str, ...]
    style: Style
    environment: Mapping[str, str] = field(default_factory=dict)
    model_name: str = ""  # OpenAI style: what requests call it
    cache_environment: Mapping[str, str] = field(default_factory=dict)  # empty: every start is as the first
    versions: Mapping[str, str] = field(default_factory=dict)
    is_peer: bool = True
