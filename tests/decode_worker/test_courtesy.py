"""How long a step leaves the cores to others, and that it does so only while they want them."""

import asyncio
import ctypes
import time

import pytest

from decode_worker import courtesy
from decode_worker.courtesy import Courtesy, rest_s
from settings.workers import DecodeSettings


@pytest.mark.parametrize(
    ("step_s", "share", "until_s", "wanted_s"),
    [(0.010, 1.0, 0.040, 0.010), (0.010, 0.5, 0.040, 0.005), (0.030, 1.0, 0.040, 0.010), (0.050, 1.0, 0.040, 0.0)],
)
def test_a_share_of_the_step_within_the_bound(step_s: float, share: float, until_s: float, wanted_s: float) -> None:
    assert rest_s(step_s, share, until_s) == pytest.approx(wanted_s)


LIBRARY = ctypes.CDLL(None)  # which the ledger below does not ask


class Ledger:
    """In place of the library's: wanted for so many looks."""

    def __init__(self, looks: float) -> None:
        self.looks, self.left = looks, 0

    def are_wanted(self, library: ctypes.CDLL) -> bool:
        self.looks -= 1
        return self.looks >= 0

    def leave(self, library: ctypes.CDLL) -> None:
        self.left += 1


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    ledger = Ledger(looks=float("inf"))
    monkeypatch.setattr(courtesy, "cores", ledger)
    return ledger


def test_it_rests_as_long_as_the_cores_are_wanted_and_no_longer(ledger: Ledger) -> None:
    one = Courtesy(DecodeSettings(rest_share=1.0, rest_until_ms=1000), LIBRARY)
    assert one.wants_rest()
    began = time.perf_counter()
    asyncio.run(one.rest(0.05))
    assert time.perf_counter() - began >= 0.05 and ledger.left == 1
    ledger.looks = 1
    began = time.perf_counter()
    asyncio.run(one.rest(0.4))
    assert time.perf_counter() - began < 0.3 and ledger.left == 2


def test_nobody_rests_for_nobody(ledger: Ledger) -> None:
    ledger.looks = 0
    assert not Courtesy(DecodeSettings(), LIBRARY).wants_rest()
    ledger.looks = float("inf")
    assert not Courtesy(DecodeSettings(rest_share=0), LIBRARY).wants_rest()
    assert not Courtesy(DecodeSettings(), None).wants_rest()
