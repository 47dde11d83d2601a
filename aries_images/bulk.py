"""Many updates in one go: lines read from a file, and a file of replies that a later run goes on from."""

import csv
import hashlib
import json
import os
import re
import secrets
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from aries_images import contract
from aries_images.contract import Detail, Image
from aries_images.errors import AriesImagesError, InvalidParameter

if sys.platform != "win32":
    import fcntl

#: What a line can have beside the seed's fields.
REQUEST_ID = "request_id"
_NOT_IN_BODY = (REQUEST_ID, contract.IF_REVISION)
_INTEGERS = ("id", contract.IF_REVISION)
#: Requests under way at a time, where nothing else is said.
WINDOW = 1000
#: The code of success, where codes are counted.
APPLIED = "OK"
#: Bytes of a line that are kept to tell it from others; more than any request has.
_LONGEST_LINE = 16 * contract.MAX_BODY_BYTES
#: An id that was made here: the run, the place of the line, and what it says.
_MADE_HERE = re.compile(r"([0-9a-f]{16})\.[0-9]+\.[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class UnreadableLine:
    """A line that is no request; it gets a reply that says so."""

    why: str
    #: What stands there, or the beginning of it.
    raw: bytes


BulkLine = Mapping[str, Any] | UnreadableLine


# --- the lines -------------------------------------------------------------------------------------------------------


def read_lines(file: Path) -> Iterator[BulkLine]:
    """The lines of a file: JSON objects, or, if its name ends in `.csv`, rows under a row of names.

    Each has the seed's fields, and `request_id` and `if_revision` if wanted. Empty lines are passed over; an empty
    cell of a CSV file is a field that is not sent.

    Raises:
        OSError: the file can't be read.
    """
    if file.suffix.lower() == ".csv":
        # What is not UTF-8 becomes lone surrogates, which no request can have: that row is refused, and no other.
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as text:
            yield from _rows(csv.DictReader(text, restkey="", strict=True))
    else:
        with file.open("rb") as binary:
            yield from (_object(line) for line in _whole_lines(binary) if line.strip())


def _rows(reader: "csv.DictReader[str]") -> Iterator[BulkLine]:
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield UnreadableLine(str(error), str(reader.line_num).encode())
        else:
            if any(row.values()):
                yield {name: _cell(name, cell) for name, cell in row.items() if cell}


def _cell(name: str, cell: Any) -> Any:
    integer = name in _INTEGERS and re.fullmatch(r"-?[0-9]{1,20}", cell, re.ASCII)
    return int(cell) if integer else cell


def _whole_lines(binary: BinaryIO) -> Iterator[bytes]:
    """Lines, without what is too much of them."""
    while line := binary.readline(_LONGEST_LINE):
        yield line
        while len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            line = binary.readline(_LONGEST_LINE)


def _object(line: bytes) -> BulkLine:
    try:
        found = contract.read_json(line.strip())
    except contract.MalformedMessageError as error:
        return UnreadableLine(str(error), line)
    return found if isinstance(found, dict) else UnreadableLine("not a JSON object", line)


# --- the requests ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BulkRequest:
    """One request among many."""

    request_id: str
    body: Mapping[str, Any]
    if_revision: Any = None
    #: Why it can't be sent.
    refusal: InvalidParameter | None = None


def request_in(line: BulkLine, place: int, run: str) -> BulkRequest:
    """The request that a line is.

    Without a `request_id` it gets one that is made of the run, its place and what it says: the same line, sent again
    by the same run, is the same request.
    """
    if isinstance(line, UnreadableLine):
        request_id = f"{run}.{place}.{hashlib.sha256(line.raw).hexdigest()[:16]}"
        return _malformed(line.why, request_id)
    given = line.get(REQUEST_ID)
    if given is not None and not contract.is_request_id(given):
        return _malformed(contract.REQUEST_ID_RULE, str(given))
    try:
        says = contract.digest_of(line)
    except contract.MalformedMessageError as error:
        raw = repr(line).encode(errors="backslashreplace")
        return _malformed(str(error), given or f"{run}.{place}.{hashlib.sha256(raw).hexdigest()[:16]}")
    body = {name: value for name, value in line.items() if name not in _NOT_IN_BODY}
    return BulkRequest(given or f"{run}.{place}.{says[:16]}", body, line.get(contract.IF_REVISION))


def new_run() -> str:
    """A name for a run, which becomes part of the request ids that are made in it."""
    return secrets.token_hex(8)


def _malformed(why: str, request_id: str) -> BulkRequest:
    detail = Detail(None, "malformed_message", why)
    refusal = InvalidParameter(f"InvalidParameter: {why}", request_id=request_id, details=(detail,))
    return BulkRequest(request_id, {}, refusal=refusal)


# --- the replies -----------------------------------------------------------------------------------------------------


def reply_document(request_id: str, digest: str | None, outcome: Image | AriesImagesError) -> dict[str, Any]:
    """The reply document (contract 4) of a request that ended so."""
    head = {"request_id": request_id, "digest": digest}
    if isinstance(outcome, Image):
        image = contract.image_document(outcome.model_dump())
        return head | {"status": 200, "image": image, "revision": outcome.revision}
    code = contract.CODES[outcome.code or contract.INTERNAL_ERROR.name]
    details = [detail._asdict() for detail in outcome.details]
    error = {"code": code.name, "message": code.message, "retry": code.retry, "details": details}
    return head | {"status": code.status, "error": error}


def code_of(document: Mapping[str, Any]) -> str:
    """The code of a reply document, or `APPLIED`."""
    code: str = document["error"]["code"] if "error" in document else APPLIED
    return code


_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class ReplyFile:
    """A reply document a line: those of earlier runs are read, those of this run are added.

    What has its reply here is not sent again, unless that reply is one that the request ledger does not keep, so that
    sending it again can end otherwise (contract 4, column "stored"). A last line that was cut off, when a run was
    killed, is dropped. The name of the run is in the request ids that it made; until there is a reply with such an id
    it stands in a file beside, `….run`. To send the same lines as new requests, begin a new file.

    Raises:
        ValueError: there is something else in the file, or another process writes to it; nothing was changed.
        OSError: it can't be read or written.
    """

    def __init__(self, file: Path) -> None:
        #: Code -> how many requests of this run have ended so, in it or earlier.
        self.codes: Counter[str] = Counter()
        self._ends: dict[str, str] = {}
        self._run_is_told = False
        self._beside = file.with_name(file.name + ".run")
        earlier = file.exists()
        self.run = self._beside.read_text().strip() if earlier and self._beside.exists() else new_run()
        if not earlier:
            _write(self._beside, self.run)
        self._file = file.open("a+b")
        try:
            _lock(self._file)
            self._read()
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, 1):
            if line.endswith(b"\n"):
                request_id, self._ends[request_id] = _end_in(line, number)
                whole += len(line)
        made_here = next(filter(None, map(_MADE_HERE.fullmatch, self._ends)), None)
        if made_here:
            self.run, self._run_is_told = made_here[1], True
        elif whole or not self._beside.exists():
            _write(self._beside, self.run)
        self._file.truncate(whole)

    def recall(self, request_id: str) -> bool:
        """Whether the request was answered for good, earlier; then that counts."""
        end = self._ends.get(request_id)
        answered = end is not None and (end == APPLIED or contract.CODES[end].stored)
        if answered and end is not None:
            self.codes[end] += 1
        return answered

    def add(self, documents: Iterable[Mapping[str, Any]]) -> None:
        """Write replies down; they are safe from the end of this process when this returns."""
        for document in documents:
            self._file.write(_dumps(document).encode(errors="backslashreplace") + b"\n")
            self.codes[code_of(document)] += 1
            self._run_is_told = self._run_is_told or document[REQUEST_ID].startswith(f"{self.run}.")
        self._file.flush()

    def close(self) -> None:
        """Write everything to the disk and close the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._run_is_told:
            self._beside.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _write(file: Path, text: str) -> None:
    with file.open("w") as opened:
        opened.write(text + "\n")
        opened.flush()
        os.fsync(opened.fileno())


def _lock(file: BinaryIO) -> None:
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError("another process writes to the file of replies") from None


def _end_in(line: bytes, number: int) -> tuple[str, str]:
    try:
        document = json.loads(line)
        request_id, code = document[REQUEST_ID], code_of(document)
        known = isinstance(request_id, str) and (code == APPLIED or code in contract.CODES)
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise ValueError(f"line {number} of the replies is not a reply")
    return request_id, code
