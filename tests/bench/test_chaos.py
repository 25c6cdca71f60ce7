"""The short version of `make chaos`: processes really die, stop and crawl, and every stream is whole."""

import asyncio

import pytest

from bench.chaos.cancels import cancels
from bench.chaos.cluster import ChaosCluster
from bench.chaos.gates import Phase
from bench.chaos.matrix import Cell, Fault, Target, cells, matrix
from bench.chaos.storm import STEP_S, storm
from bench.chaos.story import Difference, Token, compare

pytestmark = pytest.mark.timeout(180)

# One cell per kind of thing that has to be noticed; `make chaos` runs all.
SOME_CELLS = [
    Cell(Target.PREFILL, Phase.PREFILLING, Fault.KILL),
    Cell(Target.PREFILL, Phase.OFFERED, Fault.KILL),
    Cell(Target.DECODE, Phase.PULLING, Fault.KILL),
    Cell(Target.DECODE, Phase.DECODING, Fault.STOP),
    Cell(Target.API, Phase.DECODING, Fault.KILL),
    Cell(Target.REDIS, Phase.DECODING, Fault.KILL),
    Cell(Target.CLIENT, Phase.PULLING, Fault.KILL),
    Cell(Target.CLIENT, Phase.DECODING, Fault.SLOW),
]


def test_a_storm_of_kills_the_matrix_and_the_cancels_lose_nothing() -> None:
    async def run() -> None:
        async with ChaosCluster(2, STEP_S) as cluster:
            stormed = await storm(cluster, num_streams=16, num_kills=6, seed=1, on_end=lambda: None)
            assert (stormed.failures, stormed.difference, stormed.kills.total()) == ([], Difference(), 6)
            assert stormed.num_reconnects > 0
            assert stormed.census is not None and stormed.census.is_clean
            await cluster.wait_well()
            results = await matrix([cluster], SOME_CELLS, lambda result: None)
            assert [str(result) for result in results if result.problem] == []
            await cluster.wait_well()
            cancelled = await cancels(cluster, num_cancels=60, num_afterwards=16, seed=1, on_end=lambda: None)
            assert (cancelled.dirty, cancelled.failures, cancelled.difference) == ([], [], Difference())

    asyncio.run(run())


def test_a_storm_of_kills_loses_nothing_where_decode_workers_prefill() -> None:
    async def run() -> None:
        async with ChaosCluster(2, STEP_S, {"PDQ_DECODE__LOCAL_PREFILL": "always"}) as cluster:
            stormed = await storm(cluster, num_streams=12, num_kills=4, seed=2, on_end=lambda: None)
            assert (stormed.failures, stormed.difference, stormed.kills.total()) == ([], Difference(), 4)
            assert stormed.census is not None and stormed.census.is_clean

    asyncio.run(run())


def test_the_matrix_is_whole() -> None:
    assert len(set(cells())) == len(Target) * len(Phase) * len(Fault) == 90
    assert set(SOME_CELLS) <= set(cells())


def _tokens(*ids: int) -> list[Token]:
    return [Token(str(place), place * 10, "", 0.0, None) for place in ids]


def test_differences_are_seen() -> None:
    truth = _tokens(0, 1, 2, 3)
    assert compare(truth, truth) == Difference()
    assert compare(_tokens(0, 1, 3), truth) == Difference(lost=1)
    assert compare(_tokens(0, 1, 1, 2, 3), truth) == Difference(duplicated=1)
    assert compare(_tokens(0, 2, 1, 3), truth) == Difference(reordered=1)
    assert compare([*_tokens(0, 1, 2), Token("3", 31, "", 0.0, None)], truth) == Difference(different=1)
    assert compare([*_tokens(0, 1, 2), Token("3", 30, "", 0.5, None)], truth) == Difference(different=1)
