"""What a model writes -> content and tool calls, piece by piece, in two styles.

Pure. The same text gives the same calls however it is cut into pieces. A call is told as soon as its name is known and
its arguments begin; these are passed on as they are written, so a text that ends in the middle of them leaves them
unfinished: what was streamed cannot be taken back, and JSON that is mended says what the model did not. Whatever is no
call of one of the tools (another name, no JSON, no object) is content, to the letter; blanks around calls are dropped.

Styles:
    hermes   <tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>, anywhere; Hermes, Qwen
    llama3   {"name": ..., "parameters": {...}}, at the beginning of the text or after <|python_tag|>; `;` between two
"""

import re
import string
from dataclasses import dataclass
from enum import Enum

import orjson

from messages.request import ToolParams

CLOSING = "</tool_call>"
OPENINGS = {"hermes": "<tool_call>", "llama3": "<|python_tag|>"}

# As far as the brace that begins the arguments.
_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*\{')
_OUTSIDE_STRINGS = frozenset(string.whitespace + string.ascii_letters + string.digits + '{}[]:,"+-.')


@dataclass(frozen=True, slots=True)
class Content:
    """Text for whoever asked."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call has begun."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next part of a call's arguments, which are JSON."""

    index: int
    text: str


Delta = Content | CallStart | Arguments


class _Place(Enum):
    TEXT = "text"  # where content may be
    INSIDE = "inside"  # between the tags, before an object or after it
    OBJECT = "object"  # in what may be a call
    ARGUMENTS = "arguments"  # in those of a call that is told
    REST = "rest"  # in its object, after them


class ToolParser:
    """One per choice and reader."""

    def __init__(self, params: ToolParams) -> None:
        self._names, self._is_parallel = frozenset(params.names), params.is_parallel
        self._is_required = params.is_required
        self._has_tags = params.style == "hermes"
        self._opening = OPENINGS[params.style]
        self._place = _Place.TEXT
        self._may_begin = not self._has_tags  # a brace here begins an object
        self._held = ""  # blanks and whole tags that are content if no call comes
        self._tag = ""  # the beginning of one
        self._object = ""
        self._depth, self._in_string, self._is_escaped = 0, False, False
        self._has_called = False  # since the opening tag
        self._deltas: list[Delta] = []
        self._arguments: list[str] = []  # of the call that is told
        self.num_calls = 0
        self._num_whole = 0  # of those that are told

    @property
    def has_whole_calls(self) -> bool:
        """Whether calls were told, and the arguments of each are a JSON object: somebody may carry them out."""
        return 0 < self._num_whole == (self.num_calls if self._is_parallel else min(self.num_calls, 1))

    def feed(self, text: str) -> list[Delta]:
        """What `text` adds."""
        for character in text:
            self._step(character)
        return self._taken()

    def end(self) -> list[Delta]:
        """What was held back, now that no text comes. Where a call is required it is the beginning of one."""
        match self._place:
            case _ if self._is_required:
                pass
            case _Place.TEXT if self._tag or not self.num_calls or self._held.strip(" \t\r\n;"):
                self._say(self._held + self._tag)
            case _Place.INSIDE if not self._has_called:
                self._say(self._held + self._tag)
            case _Place.OBJECT:
                self._say(self._held + self._object)
        self._held = self._tag = self._object = ""
        return self._taken()

    def _step(self, character: str) -> None:
        match self._place:
            case _Place.TEXT:
                self._text(character)
            case _Place.INSIDE:
                self._inside(character)
            case _Place.OBJECT:
                self._in_object(character)
            case _Place.ARGUMENTS:
                self._in_arguments(character)
            case _Place.REST:
                self._in_rest(character)

    # -- outside of objects --------------------------------------------------------------------------------------

    def _text(self, character: str) -> None:
        tag = self._tag + character
        if self._opening.startswith(tag):
            self._tag = tag
            if tag == self._opening:
                self._held, self._tag = self._held + tag, ""
                self._may_begin = True
                self._has_called = False
                if self._has_tags:
                    self._place = _Place.INSIDE
        elif self._tag:  # a tag has its first character nowhere else, so another can begin only here
            self._say(self._held + self._tag)
            self._held = self._tag = ""
            self._text(character)
        elif character.isspace() or (character == ";" and self._may_begin and self.num_calls):
            self._held += character
        elif character == "{" and self._may_begin and not self._has_tags:
            self._begin_object()
        else:
            self._say(self._held + character)
            self._held = ""

    def _inside(self, character: str) -> None:
        tag = self._tag + character
        if CLOSING.startswith(tag):
            self._tag = tag
            if tag == CLOSING:
                if not self._has_called:
                    self._say(self._held + tag)
                self._held = self._tag = ""
                self._place = _Place.TEXT
        elif not self._tag and (character.isspace() or character in "[],"):  # some write a list of calls
            self._held += character
        elif not self._tag and character == "{":
            self._begin_object()
        elif not self._tag and character == "}" and self._has_called:
            pass  # one too many
        else:
            self._leave(tag)

    def _leave(self, rest: str) -> None:
        """No closing tag comes: what does is text, in which another opening tag may be."""
        self._place, self._tag = _Place.TEXT, ""
        if self._has_called:
            self._held = "".join(filter(str.isspace, self._held))
        else:
            self._say(self._held)
            self._held = ""
        for character in rest:
            self._step(character)

    # -- in objects ----------------------------------------------------------------------------------------------

    def _begin_object(self) -> None:
        self._place = _Place.OBJECT
        self._object, self._depth, self._in_string, self._is_escaped = "{", 1, False, False

    def _scan(self, character: str) -> bool:
        """Whether JSON may go on with it."""
        if self._in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._in_string = False
            return True
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        return character in _OUTSIDE_STRINGS

    def _in_object(self, character: str) -> None:
        if not self._scan(character):
            self._give_up()
            self._step(character)
            return
        self._object += character
        if character == "{" and self._depth == 2 and (head := _HEAD.fullmatch(self._object)):
            name = _parsed(head[1])
            if name in self._names:
                self._call(str(name), "{")
                self._place = _Place.ARGUMENTS
            else:
                self._give_up()
        elif self._depth == 0 and not self._in_string:
            self._whole_object()

    def _whole_object(self) -> None:
        """Of another order than the usual one, or no call."""
        found = _parsed(self._object)
        name = found.get("name") if isinstance(found, dict) else None
        if not isinstance(found, dict) or not isinstance(name, str) or name not in self._names:
            self._give_up()
            return
        arguments = found.get("arguments", found.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _parsed(arguments)
        if not isinstance(arguments, dict):
            self._give_up()
            return
        self._call(name, orjson.dumps(arguments).decode())
        self._end_arguments()
        self._end_call()

    def _give_up(self) -> None:
        """It is no call."""
        self._say(self._held + self._object)
        self._held = self._object = ""
        self._place = _Place.TEXT

    def _call(self, name: str, arguments: str) -> None:
        self._held = self._object = ""
        self._has_called = True
        self.num_calls += 1
        self._arguments = [arguments]
        if self._is_told:
            self._deltas += (CallStart(self.num_calls - 1, name), Arguments(self.num_calls - 1, arguments))

    @property
    def _is_told(self) -> bool:
        return self._is_parallel or self.num_calls == 1

    def _in_arguments(self, character: str) -> None:
        if not self._scan(character):  # they break off
            self._end_call()
            self._step(character)
            return
        self._arguments.append(character)
        last = self._deltas[-1] if self._deltas else None
        if not self._is_told:
            pass
        elif isinstance(last, Arguments):
            self._deltas[-1] = Arguments(last.index, last.text + character)
        else:
            self._deltas.append(Arguments(self.num_calls - 1, character))
        if self._depth == 1 and not self._in_string and character in "}]":
            self._end_arguments()
            self._place = _Place.REST

    def _end_arguments(self) -> None:
        """Braces may be even and the rest no JSON."""
        self._num_whole += self._is_told and isinstance(_parsed("".join(self._arguments)), dict)

    def _in_rest(self, character: str) -> None:
        if not self._scan(character):
            self._end_call()
            self._step(character)
        elif self._depth == 0:
            self._end_call()

    def _end_call(self) -> None:
        self._place = _Place.INSIDE if self._has_tags else _Place.TEXT
        self._may_begin = not self._has_tags

    # -- what is told --------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        if not text:
            return
        self._may_begin = False
        last = self._deltas[-1] if self._deltas else None
        if isinstance(last, Content):
            self._deltas[-1] = Content(last.text + text)
        else:
            self._deltas.append(Content(text))

    def _taken(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas


def _parsed(text: str) -> object:
    """None where it is no JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
