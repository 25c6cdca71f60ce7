"""Which URLs somebody else's word may make us ask for, as settings say it. Pure."""

from urllib.parse import urlsplit


def begins_as_allowed(url: str, allowed: str) -> bool:
    """Whether `url` begins as one of these, with commas between them: same scheme, host and port, and a path below."""
    try:
        asked = urlsplit(url)
        place = (asked.scheme, asked.hostname, asked.port)
    except ValueError:
        return False
    if asked.username is not None or asked.password is not None or ".." in asked.path or "\\" in url:
        return False
    for beginning in filter(None, map(str.strip, allowed.split(","))):
        known = urlsplit(beginning)
        if place == (known.scheme, known.hostname, known.port) and asked.path.startswith(known.path):
            return place[0] in ("http", "https") and bool(place[1])
    return False
