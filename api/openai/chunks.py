"""Streams of /v1/completions and /v1/chat/completions, chunk by chunk.

Pure. A chat's choice begins with a chunk that has its role and ends with one that has its finish_reason; then, once all
choices have ended, comes the usage if it is asked for, in a chunk without choices, and `[DONE]`. In a completion the
finish_reason is in the chunk of the last text. A token that completes no character makes no chunk of its own.
"""

from collections.abc import Sequence

import orjson

from api.errors import openai_error
from api.frames import OutputToken
from api.openai.bodies import head_of, prompt_text
from api.openai.logprobs import CompletionLogprobs, Json, Listing, chat_logprobs
from api.openai.tool_calls import delta_of, reason_of
from api.openai.tool_parser import ToolParser
from api.openai.usage import Usage
from api.services import Services
from messages.request import GenerationRequest, ToolParams

DONE = b"data: [DONE]\n\n"


class Chunks:
    """What the chunks of both routes have in common: their head, their usage, how a stream ends."""

    def __init__(self, requests: Sequence[GenerationRequest], head: Json, services: Services) -> None:
        self._requests, self._services = requests, services
        self._answer = requests[0].answer
        self._names = services.tokenizer.names
        self._usage = Usage(requests)
        self._num_unfinished = sum(request.n for request in requests)
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        # `usage` is null where it is to come at the end, and is not there where it was not asked for.
        self._tail = b'],"usage":null}\n\n' if self._answer.include_usage else b"]}\n\n"

    def chunk(self, choice: bytes) -> bytes:
        """The event of one choice, given as JSON; of none where it is empty."""
        tail = self._tail
        if self._answer.continuous_usage or not choice:
            tail = b'],"usage":' + orjson.dumps(self._usage.object) + b"}\n\n"
        return self._head + choice + tail

    def end(self, token: OutputToken) -> bytes:
        """What comes after a choice's last token."""
        if token.finish_reason is None:
            return b""
        self._num_unfinished -= 1
        if self._num_unfinished:
            return b""
        return (self.chunk(b"") if self._answer.include_usage else b"") + DONE

    def error(self, message: str, status: int) -> bytes:
        """See StreamFrames."""
        return b"data: " + orjson.dumps(openai_error(status, message)) + b"\n\n" + DONE


class ChatChunks(Chunks):
    """Those of /v1/chat/completions."""

    def __init__(self, requests: Sequence[GenerationRequest], services: Services) -> None:
        super().__init__(requests, head_of(requests, "chatcmpl", "chat.completion.chunk", services), services)
        self._parsers: dict[int, ToolParser] = {}

    def token(self, token: OutputToken, choice: int) -> bytes:
        """See StreamFrames."""
        self._usage.note(token, choice)
        chunks = b""
        if token.index == 0:
            chunks = self._delta(choice, b'{"role":"assistant","content":""}')
        reason: str | None = token.finish_reason
        if self._answer.tools is None:
            deltas = [b'{"content":%b}' % orjson.dumps(token.text)] if token.text else []
        else:
            deltas, reason = self._with_calls(self._answer.tools, token, choice)
        num_logprobs = self._answer.num_logprobs
        logprobs = b"null"
        if num_logprobs is not None and token.token_id is not None:
            logprobs = orjson.dumps(chat_logprobs([token], num_logprobs, self._names))
            deltas = deltas or [b'{"content":""}']
        for delta in deltas:
            chunks += self._delta(choice, delta, logprobs)
            logprobs = b"null"
        if reason is not None:
            chunks += self._delta(choice, b"{}", reason=orjson.dumps(reason)) + self.end(token)
        return chunks

    def _with_calls(self, tools: ToolParams, token: OutputToken, choice: int) -> tuple[list[bytes], str | None]:
        """(deltas, finish_reason) of a token where tools may be called."""
        if choice not in self._parsers:
            self._parsers[choice] = ToolParser(tools)
        parser = self._parsers[choice]
        deltas = parser.feed(token.text)
        if token.finish_reason is not None:
            deltas += parser.end()
        (request,) = self._requests
        told = [orjson.dumps(delta_of(delta, request, choice)) for delta in deltas]
        return told, reason_of(token.finish_reason, parser)

    def _delta(self, choice: int, delta: bytes, logprobs: bytes = b"null", reason: bytes = b"null") -> bytes:
        return self.chunk(
            b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (choice, delta, logprobs, reason)
        )


class CompletionChunks(Chunks):
    """Those of /v1/completions. An echoed prompt is the text of a choice's first chunk."""

    def __init__(self, requests: Sequence[GenerationRequest], services: Services) -> None:
        super().__init__(requests, head_of(requests, "cmpl", "text_completion", services), services)
        self._listed: dict[int, CompletionLogprobs] = {}

    def token(self, token: OutputToken, choice: int) -> bytes:
        """See StreamFrames."""
        self._usage.note(token, choice)
        chunks = b""
        if token.index == 0 and self._answer.echo:
            chunks = self._prompt(token, choice)
        is_told = not self._answer.drops_output
        has_logprobs = is_told and self._answer.num_logprobs is not None and token.token_id is not None
        text = token.text if is_told else ""
        if text or has_logprobs or token.finish_reason is not None:
            listing = self._listing(choice).of_output([token]) if has_logprobs else None
            chunks += self._text(choice, text, listing, orjson.dumps(token.finish_reason))
        return chunks + self.end(token)

    def _prompt(self, token: OutputToken, choice: int) -> bytes:
        request = self._requests[choice // self._requests[0].n]
        has_logprobs = self._answer.num_logprobs is not None
        listing = self._listing(choice).of_prompt(request, token) if has_logprobs else None
        return self._text(choice, prompt_text(request, self._services), listing, b"null")

    def _listing(self, choice: int) -> CompletionLogprobs:
        if choice not in self._listed:
            self._listed[choice] = CompletionLogprobs(self._answer.num_logprobs or 0, self._names)
        return self._listed[choice]

    def _text(self, choice: int, text: str, listing: Listing | None, reason: bytes) -> bytes:
        return self.chunk(
            b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}'
            % (choice, orjson.dumps(text), b"null" if listing is None else orjson.dumps(listing), reason)
        )
