"""The files of the page, read once, with what HTTP says of each.

Knows the folder page/ and media types; knows no route. Only what lies there can be asked for, by its name.
"""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, nobody's frame; https://www.w3.org/TR/CSP3/
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it is sent."""

    media_type: str
    content: bytes
    zipped: bytes
    etag: str  # of the content; `-gz` is added inside the quotes where it is sent zipped

    def headers(self, is_zipped: bool) -> dict[str, str]:
        """What the browser is told besides its length."""
        return {
            "content-type": self.media_type,
            "etag": self.tag(is_zipped),
            "cache-control": "no-cache",  # to be asked for again, which mostly costs a 304
            "vary": "accept-encoding",
            "content-security-policy": POLICY,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
        } | ({"content-encoding": "gzip"} if is_zipped else {})

    def tag(self, is_zipped: bool) -> str:
        """The ETag of one form of it."""
        return f'"{self.etag}{"-gz" if is_zipped else ""}"'


@cache
def page_files() -> dict[str, PageFile]:
    """By name. Read at the first call: 100 KB that a process nobody opens the page of does not hold."""
    return {path.name: _read(path) for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA_TYPES}


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:24]
    return PageFile(MEDIA_TYPES[path.suffix], content, gzip.compress(content, 9, mtime=0), digest)
