"""Which address a webhook goes to: what `web_target.py` makes of a URL that the settings allow.

The settings name the hosts; an operator who allows a literal address means that address.
"""

from settings import BatchSettings
from web_target import NotAllowed, Target, resolved

__all__ = ["NotAllowed", "Target", "target_of"]


def target_of(url: str, settings: BatchSettings) -> Target:
    """Blocking: looks the host up. Raises NotAllowed, and OSError when it has no address."""
    if not settings.allows_webhook(url):
        raise NotAllowed("the URL does not begin as one of PDQ_BATCH__WEBHOOK_ALLOW")
    return resolved(url, allows_private=settings.webhook_private, trusts_literal=True)
