"""A chat over OpenAI's API, streamed: what `pdq chat` says to a server.

Knows HTTP and OpenAI's JSON; knows no terminal.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from errors import ConfigError

if TYPE_CHECKING:
    import httpx

Message = dict[str, str]

CONNECT_TIMEOUT_S = 5.0
QUIET_TIMEOUT_S = 120.0  # ours says something every 15 s, others nothing until their first token


class ChatFailed(Exception):
    """The server gave no answer, or broke it off; the text says which and what may help."""


class ChatClient:
    """One server. Use as a context manager."""

    def __init__(self, url: str, api_key: str) -> None:
        """`url`: the server's, with /v1 or without it. Raises ConfigError."""
        import httpx

        self._url = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            parsed = httpx.URL(self._url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"--url {url!r}: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError(f"--url {url!r}: must look like http://HOST:PORT")
        self._client = httpx.Client(
            base_url=parsed, headers=headers, timeout=httpx.Timeout(QUIET_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def first_model(self) -> str:
        """The name of the first model that is served. Raises ChatFailed."""
        import httpx

        try:
            answer = self._client.get("/v1/models")
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        self._check(answer)
        try:
            name = answer.json()["data"][0]["id"]
        except (ValueError, LookupError, TypeError):
            raise ChatFailed(f"{self._url}/v1/models names no model; name one with --model") from None
        return str(name)

    def answer(self, model: str, messages: Sequence[Message], more: Mapping[str, Any]) -> Iterator[str]:
        """The answer's text, as it comes; closing the iterator cancels the request. Raises ChatFailed."""
        import httpx

        body = {"model": model, "messages": list(messages), "stream": True, **more}
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    answer.read()
                self._check(answer)
                yield from map(_text, self._chunks(answer))
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _chunks(self, answer: "httpx.Response") -> Iterator[Any]:
        for line in answer.iter_lines():
            if not line.startswith("data:"):
                continue  # comments keep the connection open
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            try:
                chunk = json.loads(data)
            except ValueError:
                raise ChatFailed(f"{self._url} sent an event that is no JSON: {data[:80]!r}") from None
            if isinstance(chunk, dict) and "error" in chunk:
                raise ChatFailed(f"the answer broke off: {_message(chunk)}")
            yield chunk
        raise ChatFailed(f"the answer broke off: {self._url} closed the connection before its end")

    def _check(self, answer: "httpx.Response") -> None:
        if answer.status_code == 200:
            return
        try:
            said = _message(answer.json())
        except ValueError:
            said = answer.text[:200]
        hint = ""
        if answer.status_code == 401:
            hint = "; give a key with --api-key, PDQ_API_KEY or OPENAI_API_KEY (`pdq key new` makes one)"
        elif answer.status_code in (429, 503):
            hint = f"; try again in {answer.headers.get('retry-after', 'a few')} s"
        raise ChatFailed(f"{self._url} answered {answer.status_code}: {said}{hint}")

    def _unreachable(self, error: Exception) -> ChatFailed:
        reason = str(error) or type(error).__name__
        return ChatFailed(f"{self._url} cannot be reached: {reason}; start one with `pdq serve`, or name it with --url")


def _text(chunk: Any) -> str:
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    return str(choices[0].get("delta", {}).get("content") or "") if choices else ""


def _message(content: Any) -> str:
    error = content.get("error", content) if isinstance(content, dict) else content
    return str(error.get("message", error) if isinstance(error, dict) else error)
