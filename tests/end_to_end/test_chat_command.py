"""`pdq chat` as a process, with a cluster of ours."""

import os
import subprocess
import sys

from tests.end_to_end.cluster import ROOT, Cluster

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris.\n"


def chat(url: str, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", "chat", "--url", url, "--temperature", "0", *arguments]
    return subprocess.run(command, input=said, capture_output=True, text=True, timeout=60, cwd=ROOT, env=os.environ)


def test_one_question_is_answered(demo: Cluster) -> None:
    answer = chat(demo.url + "/v1", FRANCE)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, PARIS, "")


def test_a_conversation_has_a_history_and_commands(demo: Cluster) -> None:
    said = f"{FRANCE}\n/retry\n/undo\n/nonsense\n/new\n/undo\n/help\n/exit\nnever asked\n"
    answer = chat(demo.url, said=said)
    assert (answer.returncode, answer.stdout) == (0, PARIS * 2)
    lines = answer.stderr.splitlines()
    assert lines[:4] == [
        f"forgotten: {FRANCE}",
        "/nonsense is no command; /help lists them",
        "a new conversation",
        "nothing was asked yet",
    ]
    assert lines[4].startswith("/help")


def test_what_fails_is_a_sentence(demo: Cluster) -> None:
    nobody = chat("http://127.0.0.1:9", "Hi")
    assert nobody.returncode == 1 and "cannot be reached" in nobody.stderr and "--url" in nobody.stderr
    unknown = chat(demo.url, "--model", "gpt-9", "Hi")
    assert unknown.returncode == 1 and "answered 404" in unknown.stderr and "gpt-9" in unknown.stderr
    assert chat("ftp://x", "Hi").returncode == 2
    # In a conversation, the next question can be asked.
    later = chat(demo.url, "--model", "gpt-9", said="Hi\nHi\n")
    assert later.returncode == 0 and later.stderr.count("answered 404") == 2
