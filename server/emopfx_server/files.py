"""The activation root: paths that can't leave it, and what lies under it."""

from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import FileResponse, JSONResponse
from starlette.types import Message, Receive, Scope, Send

from emopfx_server.schemas import ApiError


def resolve_under(root: Path, relative: str, *, param: str) -> Path:
    """The path that ``relative`` names under ``root``, links followed.

    Args:
        root: The activation root; must exist.
        relative: A relative path, with ``/`` between its parts.
        param: The request field it came from, for the error.

    Raises:
        ApiError: 400, when the path is absolute or leads out of the root.
    """
    base = root.resolve()
    if "\0" in relative or Path(relative).is_absolute():
        raise _outside(relative, param)
    try:
        path = (base / relative).resolve()
        path.exists()
    except (OSError, RuntimeError, UnicodeEncodeError) as error:  # a loop of links, a name too long, no text
        raise _outside(relative, param) from error
    if not path.is_relative_to(base):
        raise _outside(relative, param)
    return path


def _outside(relative: str, param: str) -> ApiError:
    return ApiError(
        400,
        f"{param} {relative!r} is not a usable path in the server's data folder; give a relative path inside it.",
        param=param,
        code="path_outside_root",
    )


def listing(root: Path, folder: Path) -> dict[str, Any]:
    """The folders and files in ``folder``, with the files' sizes in bytes. Hidden names are half-written work."""
    entries = [
        {
            "name": entry.name,
            "type": "directory" if entry.is_dir() else "file",
            "bytes": None if entry.is_dir() else entry.stat().st_size,
        }
        for entry in sorted(folder.iterdir())
        if not entry.name.startswith(".") and (entry.is_dir() or entry.is_file())
    ]
    return {"path": folder.relative_to(root.resolve()).as_posix(), "entries": entries}


class StoredFile(FileResponse):
    """A file, or a range of it; a range that it does not have is refused in the shape of all errors."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        refused = False

        async def send_or_refuse(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] >= 400:
                refused = True
                await self._refusal(message, scope)(scope, receive, send)
            elif not refused:
                await send(message)

        await super().__call__(scope, receive, send_or_refuse)

    def _refusal(self, message: Message, scope: Scope) -> JSONResponse:
        asked, size = Headers(scope=scope)["range"], self.headers["content-length"]
        error = ApiError(
            message["status"],
            f"Range: {asked!r:.100} names no bytes of this file, which has {size}; give a range such as 'bytes=0-99'.",
            param="Range",
            code="invalid_range",
        )
        headers = {"Content-Range": f"bytes */{size}"} if error.status == 416 else {}
        return JSONResponse(error.body(), error.status, headers)
