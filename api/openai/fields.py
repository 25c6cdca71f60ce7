"""One field of an OpenAI request at a time: its type, its bounds, its name in the error.

Pure. `null` is as good as nothing given. Unlike LightLLM's routes these are strict: a number is no text and no boolean.
"""

import math
from collections.abc import Mapping

from api.coercion import MAX_FLOAT32, MAX_INT32
from api.errors import BadField

Fields = Mapping[str, object]


def integer(body: Fields, name: str, default: int, low: int = -MAX_INT32, high: int = MAX_INT32) -> int:
    """`body[name]` in [low, high]. Raises BadField."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int:
        raise BadField(f"{name} must be an integer, got {_shown(value)}", name)
    if not low <= value <= high:
        raise BadField(f"{name} must be in [{low}, {high}], got {_shown(value)}", name)
    return value


def number(body: Fields, name: str, default: float, low: float = -MAX_FLOAT32, high: float = MAX_FLOAT32) -> float:
    """`body[name]` in [low, high], finite in 32 bits. Raises BadField."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadField(f"{name} must be a number, got {_shown(value)}", name)
    if not low <= value <= high or not math.isfinite(value):
        raise BadField(f"{name} must be in [{low:g}, {high:g}], got {_shown(value)}", name)
    return float(value)


def flag(body: Fields, name: str, default: bool = False) -> bool:
    """`body[name]`, true or false. Raises BadField."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadField(f"{name} must be true or false, got {_shown(value)}", name)
    return value


def mapping(body: Fields, name: str) -> Fields:
    """`body[name]`, an object; an empty one when it is not given. Raises BadField."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadField(f"{name} must be an object, got {_shown(value)}", name)
    return value


def _shown(value: object) -> str:
    return repr(value)[:80]
