"""The page's files over HTTP, and GET /cluster."""

import re
import time
from pathlib import Path

from api.cluster_body import digest_of
from api.key_file import Scope
from api.page_files import FOLDER, POLICY
from messages.worker_status import FinishedPhase, Role
from settings.loading import Settings
from tests.api.fake_cluster import fake_cluster, run, status, until
from tests.api.keys import KeyFile

PROMPT = {"inputs": "a secret question", "parameters": {}}


def test_every_file_that_the_page_names_is_there_and_nothing_else(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster:
            seen, left = set(), {"/"}
            while left:
                path = left.pop()
                seen.add(path)
                answer = await cluster.client.get(path)
                assert answer.status_code == 200, path
                assert answer.headers["content-security-policy"] == POLICY
                named = re.findall(r'(?:href|src)="(page/[\w.]+)"', answer.text)
                named += [f"page/{name}" for name in re.findall(r'from "\./([\w.]+)"', answer.text)]
                left |= {f"/{name}" for name in named} - seen
                assert "http://" not in answer.text.replace("http://www.w3.org/", "") and "https://" not in answer.text
            assert {path.removeprefix("/page/") for path in seen - {"/"}} == {
                path.name for path in FOLDER.iterdir() if path.name != "index.html"
            }
            for path in ("/page/none.js", "/page/../page_files.py", "/page/..%2fpage_files.py", "/page/"):
                assert (await cluster.client.get(path)).status_code == 404, path

    run(main())


def test_what_the_browser_has_is_not_sent_again_and_the_rest_is_zipped(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster:
            content = (FOLDER / "main.js").read_bytes()
            zipped = await cluster.client.get("/page/main.js", headers={"Accept-Encoding": "gzip, br"})
            assert zipped.headers["content-encoding"] == "gzip" and zipped.content == content
            assert int(zipped.headers["content-length"]) < len(content)
            plain = await cluster.client.get("/page/main.js", headers={"Accept-Encoding": "identity"})
            assert "content-encoding" not in plain.headers and plain.content == content
            assert plain.headers["etag"] != zipped.headers["etag"]
            again = {"Accept-Encoding": "gzip", "If-None-Match": zipped.headers["etag"]}
            answer = await cluster.client.get("/page/main.js", headers=again)
            assert answer.status_code == 304 and answer.content == b""
            head = await cluster.client.head("/")
            assert head.status_code == 200 and head.headers["content-type"] == "text/html; charset=utf-8"

    run(main())


def test_the_cluster_is_told_as_it_is(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script(" AI")
            await cluster.client.post("/generate", json=PROMPT, headers={"X-Request-Id": "mine"})
            ended_ms = int(time.time() * 1000)
            phase = FinishedPhase(1, "mine", 0, "decode", ended_ms, 12.5)
            await cluster.beat(status(Role.DECODE, phases=(phase,)))

            async def has_bar() -> bool:
                timelines = (await cluster.client.get("/cluster")).json()["timelines"]
                return bool(timelines and timelines[0]["bars"])

            await until(has_bar)
            answer = await cluster.client.get("/cluster")
            body = answer.json()
            assert answer.headers["cache-control"] == "no-store"
            (one,) = body["timelines"]
            assert one["request_id"] == "mine" and one["finish_reason"] == "length" and one["output_tokens"] > 0
            assert one["created_ms"] <= one["first_token_ms"] <= one["ended_ms"]
            assert one["bars"] == [
                {
                    "phase": "decode",
                    "choice": 0,
                    "worker_id": "decode-0",
                    "began_ms": ended_ms - 12.5,
                    "took_ms": 12.5,
                }
            ]
            assert {worker["role"] for worker in body["workers"]} == {"prefill", "decode"}
            assert {queue["queue"] for queue in body["queues"]} == {"prefill", "decode", "local"}
            lengths = {len(values) for name, values in body["curves"].items() if name != "every_s"}
            assert len(lengths) == 1
            await cluster.bury(Role.DECODE)

            async def is_told() -> bool:
                incidents = (await cluster.client.get("/cluster")).json()["incidents"]
                return bool(incidents) and incidents[0]["kind"] == "gone"

            await until(is_told)

    run(main())


def test_a_monitors_key_sees_no_ids_and_nobody_sees_text(settings: Settings, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path)
    for name, scope in (("alice", Scope.CLIENT), ("grafana", Scope.MONITOR), ("root", Scope.ADMIN)):
        keys.add(name, scope)

    async def main() -> None:
        async with fake_cluster(keys.settings(settings)) as cluster:
            cluster.script = cluster.length_script(" an answer")
            headers = keys.bearer("alice") | {"X-Request-Id": "alices-own"}
            await cluster.client.post("/generate", json=PROMPT, headers=headers)
            seen = {}
            for name in ("grafana", "root"):
                answer = await cluster.client.get("/cluster", headers=keys.bearer(name))
                assert "secret" not in answer.text and "answer" not in answer.text
                seen[name] = answer.json()["timelines"][0]["request_id"]
                assert ("alices-own" in answer.text) == (name == "root")
            assert seen == {"grafana": digest_of("alices-own"), "root": "alices-own"}

    run(main())
