"""How long a step leaves the cores to others, and that it does so only while they want them."""

import asyncio
import ctypes
import time

import pytest

from decode_worker import courtesy
from decode_worker.courtesy import Courtesy, rest_s
from settings.workers import DecodeSettings

SETTINGS = DecodeSettings(rest_share=1.0, rest_until_ms=40, rest_for_burst_ms=100)


@pytest.mark.parametrize(
    ("step_s", "num_running", "num_prompts", "wanted_s"),
    [
        pytest.param(0.010, 4, 0, 0.010, id="a share of the step"),
        pytest.param(0.010, 4, 3, 0.010, id="a share while the streams are more"),
        pytest.param(0.030, 4, 3, 0.010, id="within the bound"),
        pytest.param(0.050, 4, 3, 0.0, id="a step that is longer than the bound"),
        pytest.param(0.010, 4, 4, 0.090, id="as many prompts as streams"),
        pytest.param(0.120, 1, 6, 0.0, id="a step that is longer than the bound for bursts"),
    ],
)
def test_a_share_of_the_step_or_all_that_a_burst_may_take(
    step_s: float, num_running: int, num_prompts: int, wanted_s: float
) -> None:
    assert rest_s(step_s, num_running, num_prompts, SETTINGS) == pytest.approx(wanted_s)


LIBRARY = ctypes.CDLL(None)  # which the ledger below does not ask


class Ledger:
    """In place of the library's: wanted for so many looks."""

    def __init__(self, looks: float) -> None:
        self.looks, self.left, self.prompts = looks, 0, 0

    def are_wanted(self, library: ctypes.CDLL) -> bool:
        self.looks -= 1
        return self.looks >= 0

    def prompts_of_others(self, library: ctypes.CDLL) -> int:
        return self.prompts

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
    asyncio.run(one.rest(0.05, 2))
    assert time.perf_counter() - began >= 0.05 and ledger.left == 1
    ledger.looks = 1
    began = time.perf_counter()
    asyncio.run(one.rest(0.4, 2))
    assert time.perf_counter() - began < 0.3 and ledger.left == 2


def test_it_rests_longer_for_a_burst_and_only_as_long_as_that_lasts(ledger: Ledger) -> None:
    one = Courtesy(SETTINGS, LIBRARY)
    ledger.prompts = 2
    began = time.perf_counter()
    asyncio.run(one.rest(0.01, 2))
    assert time.perf_counter() - began >= 0.09

    async def burst_ends() -> float:
        resting = asyncio.create_task(one.rest(0.01, 2))
        await asyncio.sleep(0.03)
        ledger.prompts, began = 1, time.perf_counter()
        await resting
        return time.perf_counter() - began

    assert asyncio.run(burst_ends()) < 0.05


def test_nobody_rests_for_nobody(ledger: Ledger) -> None:
    ledger.looks = 0
    assert not Courtesy(DecodeSettings(), LIBRARY).wants_rest()
    ledger.looks = float("inf")
    assert not Courtesy(DecodeSettings(rest_share=0), LIBRARY).wants_rest()
    assert not Courtesy(DecodeSettings(), None).wants_rest()
