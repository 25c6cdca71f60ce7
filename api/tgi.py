"""/generate and /generate_stream in the shape of Hugging Face's text-generation-inference, for who asks for it.

By the header `X-API-Style: tgi` or the setting `api.style`. Names and shapes are those of TGI's `GenerateParameters`,
`GenerateResponse` and `StreamResponse`; admission, limits and errors before a stream are LightLLM's. Pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.requests import Request

from api.errors import BadField
from api.frames import LEAST_LOGPROB, OutputToken
from api.services import Services
from errors import InvalidRequest
from messages.request import GenerationRequest
from messages.token_event import FinishReason
from settings.api import ApiSettings

STYLE = "X-API-Style"
STYLES = ("lightllm", "tgi")
MAX_NEW_TOKENS = 100  # TGI's default
SAMPLING = ("temperature", "top_k", "top_p", "typical_p")  # one of them given means sampling
UNSUPPORTED = ("typical_p", "watermark", "truncate", "top_n_tokens", "grammar", "adapter_id", "return_full_text")


def is_tgi(request: Request, settings: ApiSettings) -> bool:
    """Whether this request is TGI's. Raises InvalidRequest for a style that is not known."""
    given = request.headers.get(STYLE, settings.style).strip().lower()
    if given not in STYLES:
        raise InvalidRequest(f"{STYLE} must be one of {', '.join(STYLES)}, got {given[:40]!r}")
    return given == "tgi"


def from_tgi(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same request in LightLLM's words. Raises InvalidRequest for what cannot be honoured."""
    given = body.get("parameters") or {}
    if not isinstance(given, Mapping):
        raise InvalidRequest(f"parameters must be an object, got {type(given).__name__}")
    parameters = {name: value for name, value in given.items() if value is not None}
    for name in UNSUPPORTED:
        if parameters.pop(name, None):
            raise BadField(f"{name} is not supported yet", name)
    if "stop" in parameters:
        parameters["stop_sequences"] = parameters.pop("stop")
    # TGI's answer keeps the sequence at which it stopped.
    parameters.setdefault("include_stop_str_in_output", True)
    parameters.setdefault("max_new_tokens", MAX_NEW_TOKENS)
    parameters["do_sample"] = bool(parameters.get("do_sample")) or any(name in parameters for name in SAMPLING)
    parameters["return_details"] = bool(parameters.pop("details", False))
    if parameters.pop("decoder_input_details", False):
        parameters["prompt_logprobs"] = 0
    return {**body, "parameters": parameters}


def tgi_body(
    requests: Sequence[GenerationRequest], choices: Sequence[Sequence[OutputToken]], services: Services
) -> bytes:
    """The answer of /generate: a string, and of several choices the others in the details."""
    (request,) = requests
    best, *others = choices
    body: dict[str, object] = {"generated_text": _text(best)}
    if request.answer.with_details or others or request.sampling.num_prompt_logprobs is not None:
        details = _details(request, best, services)
        if others:
            details["best_of_sequences"] = [
                {"generated_text": _text(other), **_details(request, other, services)} for other in others
            ]
        body["details"] = details
    return orjson.dumps(body)


class TgiFrames:
    """Those of /generate_stream; the last one has all of the text."""

    def __init__(self, requests: Sequence[GenerationRequest], services: Services) -> None:
        (self._request,) = requests
        self._services = services
        self._texts: list[str] = []

    def token(self, token: OutputToken, choice: int) -> bytes:
        """See StreamFrames."""
        self._texts.append(token.text)
        frame: dict[str, object] = {
            "index": token.count,
            "token": _token(token),
            "generated_text": None,
            "details": None,
        }
        if token.finish_reason is not None:
            frame["generated_text"] = "".join(self._texts)
            frame["details"] = {
                "finish_reason": _reason(token, self._services),
                "generated_tokens": token.count,
                "seed": self._request.sampling.seed,
                "input_length": len(self._request.prompt_token_ids),
            }
        return b"data:" + orjson.dumps(frame) + b"\n\n"

    def error(self, message: str, status: int) -> bytes:
        """See StreamFrames."""
        kind = "overloaded" if status in (429, 503) else "generation"
        return b"data:" + orjson.dumps({"error": message, "error_type": kind}) + b"\n\n"


def _text(tokens: Sequence[OutputToken]) -> str:
    return "".join(token.text for token in tokens)


def _token(token: OutputToken) -> dict[str, object]:
    logprob = max(token.logprob, LEAST_LOGPROB)
    return {"id": token.token_id, "text": token.text, "logprob": logprob, "special": token.special}


def _details(request: GenerationRequest, tokens: Sequence[OutputToken], services: Services) -> dict[str, object]:
    prefill = []
    if request.sampling.num_prompt_logprobs is not None:
        logprobs: list[float | None] = [None, *(max(one.logprob, LEAST_LOGPROB) for one in tokens[0].prompt_logprobs)]
        names = services.tokenizer.names
        prefill = [
            {"id": token_id, "text": names.text(token_id), "logprob": logprob}
            for token_id, logprob in zip(request.prompt_token_ids, logprobs, strict=False)
        ]
    return {
        "finish_reason": _reason(tokens[-1], services),
        "generated_tokens": tokens[-1].count,
        "seed": request.sampling.seed,
        "prefill": prefill,
        "tokens": [_token(token) for token in tokens if token.token_id is not None],
    }


def _reason(last: OutputToken, services: Services) -> str:
    if last.finish_reason is not FinishReason.STOP:
        return str(last.finish_reason)
    return "eos_token" if last.token_id in services.facts.eos_token_ids else "stop_sequence"
