"""Conversation -> prompt text, by the model's chat template, in a child process that starts when it is first needed.

Knows the process's pipes and how long a template may take; `template_process.py` is the other end. A process that was
too slow, or whose reader left, is killed, for its answer would be taken for that to the next question.
"""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from msgspec import to_builtins

from api.errors import BadField
from api.openai.chat_template import ChatTemplate
from api.openai.conversation import Conversation
from api.openai.tool_words import with_tools_in_words
from messages import WorkerFailed
from telemetry import get_logger

log = get_logger()

START_S = 60.0  # for the imports of the process
MAX_LINE_BYTES = 256 << 20  # of an answer; a request's body is bounded already
_PROGRAM = Path(__file__).with_name("template_process.py")


class ChatRenderer:
    """One per API process. One conversation at a time: most take a tenth of a millisecond."""

    def __init__(self, template: ChatTemplate, timeout_s: float) -> None:
        self.template, self._timeout_s = template, timeout_s
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def render(self, conversation: Conversation) -> str:
        """The prompt. Raises BadField when the model has no template or it cannot write this, WorkerFailed."""
        source = self.template.source
        if source is None:
            raise BadField("the model has no chat template; use /v1/completions", "messages")
        messages = conversation.messages
        if "developer" not in source:  # OpenAI's newer name of the system's role
            messages = [one | {"role": "system"} if one["role"] == "developer" else one for one in messages]
        tools = conversation.tools
        if not self.template.has_tools:
            messages, tools = with_tools_in_words(messages, tools), []
        if conversation.has_parts:
            messages = [_in_parts(message) for message in messages]
        # Its images are not the template's business.
        asked = orjson.dumps(to_builtins(replace(conversation, messages=messages, tools=tools, images=[])))
        async with self._turn:
            is_answered = False
            try:
                answer = await self._ask(asked)
                is_answered = True
            except TimeoutError:
                raise BadField(f"the chat template took longer than {self._timeout_s:g} s", "messages") from None
            finally:
                if not is_answered:
                    await self.close()
        if "error" in answer:
            raise BadField(f"the chat template cannot write these messages: {answer['error']}", "messages")
        text: str = answer["text"]
        return text

    async def close(self) -> None:
        """End the process; the next conversation starts another one."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _ask(self, asked: bytes) -> dict[str, Any]:
        if self._process is None:
            async with asyncio.timeout(START_S):
                await self._start()
        async with asyncio.timeout(self._timeout_s):
            return await self._exchange(asked)

    async def _start(self) -> None:
        # -P: what lies beside the program is not to be taken for modules that it imports.
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", str(_PROGRAM)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            start_new_session=True,  # a terminal's Ctrl-C is for us
        )
        said = orjson.dumps({"source": self.template.source, "special_tokens": self.template.special_tokens})
        answer = await self._exchange(said)
        if "error" in answer:
            log.error("chat_template_unusable", reason=answer["error"])
            raise WorkerFailed("the model's chat template cannot be used")

    async def _exchange(self, line: bytes) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(line + b"\n")
            await process.stdin.drain()
            answer = await process.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        if not answer.endswith(b"\n"):
            log.error("chat_template_process_ended")
            raise WorkerFailed("the process that renders chat templates has ended")
        content: dict[str, Any] = orjson.loads(answer)
        return content


def _in_parts(message: dict[str, object]) -> dict[str, object]:
    """The message with a list as its content."""
    content = message.get("content")
    return message | {"content": [{"type": "text", "text": content}]} if isinstance(content, str) else message
