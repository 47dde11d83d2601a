"""What the contract says of a body and its fields (section 2), written from it; no code is shared with the worker."""

import json
import re
import unicodedata
from typing import Any, NoReturn

Document = dict[str, Any]
#: Field, reason and sentence of one thing that is wrong; of a malformed message the sentence is free.
Detail = tuple[str | None, str, str | None]

FIELDS = ("id", "name", "os_type", "os_name", "description")
_READ_ONLY = ("source_path", "created_at", "updated_at", "revision")


class Malformed(Exception):
    """The message is no request."""


def is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def is_request_id(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[A-Za-z0-9._:-]{1,255}", value, re.ASCII) is not None


def _pairs(pairs: list[tuple[str, Any]]) -> Document:
    if len({name for name, _ in pairs}) < len(pairs):
        raise Malformed("a key twice")
    return dict(pairs)


def _no_number(name: str) -> NoReturn:
    raise Malformed(name)


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def parts_of(body: Any, most: int = 65_536, levels: int = 32) -> list[Any]:
    """`[args, kwargs, embed]`, or it is malformed."""
    if not isinstance(body, str | bytes):
        raise Malformed("no text")
    try:
        raw = body.encode() if isinstance(body, str) else body
        text = raw.decode()
        if len(raw) > most:
            raise Malformed("too large")
        parts = json.loads(text, object_pairs_hook=_pairs, parse_constant=_no_number)
        if _depth(parts) > levels:
            raise Malformed("too deep")
    except (ValueError, RecursionError) as error:
        raise Malformed("no JSON") from error
    good = isinstance(parts, list) and len(parts) == 3 and isinstance(parts[0], list) and isinstance(parts[1], dict)
    if not good or not (parts[2] is None or isinstance(parts[2], dict)):
        raise Malformed("not [args, kwargs, embed]")
    if any((parts[2] or {}).get(name) for name in ("callbacks", "errbacks", "chain", "chord")):
        raise Malformed("canvas")
    return parts


def canonical(kwargs: Document) -> bytes:
    try:
        return json.dumps(kwargs, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # a number beyond all numbers, or a lone surrogate
        raise Malformed("no JSON") from error


def _is_space(character: str) -> bool:
    return unicodedata.category(character) in ("Zs", "Zl", "Zp") or character in "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85"


def _wrong_with_text(value: Any, longest: int, shortest: int, refused: str, allowed: str = "") -> str | None:
    if not isinstance(value, str):
        return "wrong_type"
    value = unicodedata.normalize("NFC", value)
    if len(value) < shortest:
        return "too_short"
    if len(value) > longest:
        return "too_long"
    if shortest and (_is_space(value[0]) or _is_space(value[-1])):
        return "white_space"
    bad = [one for one in value if unicodedata.category(one) in refused.split() and one not in allowed]
    return "bad_character" if bad else None


def _wrong_with_id(value: Any) -> str | None:
    if type(value) is not int:
        return "wrong_type"
    return None if 1 <= value <= 9223372036854775807 else "out_of_range"


def _wrong_with_type(value: Any) -> str | None:
    if not isinstance(value, str):
        return "wrong_type"
    return None if value in ("linux", "windows") else "value_not_allowed"


def _wrong_with(name: str, value: Any) -> str | None:
    if value is None:
        return "null_not_allowed"
    if name == "id":
        return _wrong_with_id(value)
    if name == "os_type":
        return _wrong_with_type(value)
    if name == "description":
        return _wrong_with_text(value, 4096, 0, "Cc Cs", "\t\n\r")
    return _wrong_with_text(value, 255, 1, "Cc Cf Cs Co Cn Zl Zp")


def _sentence(name: str, reason: str) -> str:
    shown = name[:255]
    return {
        "missing": f"{shown} is required",
        "wrong_type": f"{shown} must be a JSON {'integer' if name == 'id' else 'string'}",
        "out_of_range": f"{shown} must be from 1 to 9223372036854775807",
        "too_short": f"{shown} must have at least 1 character",
        "too_long": f"{shown} must have at most {4096 if name == 'description' else 255} characters",
        "white_space": f"{shown} must not begin or end with white space",
        "bad_character": f"{shown} contains a character that is not allowed",
        "value_not_allowed": f"{shown} must be 'linux' or 'windows'",
        "null_not_allowed": f"{shown} must not be null; leave it out to keep the stored value",
        "read_only": f"{shown} can't be changed",
        "unknown_field": f"{shown} is not a field of an image update",
    }[reason]


def wrong_with_fields(kwargs: Document) -> list[Detail]:
    wrong = [] if "id" in kwargs else [("id", "missing")]
    wrong += [(name, reason) for name in FIELDS if name in kwargs and (reason := _wrong_with(name, kwargs[name]))]
    others = sorted(name for name in kwargs if name not in FIELDS)
    wrong += [(name, "read_only" if name in _READ_ONLY else "unknown_field") for name in others]
    return [(name, reason, _sentence(name, reason)) for name, reason in wrong]
