"""Work that is dropped, also when it does not hear at first."""

import asyncio

import pytest

from api.cancellation import end_tasks
from api.disconnect import ClientLeft, while_connected
from tests.api.fake_cluster import run


def test_a_lost_cancellation_is_repeated() -> None:
    async def deaf() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(deaf())
        await asyncio.sleep(0)
        await end_tasks([task])
        assert task.cancelled()

    run(main())


def test_work_ends_with_the_connection_and_cleans_up_first() -> None:
    async def main() -> None:
        left, cleaned = asyncio.Event(), []

        async def receive() -> dict[str, str]:
            await left.wait()
            return {"type": "http.disconnect"}

        async def work() -> int:
            try:
                left.set()
                await asyncio.sleep(60)
                return 1
            finally:
                await asyncio.sleep(0)
                cleaned.append(True)

        with pytest.raises(ClientLeft):
            await while_connected(receive, work())
        assert cleaned == [True]

    run(main())


def test_a_result_or_an_error_comes_through() -> None:
    async def main() -> None:
        async def receive() -> dict[str, str]:
            await asyncio.Event().wait()
            raise AssertionError

        async def result() -> int:
            return 7

        async def error() -> int:
            raise ValueError("x")

        assert await while_connected(receive, result()) == 7
        with pytest.raises(ValueError, match="x"):
            await while_connected(receive, error())
        assert len(asyncio.all_tasks()) == 1

    run(main())
