"""Images in prompts, where the model reads them."""

from pydantic import Field

from settings.allowed_urls import begins_as_allowed
from settings.section import Count, Limit, Seconds, Section


class ImageSettings(Section):
    """What the API takes for an image and where it fetches it; what a prefill worker keeps of it."""

    max_per_request: Count = Field(8, description="Most images of one request.")
    max_bytes: Count = Field(8 << 20, description="Largest image, as it is sent or fetched.")
    max_pixels: Count = Field(25_000_000, description="Largest image, width x height.")
    url_allow: str = Field(
        "",
        description="Comma-separated beginnings of the URLs that images may be fetched from, with their scheme and "
        "host (https://example.org/pictures/); `*`: every public address; empty: none.",
    )
    url_private: bool = Field(
        False, description="Whether a host allowed there by name may have an address of a private network."
    )
    fetch_timeout_s: Seconds = Field(5.0, description="How long all images of one request may take to be fetched.")
    at_once: Count = Field(2, description="Most images that an API process decodes at once to check them.")
    feature_cache_bytes: Limit = Field(
        256 << 20, description="Bytes of encoded images that a prefill worker keeps for prompts with the same ones."
    )

    def allows_url(self, url: str) -> bool:
        """Whether an image may be fetched from `url`, as far as the URL says it."""
        return self.is_any_allowed or begins_as_allowed(url, self.url_allow)

    @property
    def is_any_allowed(self) -> bool:
        """Whether every public address is."""
        return self.url_allow.strip() == "*"
