"""The messages of a chat request: checked, and brought to the form that chat templates read.

Pure. Text, and images in users' messages where the model reads them: parts of other kinds are refused. What else a
message has (a name, tool calls of the past) goes to the template as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from api.errors import BadField
from api.image_sources import ImageSource, read_part
from api.openai.fields import Fields, flag, mapping
from api.openai.tools import Tool, read_tools

Message = Mapping[str, object]

# What the machinery that renders templates takes itself: not to be set from outside.
RESERVED = frozenset(
    {
        *("messages", "conversations", "tools", "documents", "chat_template", "return_assistant_tokens_mask"),
        *("continue_final_message", "add_generation_prompt", "tokenize"),
    }
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the template is to write."""

    messages: list[dict[str, object]]
    add_generation_prompt: bool
    continue_final_message: bool
    variables: Fields  # the client's own, for the template
    tools: list[Tool] = field(default_factory=list)
    images: list[ImageSource] = field(default_factory=list)  # in the order of the messages
    has_parts: bool = False  # whether the template reads every content as a list of parts, as those with images do


def read_conversation(body: Fields, *, reads_images: bool = False) -> Conversation:
    """`messages` and what belongs to them. `reads_images`: whether the model does. Raises BadField."""
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise BadField("messages must be a list of at least one message", "messages")
    continues = flag(body, "continue_final_message")
    prompts = flag(body, "add_generation_prompt", not continues)
    if continues and prompts:
        raise BadField("continue_final_message and add_generation_prompt cannot both be true", "continue_final_message")
    variables = mapping(body, "chat_template_kwargs")
    for name in variables:
        if name in RESERVED or not name.isidentifier():
            raise BadField(f"chat_template_kwargs may not have {name[:80]!r}", "chat_template_kwargs")
    images: list[ImageSource] = []
    messages = [
        _message(message, f"messages[{place}]", images if reads_images else None) for place, message in enumerate(given)
    ]
    if continues and not isinstance(messages[-1].get("content"), str):
        raise BadField("continue_final_message needs a last message with content", "continue_final_message")
    tools = read_tools(body)
    given_tools = [] if tools is None else tools.given
    return Conversation(messages, prompts, continues, variables, given_tools, images, has_parts=reads_images)


def _message(message: object, name: str, images: list[ImageSource] | None) -> dict[str, object]:
    """`images`: where its images go; None where there may be none."""
    if not isinstance(message, dict):
        raise BadField(f"{name} must be an object, got {type(message).__name__}", name)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise BadField(f"{name} must have a role", name)
    content = message.get("content")
    if isinstance(content, list):
        if images is not None and role == "user" and any(_is_image(part) for part in content):
            content = [_part(part, name, images) for part in content]
        else:
            content = "\n".join(_text(part, name) for part in content)
    elif content is not None and not isinstance(content, str):
        raise BadField(f"{name}.content must be a string or a list of parts, got {type(content).__name__}", name)
    # A key without a value confuses templates, which ask whether it is there.
    rest = {key: value for key, value in message.items() if value is not None and key != "content"}
    if isinstance(calls := rest.get("tool_calls"), list):
        rest["tool_calls"] = [_call(call, name) for call in calls]
    return rest if content is None else rest | {"content": content}


def _call(call: object, name: str) -> object:
    """A call of the past. Its arguments are the text of an object; templates want the object."""
    if not isinstance(call, dict) or not isinstance(function := call.get("function"), dict):
        raise BadField(f"{name}.tool_calls must be a list of calls of functions", name)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError:
            pass  # a model wrote them, and is to see what it wrote
    return call | {"function": function | {"arguments": arguments}}


def _is_image(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "image_url"


def _part(part: object, name: str, images: list[ImageSource]) -> dict[str, str]:
    """A part as templates read it; the image itself goes to `images`."""
    if isinstance(part, dict) and _is_image(part):
        images.append(read_part(part, name))
        return {"type": "image"}
    return {"type": "text", "text": _text(part, name)}


def _text(part: object, name: str) -> str:
    if isinstance(part, dict) and part.get("type") in ("text", "input_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = str(part.get("type"))[:40] if isinstance(part, dict) else type(part).__name__
    raise BadField(f"{name}.content has a part of type {kind!r}, only text is supported", name)
