"""Which peers there are, and where each is installed. A new peer is one more file and one more line here."""

from pathlib import Path
from typing import Protocol

from bench.peers import llama_cpp, openvino, vllm
from bench.peers.server import Server
from bench.peers.workshop import PeerFailed, Report, Workshop
from settings.loading import load_settings


class Peer(Protocol):
    """What the module of a peer holds."""

    @property
    def NAME(self) -> str:
        """Its directory, and what `python -m bench.peers install` calls it."""

    @property
    def RECIPE(self) -> tuple[str, ...]:
        """What is installed, with versions; another recipe is to be installed anew."""

    def install(self, workshop: Workshop) -> None:
        """Fetch and build it. Raises PeerFailed."""

    def servers(self, workshop: Workshop, model_dir: Path, report: Report) -> list[Server]:
        """The ways it is measured, with its own form of the model, made the first time. Raises PeerFailed."""


PEERS: dict[str, Peer] = {peer.NAME: peer for peer in (vllm, llama_cpp, openvino)}


def bench_cache() -> Path:
    """Where everything of the bench is kept: PDQ_MODEL__CACHE_DIR/bench."""
    return load_settings().model.cache_dir.expanduser() / "bench"


def workshop_of(name: str, report: Report) -> Workshop:
    """Its directory, which need not be there."""
    return Workshop(bench_cache() / "peers" / name, report)


def is_installed(name: str) -> bool:
    """Whether this very recipe of it is."""
    return workshop_of(name, lambda line: None).is_stamped(PEERS[name].RECIPE)


def install(name: str, report: Report) -> None:
    """Install it, over what is there. Raises PeerFailed."""
    peer, workshop = PEERS[name], workshop_of(name, report)
    peer.install(workshop)
    workshop.stamp(peer.RECIPE)
    workshop.say("installed")


def servers_of(name: str, model_dir: Path, report: Report) -> list[Server]:
    """Its servers. Raises PeerFailed when it is not installed."""
    if not is_installed(name):
        raise PeerFailed(f"{name} is not installed: python -m bench.peers install {name}")
    return PEERS[name].servers(workshop_of(name, report), model_dir, report)
