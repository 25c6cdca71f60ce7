"""What is told of a request by its id: how far it is, and once it has ended, its answer.

Pure: what the record and the log say -> JSON. The answer is the one that the route that began the request would have
given, to the byte.
"""

from collections.abc import Sequence

import orjson

from api.answers import body_of, score_body_of
from api.frames import OutputToken
from api.output import Output
from api.services import Services
from broker.choice import ChoiceProgress
from errors import RequestError
from messages.request import GenerationRequest
from messages.token_event import FinishReason, TokenEvent

FINISHED = "finished"  # stands where an unfinished choice has its phase


def tokens_of(services: Services, request: GenerationRequest, events: Sequence[TokenEvent]) -> list[OutputToken]:
    """The tokens of a choice that has ended. Raises RequestError when it failed."""
    output = Output(services.tokenizer, services.facts, request.output)
    tokens: list[OutputToken] = []
    for event in events:
        tokens.append(output.feed(event))
        if tokens[-1].finish_reason is not None:
            break
    return tokens


def request_view(
    services: Services,
    request: GenerationRequest,
    progress: Sequence[ChoiceProgress],
    events: Sequence[Sequence[TokenEvent]],
) -> bytes:
    """The body of GET /requests/{id}. `events`: those of each choice that has ended."""
    rows: list[dict[str, object]] = []
    answers: list[list[OutputToken]] = []
    failure: RequestError | None = None
    for choice, state in enumerate(progress):
        if state.phase is not None:
            rows.append({"phase": state.phase, "count_output_tokens": state.num_events, "finish_reason": None})
            continue
        try:
            answers.append(tokens_of(services, request, events[choice]))
        except RequestError as error:
            failure = failure or error
            # Its last event is the failure, not a token.
            row = {"count_output_tokens": state.num_events - 1, "finish_reason": FinishReason.ERROR}
        else:
            last = answers[-1][-1]
            row = {"count_output_tokens": last.count, "finish_reason": last.finish_reason}
        rows.append({"phase": FINISHED, **row})
    view: dict[str, object] = {
        "request_id": request.request_id,
        "route": request.answer.route,
        "created_ms": request.created_ms,
        "priority": request.priority,
        "is_detached": request.is_detached,
        "prompt_tokens": len(request.prompt_token_ids),
        "is_finished": all(state.phase is None for state in progress),
        "choices": rows,
        "result": None,
        "error": None,
    }
    if failure is not None:
        view["error"] = {"status": failure.status, "message": str(failure)}
    elif view["is_finished"]:
        body = (
            score_body_of(request, events[0][-1]) if request.kind == "score" else body_of([request], answers, services)
        )
        view["result"] = orjson.Fragment(body)
    return orjson.dumps(view)
