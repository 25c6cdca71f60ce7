"""Where a request is let in or refused: forecast.py and broker/backlog.py decide, this file feeds them.

Twice: by what the last creation of this process found, before anything is spent on the request; and in the creation
itself, where Redis judges by what waits at that moment, whichever API process put it there. Knows no HTTP.
"""

import time
from collections.abc import Mapping

from api.cluster_view import ClusterView
from api.forecast import Asked, retry_after_s, room_for, supply_of
from broker.backlog import Backlog, Refused, refusal
from broker.deadline import now_ms
from broker.request_log import RequestLog
from messages import GenerationRequest
from settings import QueueSettings

KNOWN_FOR_S = 0.1  # how long what a creation found is taken for true


class Gate:
    """One per API process."""

    def __init__(self, requests: RequestLog, view: ClusterView, settings: QueueSettings) -> None:
        self._requests, self._view, self._settings = requests, view, settings
        self._backlog = Backlog()
        self._known_until_s = 0.0

    async def check(self, asked: Asked) -> None:
        """A look beforehand, at what is known already. Raises Refused, RedisError."""
        if time.monotonic() >= self._known_until_s:
            return
        supply = supply_of(await self._view.workers())
        room = room_for(asked, supply, self._settings)
        reason = refusal(self._backlog, asked.priority, asked.num_choices, room)
        if reason is not None:
            refused = Refused(reason, self._backlog)
            refused.retry_after_s = retry_after_s(reason, self._backlog, asked, room, supply)
            raise refused

    async def create(self, request: GenerationRequest, images: Mapping[bytes, bytes]) -> None:
        """Create the request, with the bytes of its images by digest, if there is room. Raises Refused, InvalidRequest
        (its id is in use), RedisError."""
        timeout_s = (request.deadline_ms - now_ms()) / 1000 if request.deadline_ms else None
        asked = Asked(request.priority, request.n, len(request.prompt_token_ids), timeout_s)
        supply = supply_of(await self._view.workers())
        room = room_for(asked, supply, self._settings)
        try:
            backlog = await self._requests.create(request, room=room, images=images)
        except Refused as refused:
            self._know(refused.backlog)
            refused.retry_after_s = retry_after_s(refused.reason, refused.backlog, asked, room, supply)
            raise
        self._know(backlog.plus(asked.priority, asked.num_choices, asked.num_choices * asked.prompt_tokens))

    def _know(self, backlog: Backlog) -> None:
        self._backlog, self._known_until_s = backlog, time.monotonic() + KNOWN_FOR_S
