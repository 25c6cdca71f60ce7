"""Files and batches over OpenAI's API: what `pdq batch` says to a server.

Knows HTTP and OpenAI's JSON; knows no terminal.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from errors import ConfigError

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5.0


class BatchFailed(Exception):
    """The server refused, or cannot be reached; the text says which and what may help."""


class ServerAway(BatchFailed):
    """It cannot be reached, or says that it can do nothing just now."""


class BatchClient:
    """One server. Use as a context manager. Every method raises BatchFailed."""

    def __init__(self, url: str, api_key: str) -> None:
        """Raises ConfigError."""
        import httpx

        self._url = url.rstrip("/").removesuffix("/v1")
        if not self._url.startswith(("http://", "https://")):
            raise ConfigError(f"--url = {url!r}: must look like http://HOST:PORT")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._client = httpx.Client(base_url=self._url, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def upload(self, name: str, content: IO[bytes]) -> str:
        """The id of the file that holds `content` from now on."""
        files = {"file": (name, content, "application/jsonl")}
        return str(self._call("POST", "/v1/files", data={"purpose": "batch"}, files=files)["id"])

    def begin(self, file_id: str, endpoint: str, window: str) -> dict[str, Any]:
        """A new batch."""
        asked = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": window}
        return self._call("POST", "/v1/batches", json=asked)

    def find(self, batch_id: str) -> dict[str, Any]:
        """The batch as it is now."""
        return self._call("GET", f"/v1/batches/{batch_id}")

    def cancel(self, batch_id: str) -> dict[str, Any]:
        """The batch, of which no more lines are run."""
        return self._call("POST", f"/v1/batches/{batch_id}/cancel")

    def read(self, file_id: str) -> Iterator[bytes]:
        """The bytes of a file."""
        with self._reached(), self._client.stream("GET", f"/v1/files/{file_id}/content") as response:
            if not response.is_success:
                response.read()
                self._check(response)
            yield from response.iter_bytes()

    def _call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        with self._reached():
            response = self._client.request(method, path, **more)
        self._check(response)
        said: dict[str, Any] = response.json()
        return said

    @contextmanager
    def _reached(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ServerAway(
                f"{self._url} cannot be reached: {reason}; start a server with `pdq serve`, or name it with --url or "
                "PDQ_BATCH__API_URL"
            ) from None

    def _check(self, response: "httpx.Response") -> None:
        if response.is_success:
            return
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = response.text[:200]
        hint = ""
        if response.status_code == 401:
            hint = "; give a key with --api-key, --key-file or PDQ_API_KEY (`pdq key new` makes one)"
        kind = ServerAway if response.status_code in (502, 503) else BatchFailed
        raise kind(f"{response.request.url}: {response.status_code}, {message}{hint}")


def read_key(path: Path) -> str:
    """The API key in a file. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--key-file = {path}: {getattr(error, 'strerror', None) or error}") from None
