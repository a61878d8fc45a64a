"""Why the engine refuses a request, or fails it."""

import errno
import shutil
from pathlib import Path

from emopfx_server.engine.interventions import LIMIT
from emopfx_server.engine.writer import TAKEN
from emopfx_server.schemas import ApiError

_RETRY_SECONDS = 5


def check_disk(folder: Path, needed: int) -> None:
    """Check that there is room for what runs.

    Raises:
        ApiError: 507 when there is not.
    """
    existing = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ApiError(
            507,
            f"The disk has {free:,} bytes left; what runs may need, and is to leave, {needed:,}.",
            code="insufficient_storage",
        )


def write_failed(error: Exception) -> ApiError:
    """What a failed write is: a conflict, a full disk, or something else."""
    number = getattr(error, "errno", None)
    if number in TAKEN:
        return ApiError(
            409,
            "The folder for this request's files was taken by another request meanwhile; name a new one.",
            param="ndif.save_dir",
            code="conflict",
        )
    full = number == errno.ENOSPC or "StorageFull" in str(error) or "code: 28" in str(error)
    return ApiError(
        507 if full else 500,
        f"The activations could not be written: {error}.",
        code="insufficient_storage" if full else "write_failed",
    )


def capture_too_large(size: int, limit: int) -> ApiError:
    """Of a request that could never be let in."""
    return ApiError(
        400,
        f"This request may capture {size:,} bytes, and the server holds at most {limit:,}; "
        "ask for fewer layers, hook points, positions or tokens.",
        param="ndif",
        code="capture_too_large",
    )


def queue_full(waiting: int) -> ApiError:
    """Of a request that would wait behind too many."""
    message = f"{waiting:,} requests wait already, and no more may; try again shortly."
    return ApiError(429, message, code="queue_full", retry_after=_RETRY_SECONDS)


def overflowed() -> ApiError:
    """Of a request whose interventions went out of bounds."""
    return ApiError(
        400,
        f"The interventions drive the activations beyond {LIMIT:.0e}; use smaller vectors or scales.",
        param="ndif.interventions",
        code="intervention_overflow",
    )


def too_late(seconds: float | None) -> ApiError:
    """Of a request that took longer than it may."""
    return ApiError(408, f"The answer was not there within {seconds:g} seconds.", code="deadline_exceeded")


def draining() -> ApiError:
    """Of a request that comes, or waits, when the server ends."""
    return ApiError(503, "The server is shutting down; try again shortly.", code="draining", retry_after=_RETRY_SECONDS)
