"""A file that comes as multipart/form-data, bounded while it comes. Knows HTTP; no Redis."""

from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message

from api.errors import BadField, BodyTooLarge

MAX_FIELDS = 20
FORM_BYTES = 64 << 10  # what the form may have besides the file
MAX_NAME_CHARS = 255


@dataclass(frozen=True, slots=True)
class Upload:
    """What came. `file` is on disk once it is large; close it."""

    file: UploadFile
    filename: str
    fields: dict[str, str]


async def read_upload(request: Request, max_file_bytes: int) -> Upload:
    """The form's `file` and its other fields. Raises BodyTooLarge, BadField."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise BadField("a file is sent as multipart/form-data", "file")
    bounded = Request(request.scope, _Bounded(request, max_file_bytes + FORM_BYTES))
    try:
        form: FormData = await bounded.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=FORM_BYTES)
    except (HTTPException, MultiPartException, MultipartParseError) as error:
        raise BadField(f"the form cannot be read: {getattr(error, 'detail', error)}", "file") from None
    file = form.get("file")
    if not isinstance(file, UploadFile):
        await form.close()
        raise BadField("the form has no file of the name `file`", "file")
    if (file.size or 0) > max_file_bytes:
        await form.close()
        raise BodyTooLarge(f"the file has {file.size} bytes, at most {max_file_bytes} are allowed")
    fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    return Upload(file, (file.filename or "file")[:MAX_NAME_CHARS], fields)


class _Bounded:
    """The request's body, as long as it is not too long."""

    def __init__(self, request: Request, max_bytes: int) -> None:
        self._receive, self._left, self._max_bytes = request.receive, max_bytes, max_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > max_bytes:
            raise BodyTooLarge(f"request body has {declared} bytes, at most {max_bytes} are allowed")

    async def __call__(self) -> Message:
        message: Any = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise BodyTooLarge(f"request body has more than {self._max_bytes} bytes")
        return message  # type: ignore[no-any-return]
