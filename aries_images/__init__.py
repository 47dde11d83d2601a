"""Update the metadata of OS images through the queue: the client, and the contract that it keeps."""

from aries_images._answer import ReplyEvent
from aries_images._pending import PendingUpdate
from aries_images._request import ABSENT
from aries_images.client import ImageClient
from aries_images.contract import Detail, Image
from aries_images.errors import (
    AriesImagesError,
    DeadlineExceeded,
    Forbidden,
    ImageNameExists,
    ImageNotFound,
    InternalError,
    InvalidParameter,
    OutcomeUnknown,
    PreconditionFailed,
    TooManyRequests,
    Unauthorized,
)

__all__ = [
    "ABSENT",
    "AriesImagesError",
    "DeadlineExceeded",
    "Detail",
    "Forbidden",
    "Image",
    "ImageClient",
    "ImageNameExists",
    "ImageNotFound",
    "InternalError",
    "InvalidParameter",
    "OutcomeUnknown",
    "PendingUpdate",
    "PreconditionFailed",
    "ReplyEvent",
    "TooManyRequests",
    "Unauthorized",
]
