"""`after` and `limit` of OpenAI's lists. Pure."""

from collections.abc import Sequence
from typing import TypeVar

from api.errors import BadField

ItemT = TypeVar("ItemT")


def read_limit(given: str | None, default: int, most: int) -> int:
    """How many are wanted. Raises BadField."""
    if given is None:
        return default
    if not given.isdecimal() or not 1 <= int(given[:9]) <= most:
        raise BadField(f"limit must be 1 to {most}, got {given[:40]!r}", "limit")
    return int(given)


def page_of(items: Sequence[ItemT], ids: Sequence[str], after: str | None, limit: int) -> tuple[Sequence[ItemT], bool]:
    """Up to `limit` items from the one after the id `after` on, and whether there are more. Raises BadField."""
    if after is not None and after not in ids:
        raise BadField(f"after = {after[:80]!r} is not in the list", "after")
    first = 0 if after is None else list(ids).index(after) + 1
    return items[first : first + limit], len(items) > first + limit
