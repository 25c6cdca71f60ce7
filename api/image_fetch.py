"""Fetches an image by its URL, where the settings allow it: one connection, to an address that was judged, no redirect.

What the answer says of itself is not believed: its bytes are counted, and decoded by whoever asked. Errors tell the
client which image and why, never what was read. Knows no picture.
"""

import asyncio

from messages import InvalidRequest
from settings import ImageSettings
from web_target import NotAllowed, resolved


async def fetch_image(url: str, name: str, settings: ImageSettings) -> bytes:
    """The bytes at `url`; `name` is the image's in errors. Raises InvalidRequest; the time is the caller's to bound."""
    import httpx  # a tenth of a second to import, which only those pay who fetch

    if not settings.url_allow:
        raise InvalidRequest(f"{name} has a URL; images are not fetched here (PDQ_IMAGES__URL_ALLOW is empty)")
    try:
        if not settings.allows_url(url):
            raise NotAllowed("it does not begin as one of PDQ_IMAGES__URL_ALLOW")
        target = await asyncio.to_thread(
            resolved,
            url,
            allows_private=settings.url_private and not settings.is_any_allowed,
            trusts_literal=not settings.is_any_allowed,
        )
        # A compressed answer could be larger than what is counted.
        headers = {"host": target.host_header, "accept": "image/*", "accept-encoding": "identity", "user-agent": "pdq"}
        async with (
            httpx.AsyncClient(follow_redirects=False, trust_env=False) as client,
            client.stream(
                "GET", target.url, headers=headers, extensions={"sni_hostname": target.tls_name}, timeout=None
            ) as response,
        ):
            if response.status_code != 200:
                followed = ", and redirects are not followed" if response.is_redirect else ""
                raise InvalidRequest(f"{name} cannot be fetched: status {response.status_code}{followed}")
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > settings.max_bytes:
                    raise InvalidRequest(f"{name} has more than {settings.max_bytes} bytes")
            return bytes(content)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError, NotAllowed) as error:
        reason = str(error) if isinstance(error, NotAllowed) else type(error).__name__
        raise InvalidRequest(f"{name} cannot be fetched: {reason}") from None
