"""What /v1/files and /v1/batches accept and refuse, without anybody who runs them."""

import tempfile
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
from starlette.formparsers import MultiPartParser

from settings.batch import BatchSettings
from settings.loading import Settings
from tests.api.fake_cluster import fake_cluster, run

MAX_FILE_BYTES = 200_000


@pytest.fixture
def bounded(settings: Settings, tmp_path: Path) -> Settings:
    limits = BatchSettings(
        store=str(tmp_path / "files"), max_file_bytes=MAX_FILE_BYTES, max_files=3, max_open=2, max_window_s=3600
    )
    return settings.model_copy(update={"batch": limits})


async def upload(
    client: httpx.AsyncClient, content: bytes = b"{}\n", more: dict[str, str] | None = None
) -> httpx.Response:
    fields = {"purpose": "batch"} | (more or {})
    return await client.post("/v1/files", data=fields, files={"file": ("a.jsonl", content)})


def test_uploads_are_bounded_and_checked(bounded: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(bounded, takes_jobs=False) as cluster:
            client = cluster.client

            async def status(**changes: Any) -> int:
                sent: dict[str, Any] = {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", b"{}\n")}} | changes
                return (await client.post("/v1/files", **sent)).status_code

            assert await status(files={"file": ("a.jsonl", b"x" * (MAX_FILE_BYTES + 1))}) == 413
            assert await status(files={"file": ("a.jsonl", b"x" * (MAX_FILE_BYTES * 2))}) == 413
            assert await status(data={"purpose": "fine-tune"}) == 400
            assert await status(files={"other": ("a.jsonl", b"")}) == 400
            assert await status(files={"file": (None, b"no file")}) == 400
            assert (await client.post("/v1/files", json={})).status_code == 400
            broken = {"content-type": "multipart/form-data"}
            assert (await client.post("/v1/files", content=b"--x", headers=broken)).status_code == 400
            assert (await upload(client, more={"expires_after[anchor]": "created_at"})).status_code == 400
            assert cluster.services.store.names() == []
            kept = (await upload(client, b"x" * MAX_FILE_BYTES)).json()
            assert kept["bytes"] == MAX_FILE_BYTES
            assert kept["expires_at"] - kept["created_at"] == bounded.batch.keep_s
            until = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
            short = (await upload(client, more=until)).json()
            assert short["expires_at"] - short["created_at"] == 3600
            await upload(client)
            assert (await upload(client)).status_code == 409  # a fourth file
            await client.delete(f"/v1/files/{kept['id']}")
            assert kept["id"] not in cluster.services.store.names()
            assert (await upload(client)).status_code == 200

    run(main())


def test_a_file_that_there_is_no_room_for_leaves_nothing(bounded: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with fake_cluster(bounded, takes_jobs=False) as cluster:
            client, store = cluster.client, cluster.services.store
            create = store.create

            def create_on_a_full_disk(name: str) -> IO[bytes]:
                create(name).close()
                return open("/dev/full", "wb")

            with monkeypatch.context() as patched:
                patched.setattr(store, "create", create_on_a_full_disk)
                answer = await upload(client, b"x" * MAX_FILE_BYTES)
            assert (answer.status_code, answer.json()["error"]["message"]) == (
                507,
                "the file cannot be kept: No space left on device",
            )
            with monkeypatch.context() as patched:
                patched.setattr(tempfile, "tempdir", "/nowhere")
                patched.setattr(MultiPartParser, "spool_max_size", 1000)
                answer = await upload(client, b"x" * MAX_FILE_BYTES)
            assert answer.status_code == 503 and "Retry-After" in answer.headers
            assert store.names() == [] and (await client.get("/v1/files")).json()["data"] == []
            assert (await upload(client)).status_code == 200

    run(main())


def test_only_so_many_files_come_at_once(bounded: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(bounded, takes_jobs=False) as cluster:
            places = cluster.services.uploads
            for _ in range(bounded.batch.uploads_at_once):
                await places.acquire()
            answer = await upload(cluster.client)
            assert answer.status_code == 429 and answer.headers["Retry-After"] == "1"
            places.release()
            for _ in range(2):
                assert (await upload(cluster.client)).status_code == 200
            assert not places.locked(), "a place is given back"

    run(main())


def test_lists_go_page_by_page(bounded: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(bounded, takes_jobs=False) as cluster:
            ids = [(await upload(cluster.client)).json()["id"] for _ in range(3)]
            first = (await cluster.client.get("/v1/files?limit=2&order=asc")).json()
            rest = (await cluster.client.get(f"/v1/files?limit=2&order=asc&after={first['last_id']}")).json()
            assert sorted(each["id"] for page in (first, rest) for each in page["data"]) == sorted(ids)
            assert (first["has_more"], rest["has_more"]) == (True, False)
            for query in ("limit=0", "limit=x", "order=up", "after=nobody"):
                assert (await cluster.client.get(f"/v1/files?{query}")).status_code == 400, query
            assert (await cluster.client.get("/v1/batches?after=nobody")).status_code == 400

    run(main())


def test_a_batch_is_checked_and_bounded_before_it_begins(bounded: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(bounded, takes_jobs=False) as cluster:
            client = cluster.client
            file_id = (await upload(client)).json()["id"]
            asked = {"input_file_id": file_id, "endpoint": "/generate", "completion_window": "1h"}
            for field, value, status in [
                ("input_file_id", "file-x", 404),
                ("input_file_id", None, 400),
                ("endpoint", "/v1/embeddings", 400),
                ("completion_window", "2h", 400),
                ("completion_window", "0s", 400),
                ("completion_window", 24, 400),
                ("metadata", {"a": 1}, 400),
                ("metadata", {str(number): "" for number in range(17)}, 400),
                ("webhook_url", "http://169.254.169.254/", 400),
            ]:
                answer = await client.post("/v1/batches", json=asked | {field: value})
                assert answer.status_code == status, (field, value, answer.text)
            made = [(await client.post("/v1/batches", json=asked)).json() for _ in range(2)]
            assert made[0]["status"] == "validating" and made[0]["expires_at"] - made[0]["created_at"] == 3600
            assert (await client.post("/v1/batches", json=asked)).status_code == 409  # a third open one
            assert (await client.delete(f"/v1/files/{file_id}")).status_code == 409
            cancelled = (await client.post(f"/v1/batches/{made[0]['id']}/cancel")).json()
            assert cancelled["status"] == "cancelling" and cancelled["cancelling_at"]
            again = (await client.post(f"/v1/batches/{made[0]['id']}/cancel")).json()
            assert again == cancelled
            page = (await client.get("/v1/batches?limit=1")).json()
            assert page["has_more"] and len(page["data"]) == 1
            assert (await client.get("/v1/batches/batch_x")).json()["error"]["param"] == "id"

    run(main())
