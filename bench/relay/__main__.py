"""`python -m bench.relay`: from the decode step to the SSE byte, without a model. The same as `pdq bench relay`."""

import typer

from bench.relay.cli import relay

if __name__ == "__main__":
    typer.run(relay)
