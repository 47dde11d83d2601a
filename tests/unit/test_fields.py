"""Field values, good and bad: about two hundred, each with what contract.md, 2 says of it."""

import json
import unicodedata
from collections.abc import Iterable
from typing import Any

import pytest

from aries_images.contract import FIELDS, Refusal, UpdateRequest, read_body, validate
from tests.builders import SEED_BODY, tokens

MAX_ID = 2**63 - 1
#: What text fields can be given instead of text.
NOT_TEXT = [0, 1, -1, 1.5, True, False, [], ["linux"], {}, {"name": "x"}]

IDS: list[tuple[Any, str]] = [
    *[(value, "") for value in (1, 2, 100, 2**31, 2**53 + 1, MAX_ID - 1, MAX_ID)],
    *[(value, "out_of_range") for value in (0, -1, -MAX_ID, MAX_ID + 1, 2**64, 10**30, 10**4000)],
    *[(value, "wrong_type") for value in (True, False, 1.0, 0.0, 1e300, "1", "", "one", "１", [], [1], {}, {"id": 1})],
    (None, "null_not_allowed"),
]

OS_TYPES: list[tuple[Any, str]] = [
    ("linux", ""),
    ("windows", ""),
    *[
        (value, "value_not_allowed")
        for value in (
            "",
            " ",
            "Linux",
            "LINUX",
            "Windows",
            "linux ",
            " linux",
            "linux\n",
            "linux\0",
            "ｌｉｎｕｘ",
            "other",
        )
    ],
    *[(value, "wrong_type") for value in NOT_TEXT],
    (None, "null_not_allowed"),
]

#: For `name` and `os_name` alike: the value, what is wrong with it.
NAMES: list[tuple[Any, str]] = [
    # Any script, inner spaces, marks, digits, punctuation, symbols.
    *[
        (value, "")
        for value in (
            "x",
            "CentOS-7.9-x64-updated",
            "Windows Server 2022",
            "two  spaces",
            "a\u00a0b",
            "a\u3000b",
            "镜像 名称",
            "образ",
            "صورة",
            "תמונה",
            "चित्र",
            "이미지",
            "イメージ",
            "🐧",
            "𠮷",
            "'; DROP TABLE images; --",
            "<b>&amp;</b>",
            '"quoted"\\',
            "%s {0} $1",
            "null",
            "0",
            "~!@#$%^&*()_+`-={}|[]:;'<>?,./",
        )
    ],
    # Lengths count code points, after NFC.
    ("a" * 255, ""),
    ("镜" * 255, ""),
    ("𠮷" * 255, ""),
    ("e\u0301" * 255, ""),
    ("\u0958" * 127, ""),
    ("\u0958" * 128, "too_long"),
    ("e\u0301" * 256, "too_long"),
    ("a" * 256, "too_long"),
    ("镜" * 256, "too_long"),
    ("a" * 10_000, "too_long"),
    (" " * 256, "too_long"),
    ("", "too_short"),
    # White space at either end, of whatever kind; control characters among it.
    *[
        (space + "x", "white_space")
        for space in " \t\n\r\v\f\x1c\x1f\x85\u00a0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"
    ],
    *[("x" + space, "white_space") for space in " \t\n\u00a0\u2028\u3000"],
    (" ", "white_space"),
    (" x ", "white_space"),
    (" \0", "white_space"),
    # Control, format, surrogate, private-use and unassigned characters, line separators.
    *[
        (f"a{character}b", "bad_character")
        for character in (
            "\0\x01\t\n\r\x1b\x1f\x7f\x80\x85\x9f"
            "\u00ad\u061c\u200b\u200c\u200d\u200e\u202a\u202e\u2060\u2066\u2069\ufeff\U000e0001"
            "\u2028\u2029\ud800\udfff\ue000\uf8ff\U00100000\u0378\ufdd0\uffff\U0010ffff"
        )
    ],
    ("\u200bx", "bad_character"),
    ("x\ufeff", "bad_character"),
    ("\0", "bad_character"),
    ("👩\u200d💻", "bad_character"),
    *[(value, "wrong_type") for value in NOT_TEXT],
    (None, "null_not_allowed"),
]

DESCRIPTIONS: list[tuple[Any, str]] = [
    *[
        (value, "")
        for value in (
            "",
            " ",
            "  x  ",
            "\t",
            "a\nb\r\n\tc",
            "\n",
            "CentOS 7.9 64位基础镜像 - 更新版",
            "👩\u200d💻",
            "\u200b\u202e",
        )
    ],
    ("\u2028 and \ue000 and \u0378", ""),
    ("a" * 4096, ""),
    ("镜" * 4096, ""),
    ("e\u0301" * 4096, ""),
    ("a" * 4097, "too_long"),
    ("\u0958" * 2049, "too_long"),
    ("a" * 60_000, "too_long"),
    *[(f"a{character}b", "bad_character") for character in "\0\x01\x08\v\f\x0e\x1b\x1f\x7f\x80\x85\x9f\ud800\udfff"],
    *[(value, "wrong_type") for value in NOT_TEXT],
    (None, "null_not_allowed"),
]


def rows(field: str, values: Iterable[tuple[Any, str]]) -> list[Any]:
    return [
        pytest.param(field, value, reason, id=f"{field}-{number}-{reason or 'good'}")
        for number, (value, reason) in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        *rows("id", IDS),
        *rows("os_type", OS_TYPES),
        *rows("name", NAMES),
        *rows("os_name", NAMES),
        *rows("description", DESCRIPTIONS),
    ],
)
def test_a_field_value_is_taken_or_refused_for_one_reason(field: str, value: Any, reason: str) -> None:
    outcome = validate({"id": 1, field: value})
    if reason:
        assert tokens(outcome) == [(field, reason)]
        assert isinstance(outcome, Refusal)
        assert outcome.code.name == "InvalidParameter"
        assert outcome.details[0].message.startswith(f"{field} ")
        return
    assert isinstance(outcome, UpdateRequest), tokens(outcome)
    kept = unicodedata.normalize("NFC", value) if isinstance(value, str) else value
    assert getattr(outcome, field) == kept
    assert outcome.changes == ({} if field == "id" else {field: kept})


@pytest.mark.parametrize(
    ("kwargs", "wrong"),
    [
        ({}, [("id", "missing")]),
        ({"name": "x"}, [("id", "missing")]),
        ({"ID": 1}, [("id", "missing"), ("ID", "unknown_field")]),
        # Kept by the system, whatever the value.
        ({"id": 1, "source_path": "/path/to/image/file.iso"}, [("source_path", "read_only")]),
        ({"id": 1, "source_path": None}, [("source_path", "read_only")]),
        ({"id": 1, "created_at": "2024-03-20T10:30:00Z"}, [("created_at", "read_only")]),
        ({"id": 1, "updated_at": "2024-03-20T10:30:00Z"}, [("updated_at", "read_only")]),
        ({"id": 1, "revision": 1}, [("revision", "read_only")]),
        # Any other name, those of Python's own among them.
        *[({"id": 1, name: 1}, [(name, "unknown_field")]) for name in ("", " name", "Name", "self", "args", "kwargs", "镜", "\0")],
        *[({"id": 1, name: 1}, [(name, "unknown_field")]) for name in ("__class__", "model_config", "changes", "x" * 1000)],
        ({"id": 1, "z": 1, "a": 1, "m": None}, [("a", "unknown_field"), ("m", "unknown_field"), ("z", "unknown_field")]),
        ({"id": 1, "size": 1, "revision": 1, "tags": []}, [("revision", "read_only"), ("size", "unknown_field"), ("tags", "unknown_field")]),
        # Everything at once, in the order of the contract and not of the request.
        ({"name": None, "id": None}, [("id", "null_not_allowed"), ("name", "null_not_allowed")]),
        ({"description": 1, "os_name": "", "os_type": "bsd", "name": " x", "id": 0},
         [("id", "out_of_range"), ("name", "white_space"), ("os_type", "value_not_allowed"), ("os_name", "too_short"),
          ("description", "wrong_type")]),
        ({"zone": 1, "description": "\0", "source_path": "x", "os_name": "x\u200b"},
         [("id", "missing"), ("os_name", "bad_character"), ("description", "bad_character"),
          ("source_path", "read_only"), ("zone", "unknown_field")]),
    ],
)  # fmt: skip
def test_every_field_that_is_wrong_is_named_in_order(kwargs: dict[str, Any], wrong: list[tuple[str, str]]) -> None:
    assert tokens(validate(kwargs)) == wrong


@pytest.mark.parametrize(
    ("kwargs", "sentences"),
    [
        ({}, ["id is required"]),
        ({"id": "1"}, ["id must be a JSON integer"]),
        ({"id": 0}, ["id must be from 1 to 9223372036854775807"]),
        ({"id": 1, "name": 1}, ["name must be a JSON string"]),
        ({"id": 1, "name": "x" * 256}, ["name must have at most 255 characters"]),
        ({"id": 1, "os_name": ""}, ["os_name must have at least 1 character"]),
        ({"id": 1, "name": "x "}, ["name must not begin or end with white space"]),
        ({"id": 1, "name": "x\0y"}, ["name contains a character that is not allowed"]),
        ({"id": 1, "description": "x" * 4097}, ["description must have at most 4096 characters"]),
        ({"id": 1, "description": None}, ["description must not be null; leave it out to keep the stored value"]),
        ({"id": 1, "os_type": "bsd"}, ["os_type must be 'linux' or 'windows'"]),
        ({"id": 1, "source_path": "x"}, ["source_path can't be changed"]),
        ({"id": 1, "size": 1}, ["size is not a field of an image update"]),
    ],
)
def test_each_reason_has_its_sentence(kwargs: dict[str, Any], sentences: list[str]) -> None:
    outcome = validate(kwargs)
    assert isinstance(outcome, Refusal)
    assert [detail.message for detail in outcome.details] == sentences


def test_the_seeds_example_is_taken_as_it_stands() -> None:
    outcome = validate(SEED_BODY)
    assert isinstance(outcome, UpdateRequest)
    assert {"id": outcome.id, **outcome.changes} == SEED_BODY


def test_the_id_alone_changes_nothing() -> None:
    outcome = validate({"id": 1})
    assert isinstance(outcome, UpdateRequest)
    assert outcome.changes == {}


@pytest.mark.parametrize(
    ("written", "kept"), [("e\u0301", "é"), ("\u1100\u1161", "가"), ("\u212b", "Å"), ("ﬁ", "ﬁ"), ("ＡＢ", "ＡＢ")]
)
@pytest.mark.parametrize("field", ["name", "os_name", "description"])
def test_text_is_kept_in_nfc_and_not_changed_beyond_that(field: str, written: str, kept: str) -> None:
    outcome = validate({"id": 1, field: written})
    assert isinstance(outcome, UpdateRequest)
    assert outcome.changes == {field: kept}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1", ""),
        ("1.0", "wrong_type"),
        ("1e0", "wrong_type"),
        ("-0", "out_of_range"),
        ('"1"', "wrong_type"),
        ("true", "wrong_type"),
    ],
)
def test_an_id_is_judged_as_it_is_written_in_json(text: str, reason: str) -> None:
    _, kwargs, _ = read_body(f'[[], {{"id": {text}}}, {{}}]')
    assert tokens(validate(kwargs)) == ([("id", reason)] if reason else [])


def test_no_refusal_repeats_a_value() -> None:
    secret = "s3cret\0"
    outcome = validate(dict.fromkeys(FIELDS, secret) | {"source_path": secret, "size": secret})
    assert len(tokens(outcome)) == 7
    assert "s3cret" not in json.dumps(
        [str(detail) for detail in outcome.details] if isinstance(outcome, Refusal) else ""
    )
