"""What can go wrong with S3, in one sentence each."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, NoCredentialsError

from emopfx.errors import RunError

# What is wrong with the bucket or with the credentials, and would be with every other object.
OF_ALL_OBJECTS = {
    *("NoSuchBucket", "InvalidBucketName", "PermanentRedirect", "AuthorizationHeaderMalformed", "InvalidAccessKeyId"),
    *("SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed"),
    *("AllAccessDisabled", "AccountProblem", "NotSignedUp"),
}
# A user and a password in an address, as boto3's own settings may have them.
USER_INFO = re.compile(r"//[^/\s]*@")


class Taken(Exception):
    """Another object stands where one was to be written, or was read."""


class OtherContent(RunError):
    """A file's bytes are not those that its checksum says."""


class Refused(RunError):
    """S3 does not do what it was asked to do with one object."""


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
        Refused: If something else is wrong with this object.
        Unavailable: If anything else is wrong.
    """
    try:
        yield
    except ClientError as error:
        raise _meaning(error, root, key) from None
    except NoCredentialsError:
        raise Unavailable(f"{root}: boto3 found no credentials (environment, profile, role)") from None
    except (HTTPClientError, ConnectionError) as error:
        if "Invalid header value" in str(error):  # which it would go on to show
            raise Unavailable(f"{root}: the credentials hold what no header may, such as the end of a line") from None
        raise Away(f"{root}: {without_user(str(error))}") from None
    except BotoCoreError as error:
        raise Unavailable(f"{root}: {without_user(str(error))}") from None


def without_user(text: str) -> str:
    """Return a text without the users and passwords of the addresses in it."""
    return USER_INFO.sub("//", text)


def _meaning(error: ClientError, root: str, key: str) -> Exception:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code, message = (str(error.response.get("Error", {}).get(part, "")) for part in ("Code", "Message"))
    # NoSuchUpload: an earlier try ended it, and its answer was lost on the way.
    if status == 412 or code in ("ConditionalRequestConflict", "NoSuchUpload"):
        return Taken()
    if status == 404 and code not in OF_ALL_OBJECTS:
        return FileNotFoundError(f"{root}/{key} is missing")
    if status == 416:
        return EOFError(f"{root}/{key} ends earlier")
    said = f"{without_user(message) or status} ({code})"
    if status == 429 or code in ("SlowDown", "RequestTimeout") or (status and status >= 500):
        return Away(f"{root}: {said}")
    if code in OF_ALL_OBJECTS or not key:
        return Unavailable(f"{root}: {said}")
    return Refused(f"{root}/{key}: {said}")
