"""HTTP requests to come, what the page and the contract say to each, and answers read from a socket."""

import json
import operator
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from hypothesis import strategies as st

from tests.contract.messages import Draft
from tests.contract.model import MALFORMED, World, refusal
from tests.contract.rules import Document, Malformed, is_request_id, parts_of
from tests.contract.values import kwargs, valid, values
from tests.contract.wallet import GOOD, NO_TOKENS, Wallet
from tests.gateways import ROUTE, Answer

_TOO_MUCH = 65_536
_KEYS = [b"", b'""', b"a b", b"\xe9", b"x" * 256, b"a/b", b'"', b'"k-1"', b"k-1", b"k-2", b"k-3", b"k:._-" + b"x" * 249]
_TAGS = [
    b"*",
    b'"1"',
    b'"2"',
    b'"01"',
    b'W/"1"',
    b'""',
    b'"x"',
    b"1",
    b"",
    b'"1", "2"',
    b'"\xe9"',
    b'"9223372036854775808"',
    b'"-1"',
]
_PREFER = [
    b"wait=5",
    b"wait=0",
    b"wait=-1",
    b'respond-async, wait="9"',
    b"wait=",
    b'wait="',
    b"\xff",
    b"wait=99999999999",
    b"",
]
#: Headers that change nothing.
_NO_MATTER = [
    (b"Content-Encoding", b"gzip"), (b"Content-Type", b"text/plain"), (b"Content-Type", b"\xff"), (b"Accept", b"text/html"), (b"Cookie", b"\xe9=;;"),
    (b"Upgrade", b"websocket"), (b"Upgrade", b"h2c"), (b"Connection", b"Upgrade"), (b"Expect", b"x"), (b"traceparent", b"x"), (b"Range", b"bytes=0-"),
    (b"X-Forwarded-For", b"\xff"), (b"Origin", b"null"), (b"Host", b"["), (b"Host", b"a/b?c#d"), (b"X", b"y" * 60_000), (b"X-HTTP-Method-Override", b"GET"),
]  # fmt: skip
_PATHS = [
    "/", "//", ROUTE + "/", "/" + ROUTE, ROUTE + "?id=%ff", ROUTE + "#x", ROUTE.replace("a", "%61"), ROUTE + "%00", ROUTE + "/%2e%2e/image", ROUTE + ";x",
    ROUTE.upper(), "http://x" + ROUTE, "/%ff%fe", "/%zz", "/" + "x" * 9000, ROUTE + "?" + "x" * 9000,
]  # fmt: skip
_METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PATCH", "DELETE", "TRACE", "PROPFIND"]
_BODIES = [
    b"", b"{", b"null", b"[]", b"7", b'"x"', b'{"id":1,"id":1}', b'{"id":NaN}', b'{"id":1e999}', b'{"id":1,"name":"\\ud800"}', b'{"id":1,"name":"\xff"}',
    b'\xef\xbb\xbf{"id":1}', '{"id":1}'.encode("utf-16"), b'{"id":' + b"[" * 31 + b"]" * 31 + b"}", b'{"id":' + b"[" * 30 + b"]" * 30 + b"}", b"[" * 60_000,
    b'{"id":1,"x":"' + b"y" * 65_521 + b'"}', b'{"id":1,"x":"' + b"y" * 65_522 + b'"}', b'{"id":1,"x":"' + b"y" * 65_400 + b'"}', b" " * 65_528 + b'{"id":1}',
    b" " * 65_529 + b'{"id":1}', b'{"id":' + b"1" * 5000 + b"}", b"name=x&id=1", b"x" * 300_000, b'{"id":1.0}', b'{"id":"1"}', b'{"id":true}',
]  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """A request that is HTTP."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    #: Bytes of a chunk; 0: the body is sent with its length.
    chunk: int

    def raw(self, *, last: bool) -> bytes:
        headers = [*self.headers, (b"Connection", b"close")] if last else list(self.headers)
        if not any(name == b"Host" for name, _ in headers):
            headers.append((b"Host", b"x"))
        framing = (b"Transfer-Encoding", b"chunked") if self.chunk else (b"Content-Length", b"%d" % len(self.body))
        lines = [b"%s: %s" % header for header in [*headers, framing]]
        return b"\r\n".join([f"{self.method} {self.path} HTTP/1.1".encode(), *lines, b"", self._framed()])

    def _framed(self) -> bytes:
        if not self.chunk:
            return self.body
        pieces = [self.body[start : start + self.chunk] for start in range(0, len(self.body), self.chunk)]
        return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])

    def values(self, name: bytes) -> list[str]:
        return [value.decode("latin-1") for header, value in self.headers if header.lower() == name]


def _json(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass")


def asks(purse: Wallet) -> st.SearchStrategy[Ask]:
    """Requests with the tokens of this wallet: any, and ones that are sound but for a condition."""
    tokens = [f"Bearer {purse.token(kind, '', None)}".encode() for kind in GOOD]
    none = [proof.encode() for proof in NO_TOKENS if isinstance(proof, str) and proof.isprintable()]
    good = st.sampled_from(tokens).map(lambda token: [(b"Authorization", token)])
    any_ = st.lists(st.sampled_from([*tokens, *none, b"Bearer " + b"x" * 20_000]), max_size=2)
    proofs = st.one_of(good, good, any_.map(lambda found: [(b"authorization", proof) for proof in found]))
    tags = st.sampled_from([(b"If-Match", tag) for tag in _TAGS])
    others = st.one_of(
        st.sampled_from([(b"Idempotency-Key", key) for key in _KEYS]),
        tags,
        st.sampled_from([(b"Prefer", prefer) for prefer in _PREFER]),
        st.sampled_from(_NO_MATTER),
    )
    bodies = st.one_of(
        *[kwargs.map(_json)] * 3, st.sampled_from(_BODIES), values.map(_json), st.binary(max_size=20)
    )  # fmt: skip
    chunks = st.sampled_from([0, 0, 0, 1000, 7])
    methods, paths = st.sampled_from(["PUT"] * 12 + _METHODS), st.sampled_from([ROUTE] * 40 + _PATHS)
    headers = st.builds(operator.add, proofs, st.lists(others, max_size=3))
    conditions = st.builds(lambda proof, tag: [*proof, tag], good, tags)
    conditional = st.builds(Ask, st.just("PUT"), st.just(ROUTE), conditions, valid.map(_json), chunks)
    return st.builds(Ask, methods, paths, headers, bodies, chunks) | conditional


# --- what must be said ---


def _only(ask: Ask, name: bytes) -> str | None:
    found = [value.strip(" \t") for value in ask.values(name)]
    if len(found) > 1 or (found and len(found[0]) > 16_384):
        raise Malformed(name)
    return found[0] if found else None


def _key(ask: Ask) -> str | None:
    key = _only(ask, b"idempotency-key")
    if key is not None and len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if key is not None and not is_request_id(key):
        raise Malformed("key")
    return key


def _revision(ask: Ask) -> int | None:
    tag = _only(ask, b"if-match")
    if tag in (None, "*"):
        return None
    if re.fullmatch(r'(W/)?"[\x21\x23-\x7e]*"', tag or "", re.ASCII) is None:
        raise Malformed("tag")
    found = re.fullmatch('"([0-9]+)"', tag or "", re.ASCII)
    return int(found[1]) if found else -1


def _document(ask: Ask) -> Document:
    if len(ask.body) > _TOO_MUCH:
        raise Malformed("too large")
    document = parts_of(b"[[], " + ask.body + b", {}]", most=_TOO_MUCH + 10, levels=33)[1]
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    as_sent = json.dumps([[], document, embed], ensure_ascii=False, separators=(",", ":"))
    if len(as_sent.encode(errors="surrogatepass")) > _TOO_MUCH:
        raise Malformed("too large for the queue")
    return document


def expected(ask: Ask, world: World, changed_at: str, made_id: str) -> tuple[int, Document]:
    """Status and body; for 404 and 405 of another route an empty one."""
    if unquote(re.sub("^http://x|[?#].*", "", ask.path), errors="replace") != ROUTE:
        return 404, {}
    if ask.method != "PUT":
        return 405, {}
    key: str | None = None
    try:
        key = _key(ask)
        proof, revision = _only(ask, b"authorization"), _revision(ask)
        body = json.dumps([[], _document(ask), {}])
        entry = Draft(body, {} if revision is None else {"if_revision": revision}, proof=[proof]).entry(
            key or made_id, _NOBODY
        )
        document = world.expect(entry, changed_at).document
    except Malformed:
        document = refusal(key or made_id, None, "InvalidParameter", MALFORMED)
    return document["status"], document


_NOBODY: Any = None


# --- what is said ---


def answers_in(heard: bytes, methods: tuple[str, ...] = ()) -> list[Answer]:
    """The answers in what was heard; to a HEAD there is no body."""
    found: list[Answer] = []
    while heard:
        head, mark, heard = heard.partition(b"\r\n\r\n")
        assert mark, f"half an answer: {head!r}"
        first, *lines = head.decode("latin-1").split("\r\n")
        assert re.fullmatch(r"HTTP/1\.1 \d{3} [\w -]*", first, re.ASCII), first
        status = int(first[9:12])
        if status == 100:
            continue
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        is_head = len(found) < len(methods) and methods[len(found)] == "HEAD"
        size = 0 if is_head else int(headers["content-length"])
        found.append(Answer(status, headers, heard[:size]))
        heard = heard[size:]
    return found
