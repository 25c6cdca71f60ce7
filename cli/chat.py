"""`pdq chat`: a conversation in the terminal, with any server of OpenAI's API.

Knows the terminal and the commands that begin with a slash; what is sent and heard is `chat_client.py`'s.
"""

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated, Any

import typer

from cli.chat_client import ChatClient, ChatFailed, Message
from cli.health import probe_address
from cli.options import settings_from

INTERRUPTED_EXIT_CODE = 130  # as shells have it: 128 + SIGINT

COMMANDS = {
    "/help": "these lines",
    "/new": "begin anew; the system's message stays",
    "/system TEXT": "what the model is told first; without TEXT, nothing",
    "/undo": "forget the last question and its answer",
    "/retry": "ask the last question again",
    "/exit": "leave, as Ctrl-D does",
}


class Conversation:
    """What was said so far. Pure."""

    def __init__(self, system: str = "") -> None:
        self.system = system
        self.turns: list[Message] = []  # user and assistant in turn

    def asked(self, question: str) -> list[Message]:
        """All messages, `question` the last of them."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.turns, {"role": "user", "content": question}]

    def answered(self, question: str, answer: str) -> None:
        """A turn is over."""
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def undo(self) -> str:
        """Forget the last turn; its question, or "" where there is none."""
        if not self.turns:
            return ""
        question = self.turns[-2]["content"]
        del self.turns[-2:]
        return question


def chat(
    question: Annotated[str | None, typer.Argument(help="Ask this, print the answer, and end.")] = None,
    url: Annotated[
        str | None, typer.Option(help="The server, with /v1 or without it.", show_default="PDQ_API__HOST and __PORT")
    ] = None,
    api_key: Annotated[
        str,
        typer.Option(envvar=["PDQ_API_KEY", "OPENAI_API_KEY"], help="Where keys are asked for.", show_default=False),
    ] = "",
    model: Annotated[str, typer.Option(help="Its name.", show_default="the first that is served")] = "",
    system: Annotated[str, typer.Option(help="What the model is told first.", show_default=False)] = "",
    temperature: Annotated[float | None, typer.Option(min=0, help="0: greedy.", show_default="the server's")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of one answer.", show_default="the server's")] = None,
) -> None:
    """Talk to a model in the terminal. Ctrl-C stops an answer, Ctrl-D ends; /help lists the commands.

    With QUESTION, exit code 1 when there is no answer and 130 when Ctrl-C cut it short.
    """
    if url is None:
        api = settings_from().api
        host = probe_address(api.host)
        url = f"http://{f'[{host}]' if ':' in host else host}:{api.port}"
    given = {"temperature": temperature, "max_tokens": max_tokens}
    more = {name: value for name, value in given.items() if value is not None}
    with ChatClient(url, api_key) as client:
        try:
            name = model or client.first_model()
            if question is not None:
                _, is_whole = _say(client.answer(name, Conversation(system).asked(question), more))
                if not is_whole:
                    raise typer.Exit(INTERRUPTED_EXIT_CODE)
                return
        except ChatFailed as error:
            typer.echo(f"pdq: {error}", err=True)
            raise typer.Exit(1) from None
        _talk(client, name, Conversation(system), more)


def _talk(client: ChatClient, model: str, conversation: Conversation, more: dict[str, Any]) -> None:
    if sys.stdin.isatty():
        import readline  # noqa: F401 - input() gets its history and its keys from it

        typer.echo(f"{model}. /help lists the commands, Ctrl-D ends.", err=True)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line in ("/exit", "/quit"):
            return
        if line == "/retry":
            line = conversation.undo()
            if not line:
                typer.echo("nothing was asked yet", err=True)
        elif line.startswith("/"):
            typer.echo(_command(line, conversation), err=True)
            continue
        if not line:
            continue
        try:
            said, _ = _say(client.answer(model, conversation.asked(line), more))
            conversation.answered(line, said)
        except ChatFailed as error:
            typer.echo(f"pdq: {error}", err=True)


def _command(line: str, conversation: Conversation) -> str:
    """Do it; what is to be told."""
    name, _, text = line.partition(" ")
    match name:
        case "/help":
            return "\n".join(f"{command:<14}{meaning}" for command, meaning in COMMANDS.items())
        case "/new":
            conversation.turns.clear()
            return "a new conversation"
        case "/system":
            conversation.system = text.strip()
            return "the model is told so" if conversation.system else "the model is told nothing first"
        case "/undo":
            question = conversation.undo()
            return f"forgotten: {question}" if question else "nothing was asked yet"
    return f"{name} is no command; /help lists them"


def _say(answer: Iterator[str]) -> tuple[str, bool]:
    """Print the answer as it comes; what was said, and whether that is all. Ctrl-C ends it, on the server too."""
    said, is_whole = "", True
    with closing(answer):  # type: ignore[type-var]
        try:
            for text in answer:
                said += text
                typer.echo(text, nl=False)
                sys.stdout.flush()
        except KeyboardInterrupt:
            is_whole = False
        finally:
            typer.echo()
    return said, is_whole
