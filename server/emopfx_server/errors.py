"""Every error leaves in OpenAI's shape, with one sentence that says what was wrong."""

import re
import reprlib
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from emopfx_server.schemas import ApiError

_KIND = re.compile(r"str|(literal|list|constrained|function|union)\b.*")
_NOT_TO_BE_RETRIED = frozenset({408, 409})  # which OpenAI's clients do by themselves; it would end the same way
_SHORT = reprlib.Repr()  # of what was sent: it may be large, or too deep for repr
_SHORT.maxstring = _SHORT.maxother = 200


def handle_errors(app: FastAPI) -> None:
    """Send every error of an API in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        if error.status in _NOT_TO_BE_RETRIED:
            headers["x-should-retry"] = "false"
        return JSONResponse(error.body(), status_code=error.status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return await refused(request, invalid_body(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 413:
            return await refused(request, ApiError(413, f"{error.detail}.", code="request_too_large"))
        if error.status_code == 400:  # FastAPI's own, where Python can't read the body
            message = "The body is not JSON in UTF-8, or is compressed, or nested too deeply."
            return await refused(request, ApiError(400, message, code="invalid_json"))
        answer = await refused(request, ApiError(error.status_code, f"{request.url.path}: {error.detail}."))
        answer.headers.update(error.headers or {})
        return answer


def invalid_body(errors: Sequence[Any]) -> ApiError:
    """The refusal of a body, by what pydantic has against it.

    Of a field that may be of several kinds there is an error for each; they are told in one sentence.
    """
    if errors[0]["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.", code="invalid_json")
    if errors[0]["type"] == "missing" and not _field(errors[0]):
        return ApiError(400, "The body is missing; send a JSON object.", code="invalid_json")
    if isinstance(errors[0]["input"], bytes):
        return ApiError(400, "The body must be sent with the content type application/json.", code="invalid_json")
    first = _field(errors[0])
    deepest = max((error for error in errors if _field(error)[: len(first)] == first), key=lambda e: len(_field(e)))
    reasons = dict.fromkeys(error["msg"] for error in errors if _field(error) == _field(deepest))
    reason = " or ".join(reasons).replace(" or Input should be ", " or ").replace("Value error, ", "")
    where = ".".join(_field(deepest))
    given = "" if deepest["type"] == "missing" else f", not {_SHORT.repr(deepest['input'])}"
    message = f"{where or 'The body'}: {reason}{given}."
    return ApiError(400, message, param=where or None, code="invalid_value")


def _field(error: Any) -> tuple[str, ...]:
    """The path of the field at fault, without pydantic's names for the kinds that it may be of."""
    return tuple(str(part) for part in error["loc"] if part != "body" and not _KIND.fullmatch(str(part)))
