"""OpenAI's /v1/files: what batches read and write. Thin: records are in Redis, bytes in the file store.

A file belongs to the API key that made it. To all others it is as unknown as one that never was.
"""

import asyncio
import contextlib
import uuid

import orjson
from fastapi import APIRouter
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.admission import owner_of
from api.errors import RETRY_AFTER_S, BadField, InUse, NotStored, TooManyRequests, UnknownObject
from api.openai.batch_bodies import deleted_body, file_body, list_body
from api.openai.paging import page_of, read_limit
from api.openai.upload import read_upload
from api.services import Services, services_of
from broker.deadline import now_ms
from file_store import CHUNK_BYTES, FileGone, FileStore
from messages.batch import StoredFile
from telemetry import get_logger

router = APIRouter()
log = get_logger()

PURPOSE = "batch"
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 30 * 86400  # OpenAI's
MAX_LISTED = 10000


@router.post("/v1/files", response_model=None)
async def create_file(request: Request) -> Response:
    """Keep a file, until it expires or is deleted."""
    services, owner = services_of(request), owner_of(request)
    limits = services.settings.batch
    if await services.broker.files.count(owner) >= limits.max_files:
        raise InUse(f"there are {limits.max_files} files already; delete some")
    if services.uploads.locked():
        raise TooManyRequests(f"{limits.uploads_at_once} files are being uploaded here already", RETRY_AFTER_S)
    async with services.uploads:
        file = await _receive(request, services, owner)
    await services.broker.files.add(file)
    return _json(file_body(file))


async def _receive(request: Request, services: Services, owner: str) -> StoredFile:
    """The file of the form, once the store has it. Raises BodyTooLarge, BadField, NotStored."""
    limits = services.settings.batch
    try:
        upload = await read_upload(request, limits.max_file_bytes)
    except OSError as error:
        raise _not_stored(error) from None
    try:
        if (purpose := upload.fields.get("purpose")) != PURPOSE:
            raise BadField(f"purpose must be {PURPOSE!r}, got {(purpose or '')[:40]!r}", "purpose")
        file_id, created_ms = f"file-{uuid.uuid4().hex}", now_ms()
        keep_s = _expiry_s(upload.fields) or limits.keep_s
        num_bytes = await _store(services.store, file_id, upload.file)
    finally:
        await upload.file.close()
    expires_ms = created_ms + 1000 * keep_s
    return StoredFile(file_id, owner, upload.filename, PURPOSE, num_bytes, created_ms, expires_ms)


@router.get("/v1/files", response_model=None)
async def list_files(request: Request) -> Response:
    """The key's files, the newest first, or with `order=asc` the oldest."""
    query = request.query_params
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadField(f"order must be asc or desc, got {order[:40]!r}", "order")
    limit = read_limit(query.get("limit"), MAX_LISTED, MAX_LISTED)
    found = await services_of(request).broker.files.listed(owner_of(request))
    purpose = query.get("purpose")
    wanted = [file for file in found if purpose in (None, file.purpose)]
    if order == "desc":
        wanted.reverse()
    page, has_more = page_of(wanted, [file.file_id for file in wanted], query.get("after"), limit)
    return _json(list_body([file_body(file) for file in page], has_more))


@router.get("/v1/files/{file_id}", response_model=None)
async def get_file(request: Request, file_id: str) -> Response:
    """What is known of a file."""
    return _json(file_body(await find_file(request, file_id)))


@router.get("/v1/files/{file_id}/content", response_model=None)
async def get_content(request: Request, file_id: str) -> Response:
    """The bytes of a file."""
    file = await find_file(request, file_id)
    store = services_of(request).store
    try:
        (await asyncio.to_thread(store.read, file.file_id)).close()
    except FileGone:
        raise _unknown(file_id) from None
    headers = {"Content-Length": str(file.num_bytes), "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(store.chunks(file.file_id), headers=headers, media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}", response_model=None)
async def delete_file(request: Request, file_id: str) -> Response:
    """Forget a file, unless an open batch reads it."""
    services = services_of(request)
    file = await find_file(request, file_id)
    for view in await services.broker.batches.open(file.owner):
        if view.batch.input_file_id == file_id:
            raise InUse(f"batch {view.batch.batch_id} reads this file; cancel it first, or wait for its end")
    await services.broker.files.remove(file)
    await asyncio.to_thread(services.store.remove, file.file_id)
    return _json(deleted_body(file))


async def find_file(request: Request, file_id: str) -> StoredFile:
    """The file of that id, if it is its owner who asks. Raises UnknownObject."""
    found = await services_of(request).broker.files.find(file_id)
    if found is None or found.owner != owner_of(request):
        raise _unknown(file_id)
    return found


def _unknown(file_id: str) -> UnknownObject:
    return UnknownObject(f"No such File object: {file_id[:80]}")


def _expiry_s(fields: dict[str, str]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise BadField("expires_after[anchor] must be created_at", "expires_after")
    if seconds is None or not seconds.isdecimal() or not MIN_EXPIRY_S <= int(seconds[:12]) <= MAX_EXPIRY_S:
        raise BadField(f"expires_after[seconds] must be {MIN_EXPIRY_S} to {MAX_EXPIRY_S}", "expires_after")
    return int(seconds)


async def _store(store: FileStore, file_id: str, source: UploadFile) -> int:
    """Copies; the number of bytes. Leaves nothing behind when it fails. Raises NotStored."""
    num_bytes = 0
    try:
        target = await asyncio.to_thread(store.create, file_id)
        try:
            while chunk := await source.read(CHUNK_BYTES):
                num_bytes += await asyncio.to_thread(target.write, chunk)
        finally:
            await asyncio.to_thread(target.close)
    except BaseException as error:
        with contextlib.suppress(*store.failures):
            await asyncio.to_thread(store.remove, file_id)
        if isinstance(error, store.failures):
            raise _not_stored(error) from None
        raise
    return num_bytes


def _not_stored(error: Exception) -> NotStored:
    log.error("file_not_stored", reason=str(error))
    return NotStored(error)


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
