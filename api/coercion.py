"""What a JSON value may be for a field of a given type: LightLLM's rules, which are those of ctypes.

Pure. An int field takes an int, a float field a number, a bool field anything (by its truth). `null` never gets here:
it means the default.
"""

from errors import InvalidRequest

MAX_INT32 = 2**31 - 1
MAX_FLOAT32 = 3.4028234663852886e38  # what the sampler computes in


def to_int(name: str, value: object, low: int = -(2**31), high: int = MAX_INT32) -> int:
    """`value` as an int in [low, high]. Raises InvalidRequest where LightLLM would raise TypeError or wrap around."""
    if not isinstance(value, int):
        raise InvalidRequest(f"'{type(value).__name__}' object cannot be interpreted as an integer")
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be in [{low}, {high}], got {value}")
    return int(value)


def to_float(name: str, value: object) -> float:
    """`value` as a float that is finite in 32 bits. Raises InvalidRequest for anything but a number."""
    if not isinstance(value, int | float):
        raise InvalidRequest(f"must be real number, not {type(value).__name__}")
    if not -MAX_FLOAT32 <= value <= MAX_FLOAT32:  # also refuses NaN, and an int that no float can hold
        raise InvalidRequest(f"{name} must be finite and fit into 32 bits")
    return float(value)


def to_token_ids(name: str, value: object) -> list[int]:
    """`value` as a list of ints; a bool is none. Raises InvalidRequest."""
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise InvalidRequest(f"{name} must be a list of int")
    return list(value)
