"""The `prompt` of a completion: a text, ids, or a list of either. Pure."""

from api.errors import BadField
from api.openai.fields import Fields


def read_prompts(body: Fields, max_prompts: int) -> list[object]:
    """One prompt or more, each a string or a list of ids, which admission looks at. Raises BadField."""
    given = body.get("prompt")
    if isinstance(given, str) or _is_ids(given):
        return [given]
    if not isinstance(given, list) or not given or not all(isinstance(one, str) or _is_ids(one) for one in given):
        raise BadField("prompt must be a string, a list of token ids, or a list of such prompts, none empty", "prompt")
    if len(given) > max_prompts:
        raise BadField(f"prompt has {len(given)} prompts, at most {max_prompts} are allowed", "prompt")
    return list(given)


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)
