"""Images in requests: read from both APIs' bodies, fetched where that is allowed, checked, and put into the prompt."""

import base64
import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from settings import ImageSettings, RedisSettings, Settings
from tests.api.fake_cluster import fake_cluster, run, settings_for
from tests.vision_models import picture, prompt_of, vision_model

WIDE, SMALL = picture(1, 50, 30), picture(2, 9, 9, kind="JPEG")
TEXT = "User:<image>what?"
PARAMETERS = {"max_new_tokens": 2}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def given(*images: bytes) -> dict[str, Any]:
    return {"images": [{"type": "base64", "data": encoded(data)} for data in images]}


def body(prompt: object, *images: bytes, **changes: Any) -> dict[str, Any]:
    return {"inputs": prompt, "parameters": PARAMETERS, "multimodal_params": given(*images)} | changes


@pytest.fixture
def vision_settings(redis_settings: RedisSettings) -> Settings:
    return settings_for(redis_settings, vision_model("idefics3"))


def changed(settings: Settings, **images: Any) -> Settings:
    return settings.model_copy(update={"images": ImageSettings(**images)})


class Pictures(http.server.BaseHTTPRequestHandler):
    """A web server of pictures."""

    seen: list[tuple[str, str]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["host"]))
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("location", "/small.jpg")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        if self.path == "/endless":
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                return
        self.wfile.write({"/small.jpg": SMALL, "/wide.png": WIDE}.get(self.path, b"<html>"))

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def picture_server() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_prompt_gets_the_tokens_of_its_images(vision_settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(vision_settings) as cluster:
            cluster.script = cluster.length_script("ab")
            ids, refs = prompt_of(vision_model("idefics3"), f"{TEXT}<image>", [WIDE, SMALL])
            answer = await cluster.client.post("/generate", json=body(f"{TEXT}<image>", WIDE, SMALL))
            assert answer.status_code == 200, answer.text
            (request,) = cluster.requests
            assert (request.prompt_token_ids, request.images) == (ids, refs)
            assert answer.json()["prompt_tokens"] == len(ids)
            assert [image.digest for image in refs] == [hashlib.sha256(data).digest() for data in (WIDE, SMALL)]
            counted = await cluster.client.post(
                "/tokens", json={"text": f"{TEXT}<image>", "multimodal_params": given(WIDE, SMALL)}
            )
            assert counted.json() == {"ntokens": len(ids)}
            # A prompt of ids, and one picture twice, whose bytes are there once.
            prompt = [260, 65, 260]
            stream = await cluster.client.post("/generate_stream", json=body(prompt, SMALL, SMALL))
            assert stream.status_code == 200 and stream.text.count("data:") == 2
            request = cluster.requests[-1]
            assert len(request.images) == 2 and len({image.digest for image in request.images}) == 1

    run(main())


def test_openais_parts_become_what_the_template_writes(vision_settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(vision_settings) as cluster:
            cluster.script = cluster.length_script("ab")
            url = f"data:image/png;base64,{encoded(WIDE)}"
            messages = [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
                        {"type": "text", "text": "what?"},
                    ],
                },
            ]
            answer = await cluster.client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2})
            assert answer.status_code == 200, answer.text
            text = "<|im_start|>System: Be brief.<end_of_utterance>\nUser:<image>what?<end_of_utterance>\nAssistant:"
            ids, refs = prompt_of(vision_model("idefics3"), text, [WIDE])
            (request,) = cluster.requests
            assert (request.prompt_token_ids, request.images) == (ids, refs)
            assert answer.json()["usage"]["prompt_tokens"] == len(ids)
            counted = await cluster.client.post("/tokenize", json={"messages": messages})
            assert counted.json()["tokens"] == ids

    run(main())


REFUSALS: list[tuple[dict[str, Any], str]] = [
    (body("no place", WIDE), "the prompt has 0 <image> placeholders for 1 images; each image needs one"),
    (body("<image>"), "the prompt has 1 <image> placeholders for 0 images; each image needs one"),
    (body("<image>" * 3, SMALL, SMALL), "the prompt has 3 <image> placeholders for 2 images; each image needs one"),
    (body("<image>" * 9, *[SMALL] * 9), "the request has 9 images, at most 8 are allowed"),
    (body(TEXT, SMALL[:-9]), "multimodal_params images[0]: an image of"),
    (body(TEXT, b"no picture"), "multimodal_params images[0]: an image of 10 bytes cannot be decoded"),
    (body(TEXT, picture(1, 120, 120)), "multimodal_params images[0] has"),
    (
        body(TEXT, picture(1, 101, 101, "L")),
        "multimodal_params images[0]: an image has 101 x 101 pixels, at most 10000",
    ),
    (
        body(TEXT, multimodal_params={"images": [{"type": "base64", "data": "%%%"}]}),
        "multimodal_params images[0] is not base64",
    ),
    (
        body(TEXT, multimodal_params={"images": [{"type": "image_size", "data": "x"}]}),
        "multimodal_params images[0] has type 'image_size', url and base64 are supported",
    ),
    (body(TEXT, multimodal_params={"images": [{"type": "url"}]}), "multimodal_params images[0] must have data"),
    (body(TEXT, multimodal_params={"images": ["x"]}), "multimodal_params images[0] must be an object, got str"),
    (body(TEXT, multimodal_params={"images": "x"}), "multimodal_params images must be a list, got str"),
    (body(TEXT, multimodal_params={"audios": [{}]}), "multimodal_params audios is not supported yet"),
    (
        body(TEXT, multimodal_params={"images": [{"type": "url", "data": "http://127.0.0.1/a"}]}),
        "multimodal_params images[0] has a URL; images are not fetched here (PDQ_IMAGES__URL_ALLOW is empty)",
    ),
    (
        body(TEXT, multimodal_params={"images": [{"type": "url", "data": "data:text/html;base64,aaaa"}]}),
        "multimodal_params images[0] has a data URL that does not begin with data:image/...;base64,",
    ),
]


def test_what_does_not_fit_is_refused_by_name(vision_settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(changed(vision_settings, max_pixels=10_000, max_bytes=30_000)) as cluster:
            for refused, message in REFUSALS:
                for route in ("/generate", "/generate_stream"):
                    answer = await cluster.client.post(route, json=refused)
                    assert answer.status_code == 417 and answer.json()["message"].startswith(message), answer.text
            part = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
            for role, words in (("user", "has a URL"), ("assistant", "part of type 'image_url', only text")):
                chat = {"messages": [{"role": role, "content": [part]}]}
                answer = await cluster.client.post("/v1/chat/completions", json=chat)
                assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text
            assert cluster.requests == []

    run(main())


def test_urls_are_fetched_where_the_settings_allow_it(vision_settings: Settings) -> None:
    async def main(port: int) -> None:
        base = f"http://127.0.0.1:{port}/"
        settings = changed(vision_settings, url_allow=f"{base}, http://localhost:{port}/", max_bytes=100_000)
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script("ab")

            async def ask(url: str) -> httpx.Response:
                images = {"images": [{"type": "url", "data": url}]}
                return await cluster.client.post("/generate", json=body(TEXT, multimodal_params=images))

            answer = await ask(base + "wide.png")
            assert answer.status_code == 200, answer.text
            ids, refs = prompt_of(vision_model("idefics3"), TEXT, [WIDE])
            (request,) = cluster.requests
            assert (request.prompt_token_ids, request.images) == (ids, refs)
            assert Pictures.seen[-1] == ("/wide.png", f"127.0.0.1:{port}")
            for url, words in {
                base + "elsewhere": "status 302, and redirects are not followed",
                base + "none": "status 404",
                base + "endless": "more than 100000 bytes",
                base + "page.html": "cannot be decoded",
                f"http://localhost:{port}/wide.png": "an address of a private network",
                f"http://127.0.0.1:{port + 1}/wide.png": "does not begin as one of PDQ_IMAGES__URL_ALLOW",
                f"http://127.0.0.1:{port}@example.org/": "does not begin as one of PDQ_IMAGES__URL_ALLOW",
            }.items():
                answer = await ask(url)
                assert answer.status_code == 417 and words in answer.json()["message"], (url, answer.text)
            assert "/small.jpg" not in [path for path, _ in Pictures.seen]
            assert len(cluster.requests) == 1

    with picture_server() as port:
        run(main(port))


def test_where_every_public_address_is_allowed_no_other_is(vision_settings: Settings) -> None:
    async def main(port: int) -> None:
        settings = changed(vision_settings, url_allow="*", url_private=True)
        async with fake_cluster(settings) as cluster:
            for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"):
                images = {"images": [{"type": "url", "data": f"http://{host}:{port}/small.jpg"}]}
                answer = await cluster.client.post("/generate", json=body(TEXT, multimodal_params=images))
                assert answer.status_code == 417 and "cannot be fetched" in answer.json()["message"], host
            assert Pictures.seen == []

    Pictures.seen.clear()
    with picture_server() as port:
        run(main(port))


def test_a_model_of_text_alone_says_so(redis_settings: RedisSettings, model_dir: Path) -> None:
    async def main() -> None:
        async with fake_cluster(settings_for(redis_settings, model_dir)) as cluster:
            answer = await cluster.client.post("/generate", json=body("<image>", SMALL))
            assert answer.status_code == 417
            assert answer.json()["message"] == (
                "multimodal_params images[0]: images are not supported by this model, which reads text alone"
            )

    run(main())
