"""Where `make test-clients` has installed each client: an environment of its own, for they bring many packages."""

import os
from pathlib import Path

import pytest

CLIENTS = Path(os.environ.get("PDQ_TEST_CLIENTS", "~/.cache/pdq/clients")).expanduser()


def client_program(client: str, program: str) -> Path:
    """A program of the client's environment."""
    return CLIENTS / client / "bin" / program


def needs_client(client: str) -> pytest.MarkDecorator:
    """Skips a test whose client is not there."""
    is_there = client_program(client, "python").exists()
    return pytest.mark.skipif(not is_there, reason=f"make test-clients installs {client}")
