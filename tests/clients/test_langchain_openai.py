"""langchain-openai, as an application uses it; the program runs in the client's own environment."""

import subprocess
from pathlib import Path

import httpx
import pytest

from tests.clients.environment import client_program, needs_client
from tests.end_to_end.cluster import Cluster

PROGRAM = Path(__file__).parent / "programs" / "langchain_chat.py"


@pytest.mark.clients
@needs_client("langchain-openai")
def test_chats_structured_output_and_tools(demo: Cluster) -> None:
    (model,) = httpx.get(demo.url + "/v1/models").json()["data"]
    subprocess.run(
        [client_program("langchain-openai", "python"), PROGRAM, demo.url, model["id"]], check=True, timeout=100
    )
