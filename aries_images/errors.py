"""What a caller can catch: one class for each code of the contract."""

from typing import Any

from aries_images.contract import CODES, Detail


class AriesImagesError(Exception):
    """Base of everything that `aries_images` raises for a request.

    Attributes:
        request_id: the id to resend or settle the request with.
        code: the contract's code, or None where no answer came.
        status: the HTTP status that goes with it, or None.
        retry: `no`, `backoff` or `new_request`; None where no answer came.
        details: what is wrong, field by field.
    """

    code: str | None = None

    def __init__(self, message: str, *, request_id: str | None = None, details: tuple[Detail, ...] = ()) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.details = details

    @property
    def status(self) -> int | None:
        """The HTTP status of the code."""
        return CODES[self.code].status if self.code else None

    @property
    def retry(self) -> str | None:
        """Whether asking again can help."""
        return CODES[self.code].retry if self.code else None


class InvalidParameter(AriesImagesError):
    """The request itself is wrong: change it."""

    code = "InvalidParameter"


class ImageNotFound(AriesImagesError):
    """There is no such image."""

    code = "ImageNotFound"


class ImageNameExists(AriesImagesError):
    """Another image has that name."""

    code = "ImageNameExists"


class InternalError(AriesImagesError):
    """A fault on our side. Send the same request id again: the answer says whether it was applied."""

    code = "InternalError"


class Unauthorized(AriesImagesError):
    """The token is missing or not valid."""

    code = "Unauthorized"


class Forbidden(AriesImagesError):
    """The token does not allow this."""

    code = "Forbidden"


class PreconditionFailed(AriesImagesError):
    """The image is no longer at the revision that `if_revision` named."""

    code = "PreconditionFailed"


class TooManyRequests(AriesImagesError):
    """Too many requests of this caller; wait and resend."""

    code = "TooManyRequests"


class DeadlineExceeded(AriesImagesError):
    """The request was taken after its deadline and will never be applied; ask anew under a new id."""

    code = "DeadlineExceeded"


class OutcomeUnknown(AriesImagesError):
    """No answer in time. Resending with the same `request_id` is always safe."""


_BY_CODE: dict[str, type[AriesImagesError]] = {
    kind.code: kind for kind in AriesImagesError.__subclasses__() if kind.code is not None
}


def error_from(request_id: str, error: dict[str, Any]) -> AriesImagesError:
    """The exception for the `error` part of a reply document."""
    details = tuple(Detail(item["field"], item["reason"], item["message"]) for item in error["details"])
    says = "; ".join(detail.message for detail in details)
    message = f"{error['code']}: {error['message']}" + (f" ({says})" if says else "")
    return _BY_CODE[error["code"]](message, request_id=request_id, details=details)
