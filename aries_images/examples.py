"""The contract by example: the seed's request and image, and a reply of every kind, made by the contract's own code."""

from datetime import UTC, datetime
from typing import Any

from aries_images import contract
from aries_images.contract import Code, Detail, Refusal, Reply, digest_of, validate

REQUEST_ID = "order-4711"
REVISION = 7
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
#: When the reply was made.
MOMENT = datetime(2024, 3, 20, 11, 30, tzinfo=UTC)

#: The seed's own.
REQUEST: dict[str, Any] = {
    "id": 1,
    "name": "CentOS-7.9-x64-updated",
    "os_type": "linux",
    "os_name": "CentOS",
    "description": "CentOS 7.9 64位基础镜像 - 更新版",
}
IMAGE = contract.image_document(
    REQUEST
    | {
        "source_path": "/path/to/image/file.iso",
        "created_at": datetime(2024, 3, 20, 10, 30, tzinfo=UTC),
        "updated_at": MOMENT,
    }
)
#: What is refused as `InvalidParameter`.
WRONG: dict[str, Any] = {"id": 1, "name": " CentOS", "os_type": "bsd", "size": 20}


def details(code: Code) -> tuple[Detail, ...]:
    """What the example of a refusal says in detail."""
    if code is contract.INVALID_PARAMETER and isinstance(refusal := validate(WRONG), Refusal):
        return refusal.details
    if code is contract.IMAGE_NAME_EXISTS:
        return (Detail("name", "taken", f"name '{REQUEST['name']}' is used by another image"),)
    return ()


def success() -> Reply:
    """The answer to the seed's request."""
    times = {name: datetime.fromisoformat(IMAGE[name]) for name in ("created_at", "updated_at")}
    return Reply.success(REQUEST_ID, digest_of(REQUEST), IMAGE | times, REVISION)


def refused(code: Code) -> Reply:
    """The answer where it is no."""
    body = WRONG if code is contract.INVALID_PARAMETER else REQUEST
    return Reply.refused(REQUEST_ID, digest_of(body), Refusal(code, details(code)), REQUEST["id"])
