"""The answer in one piece, of any route that has one.

Knows HTTP and how requests are waited for; what the answer looks like is `answers.py`'s.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response

from api.answers import body_of, score_body_of
from api.cancellation import end_tasks
from api.disconnect import ClientLeft, while_connected
from api.errors import CLIENT_CLOSED_REQUEST
from api.generation import Departure, Generation
from api.image_reader import take_images
from api.request_id import HEADER
from api.services import Services
from messages import GenerationRequest


async def whole_answer(request: Request, admitted: Sequence[GenerationRequest], services: Services) -> Response:
    """Create the requests, which are those of one client's prompts, and wait for all of them. Raises RequestError."""
    is_detached = admitted[0].is_detached
    departure = Departure.LINGER if is_detached else Departure.CANCEL
    images = take_images(request.scope)
    generations = [Generation(services, each, departure, images=images) for each in admitted]

    async def answer() -> bytes:
        async with AsyncExitStack() as stack:
            for generation in generations:
                await stack.enter_async_context(generation)
            requests = [generation.request for generation in generations]
            if requests[0].kind == "score":
                return score_body_of(requests[0], await generations[0].score())
            tasks = [asyncio.create_task(generation.collect()) for generation in generations]
            try:
                collected = await asyncio.gather(*tasks)
            finally:
                await end_tasks(tasks)
            return body_of(requests, [tokens for choices in collected for tokens in choices], services)

    try:
        content = await while_connected(request.receive, answer())
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    headers = {HEADER: generations[0].request.request_id} if is_detached else None
    return Response(content, headers=headers, media_type="application/json")
