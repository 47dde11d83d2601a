"""What monitors show of an answer: one readable line, and nothing of what the image is."""

from dataclasses import replace
from typing import Any

import pytest

from aries_images import contract
from aries_images.contract import Detail, Refusal, Reply
from tests.builders import an_image
from worker.task import Answer, Delivery


def outcome(reply: Reply) -> str:
    delivery = Delivery(request_id=reply.request_id, args=(), kwargs={}, headers={})
    return Answer(reply, contract.REPLY_QUEUE, delivery, 0.0, 0.0).outcome


def refused(code: str, *details: tuple[str | None, str], **known: Any) -> Reply:
    refusal = Refusal(contract.CODES[code], tuple(Detail(field, reason, "the value") for field, reason in details))
    return Reply.refused("r-1", None, refusal, **known)


def test_a_change_is_shown_by_image_and_revision() -> None:
    reply = Reply.success("r-1", "digest", an_image(17, "a name", description="a description"), 3)
    assert outcome(reply) == "image 17, revision 3"


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        (refused("ImageNotFound", image_id=9), "ImageNotFound"),
        (refused("ImageNameExists", ("name", "taken")), "ImageNameExists: name taken"),
        (
            refused("InvalidParameter", ("id", "missing"), ("size", "unknown_field")),
            "InvalidParameter: id missing, size unknown_field",
        ),
        (refused("InvalidParameter", (None, "malformed_message")), "InvalidParameter: malformed_message"),
    ],
)
def test_a_refusal_is_shown_by_code_fields_and_reasons(reply: Reply, shown: str) -> None:
    assert outcome(reply) == shown


def test_an_answer_out_of_the_ledger_says_so() -> None:
    assert outcome(replace(refused("ImageNotFound"), replayed=True)) == "ImageNotFound (replayed)"
