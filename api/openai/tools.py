"""The tools of a chat request, and whether the model must call one: `tools`, `tool_choice`, `parallel_tool_calls`.

Pure. A choice of "none" takes the tools away; "required" and a name are held to by a grammar (`tool_grammar.py`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from api.errors import BadField
from api.openai.fields import Fields, flag
from messages.request import ToolParams

Style = Literal["hermes", "llama3"]
Tool = dict[str, object]

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Tools:
    """What may be called, and how."""

    given: list[Tool]  # as the client wrote them, for the template
    callable_names: tuple[str, ...]  # those that the choice leaves
    is_required: bool
    is_parallel: bool

    def params(self, style: Style) -> ToolParams:
        """What reads the calls out of the text."""
        return ToolParams(style, self.callable_names, self.is_parallel, self.is_required)

    def schema(self, name: str) -> Mapping[str, object]:
        """Of a tool's arguments; any object where it has none."""
        for tool in self.given:
            function = function_of(tool)
            if function["name"] == name:
                schema = function.get("parameters")
                return schema if isinstance(schema, Mapping) and schema else {"type": "object"}
        raise AssertionError(f"no tool {name}")


def function_of(tool: Tool) -> Mapping[str, object]:
    """The part that says what is called."""
    function = tool["function"]
    assert isinstance(function, Mapping)
    return function


def read_tools(body: Fields) -> Tools | None:
    """None where nothing may be called. Raises BadField."""
    given = body.get("tools")
    choice = body.get("tool_choice")
    is_parallel = flag(body, "parallel_tool_calls", True)
    if given is not None and not isinstance(given, list):
        raise BadField(f"tools must be a list, got {type(given).__name__}", "tools")
    if not given:
        if choice not in (None, "none", "auto"):
            raise BadField("tool_choice needs tools", "tool_choice")
        return None
    if len(given) > MAX_TOOLS:
        raise BadField(f"tools has {len(given)} tools, at most {MAX_TOOLS} are allowed", "tools")
    names = [_name(tool, f"tools[{place}]") for place, tool in enumerate(given)]
    for name in names:
        if names.count(name) > 1:
            raise BadField(f"tools has the name {name!r} twice", "tools")
    if choice == "none":
        return None
    if choice in (None, "auto", "required"):
        return Tools(given, tuple(names), choice == "required", is_parallel)
    chosen = _chosen(choice)
    if chosen not in names:
        raise BadField(f"tool_choice names {chosen[:64]!r}, which is no tool of this request", "tool_choice")
    return Tools(given, (chosen,), is_required=True, is_parallel=False)


def _name(tool: object, place: str) -> str:
    """Of a tool that is one."""
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
        raise BadField(f'{place} must be {{"type": "function", "function": {{...}}}}', "tools")
    function = tool["function"]
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadField(f"{place}.function.name must be 1 to 64 of A-Z a-z 0-9 _ . -, got {repr(name)[:80]}", "tools")
    if not isinstance(function.get("parameters", {}), Mapping | None):
        raise BadField(f"{place}.function.parameters must be a JSON schema, an object", "tools")
    return name


def _chosen(choice: object) -> str:
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise BadField(
            'tool_choice must be none, auto, required or {"type": "function", "function": {"name": ...}}, '
            f"got {repr(choice)[:80]}",
            "tool_choice",
        )
    return name
