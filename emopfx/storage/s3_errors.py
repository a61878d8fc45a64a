"""What can go wrong with S3, in one sentence each."""

from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, NoCredentialsError

from emopfx.errors import RunError


class Taken(Exception):
    """Another object stands where one was to be written."""


class OtherContent(RunError):
    """A file's bytes are not those that its checksum says."""


class Unavailable(RunError):
    """S3 can't be used now, or not with these credentials: it would be the same for every other object."""


class Away(Unavailable):
    """S3 does not answer, or not as it should; it may soon."""


class BrokenOff(Away):
    """An answer ended before it was complete."""


@contextmanager
def explained(root: str, key: str = "") -> Iterator[None]:
    """Turn what boto3 raises into this module's errors.

    Args:
        root: The URI under which keys are.
        key: The key that is asked for, if it is one.

    Raises:
        FileNotFoundError: If there is no such object.
        EOFError: If a range begins where the object has ended.
        Taken: If an object is not the one that the request asked for.
        Unavailable: If anything else is wrong.
    """
    try:
        yield
    except ClientError as error:
        raise _meaning(error, root, key) from None
    except NoCredentialsError:
        raise Unavailable(f"{root}: boto3 found no credentials (environment, profile, role)") from None
    except (HTTPClientError, ConnectionError) as error:
        raise Away(f"{root}: {error}") from None
    except BotoCoreError as error:
        raise Unavailable(f"{root}: {error}") from None


def _meaning(error: ClientError, root: str, key: str) -> Exception:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code, message = (str(error.response.get("Error", {}).get(part, "")) for part in ("Code", "Message"))
    # NoSuchUpload: an earlier try ended it, and its answer was lost on the way.
    if status == 412 or code in ("ConditionalRequestConflict", "NoSuchUpload"):
        return Taken()
    if status == 404 and code != "NoSuchBucket":
        return FileNotFoundError(f"{root}/{key} is missing")
    if status == 416:
        return EOFError(f"{root}/{key} ends earlier")
    kind = Away if status == 429 or (status and status >= 500) else Unavailable
    return kind(f"{root}: {message or status} ({code})")
