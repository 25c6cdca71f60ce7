"""Random JSON schemas, the same for the same seed: what applications ask for, and its odd combinations.

Strings, arrays and most numbers are bounded, so that most schemas have an end that a weak model comes to. Pure.
"""

import random
from typing import Any

Schema = dict[str, Any]

NAMES = ("name", "age", "tags", "e-mail", "größe", "a b", 'qu"ote', "id", "total", "items", "note", "x")
PATTERNS = ("^[a-z]{2,8}$", "^(ab|cd)+e?$", r"^\d{4}-\d{2}$", "^[A-Z][a-z]*( [A-Z][a-z]*){0,2}$")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email", "hostname")
CONSTANTS = ("red", "großartig", "", 'a "quoted" \\ one', 0, -17, 3.5, True, None, [1, "two"], {"k": [None]})
DEEPEST = 3


def random_schemas(count: int, seed: int = 0) -> list[Schema]:
    """`count` schemas of objects."""
    draw = random.Random(seed)
    return [_with_definitions(draw) for _ in range(count)]


def _with_definitions(draw: random.Random) -> Schema:
    """An object whose last property may refer to a definition, which may refer to itself."""
    schema = _object(draw, 0)
    if draw.random() < 0.15:
        node = _object(draw, DEEPEST - 1)
        node["properties"]["next"] = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
        schema["$defs"] = {"node": node}
        schema["properties"]["head"] = {"$ref": "#/$defs/node"}
        schema["required"] = [*schema.get("required", []), "head"]
    return schema


def _any(draw: random.Random, depth: int) -> Schema:
    kinds = [_string, _string, _integer, _number, _plain, _constant, _choice]
    if depth < DEEPEST:
        kinds += [_object, _object, _array, _array, _either]
    return draw.choice(kinds)(draw, depth)


def _object(draw: random.Random, depth: int) -> Schema:
    names = draw.sample(NAMES, draw.randint(1, 5 - depth))
    schema: Schema = {"type": "object", "properties": {name: _any(draw, depth + 1) for name in names}}
    required = [name for name in names if draw.random() < 0.7]
    if required:
        schema["required"] = required
    if draw.random() < 0.9:
        schema["additionalProperties"] = False
    elif draw.random() < 0.5:
        schema["additionalProperties"] = {"type": "integer", "minimum": 0, "maximum": 9}
    return schema


def _array(draw: random.Random, depth: int) -> Schema:
    low = draw.randint(0, 2)
    schema: Schema = {"type": "array", "items": _any(draw, depth + 1), "maxItems": low + draw.randint(0, 2)}
    if low:
        schema["minItems"] = low
    if draw.random() < 0.2:
        first = [_any(draw, DEEPEST), _any(draw, DEEPEST)]
        schema |= {"prefixItems": first, "minItems": 2, "maxItems": 3}
    return schema


def _either(draw: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(draw, depth + 1) for _ in range(draw.randint(2, 3))]}


def _string(draw: random.Random, depth: int) -> Schema:
    kind = draw.randrange(4)
    if kind == 0:
        return {"type": "string", "pattern": draw.choice(PATTERNS), "maxLength": 24}
    if kind == 1:
        # llguidance knows the form of a format and no bound of its length, as the 64 characters of a mailbox's name.
        return {"type": "string", "format": draw.choice(FORMATS), "maxLength": 60}
    low = draw.randint(0, 3)
    return {"type": "string", "minLength": low, "maxLength": low + draw.randint(0, 20)}


def _integer(draw: random.Random, depth: int) -> Schema:
    low = draw.randint(-1000, 1000)
    schema: Schema = {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 5000)}
    if draw.random() < 0.2:
        schema = {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + draw.randint(2, 40)}
    if draw.random() < 0.15:
        schema = {"type": "integer", "multipleOf": draw.choice([2, 5, 10]), "minimum": 0, "maximum": 1000}
    return schema


def _number(draw: random.Random, depth: int) -> Schema:
    low = round(draw.uniform(-100, 100), 2)
    if draw.random() < 0.7:
        return {"type": "number", "multipleOf": draw.choice([0.5, 0.01]), "minimum": 0, "maximum": 100}
    return {"type": "number", "minimum": low, "maximum": round(low + draw.uniform(0.5, 500), 2)}


def _plain(draw: random.Random, depth: int) -> Schema:
    return draw.choice([{"type": "boolean"}, {"type": "null"}, {"type": ["boolean", "null"]}])


def _constant(draw: random.Random, depth: int) -> Schema:
    return {"const": draw.choice(CONSTANTS)}


def _choice(draw: random.Random, depth: int) -> Schema:
    return {"enum": draw.sample(CONSTANTS, draw.randint(1, 4))}
