"""Messages to come: sound ones, ones with conditions, odd ones, broken ones and hostile ones."""

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tests.contract import wallet
from tests.contract.reading import Message
from tests.contract.values import few_characters, kwargs, valid, values
from tests.contract.wallet import Wallet

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Draft:
    """A message that has no id and no token yet; or, with `raw`, an entry as it stands."""

    body: Any = "[[], {}, {}]"
    headers: dict[str, Any] = field(default_factory=dict)
    properties: Any = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    #: A kind of token, or in a list the header as it stands.
    proof: Any = "orders"
    raw: bytes | None = None
    #: White space behind the body.
    more: int = 0

    def entry(self, request_id: str, purse: Wallet) -> bytes:
        """The entry, under an id of its own or under this one."""
        if self.raw is not None:
            return self.raw
        headers = {"task": "image.update", "id": request_id} | self.headers
        entry = self._written(headers)
        if isinstance(self.proof, list):
            [proof] = self.proof
        else:
            proof = "Bearer " + purse.token(self.proof, str(headers["id"]), Message(entry, {}).digest)
        return entry if proof is None else self._written(headers | {"authorization": proof})

    def _written(self, headers: dict[str, Any]) -> bytes:
        properties, body = self.properties, self.body + " " * self.more if self.more else self.body
        if isinstance(properties, dict):
            properties = {"delivery_tag": "x", "delivery_info": {"exchange": "", "routing_key": "x"}} | properties
        if isinstance(body, bytes):
            properties = properties | {"body_encoding": "base64"}
            body = base64.b64encode(body).decode()
        message = {"body": body, "content-encoding": "utf-8", "content-type": "application/json"}
        return json.dumps(message | {"headers": headers, "properties": properties} | self.others).encode()


# --- bodies ---

_GOOD = '{"id": 1, "description": "%s"}'


def _deep(levels: int) -> str:
    """A body that is nested so deep altogether: the list, the arguments, and arrays."""
    return f'[[], {{"id": 1, "x": {"[" * (levels - 2)}{"]" * (levels - 2)}}}, {{}}]'


def _long(size: int) -> str:
    """A body of so many bytes, all of them allowed in number."""
    body = f"[[], {_GOOD % 'x'}, {{}}]"
    return body + " " * (size - len(body))


_BROKEN = [
    *map(_deep, (3, 31, 32, 33, 34, 1000, 30_000)),
    *map(_long, (65_535, 65_536, 65_537, 200_000)),
    *(f"[[], {text}, {{}}]" for text in (
        '{"id": 1, "id": 1}', '{"id": 1, "\\u0069d": 2}', '{"id": 1, "x": {"y": 1, "y": 2}}', '{"id": NaN}', '{"id": 1, "x": Infinity}',
        '{"id": 1, "x": [-Infinity]}', '{"id": 1, "x": 1e999}', '{"id": 1, "name": "\\ud800"}', '{"id": 1, "\\udfff": 1}',
        '{"id": 1, "name": "\\ud83d\\udc27"}', '{"id": 1, "name": "\\udc27\\ud83d"}', '{"id": 01}', '{"id": 1,}', '{"id": +1}', '{"id": 0x1}',
        '{"id": 1e0}', '{"id": 1.0}', '{"id": -0}', '{"id": "1"}', "{'id': 1}", '{"id": 1} //', '{"id": 1, "name": "a\tb"}', "[]", "null", "7",
        '{"id": ' + "1" * 5000 + "}", '{"id": ' + "1" * 4300 + "}", "\ud800", '{"id": 1, "name": "\ud800"}',
    )),
    *(f'[{args}, {{"id": 1}}, {embed}]' for args, embed in (
        ("[1]", "{}"), ('["\\ud800"]', "{}"), ("{}", "{}"), ("null", "{}"), ("[]", "null"), ("[]", "[]"), ("[]", "{}, {}"), ("[]", '{"a": 1, "a": 1}'),
        ("[]", '{"chain": [1]}'), ("[]", '{"callbacks": [{}]}'), ("[]", '{"errbacks": {"a": 1}}'), ("[]", '{"chord": true}'), ("[]", '{"chord": []}'),
    )),
    '[[], {"id": 1}]', "[]", "{}", '{"id": 1, "name": "x"}', "null", "true", "7", '"x"', "", " ", "[", "nonsense", "\ufeff[[], {}, {}]",
]  # fmt: skip
_BYTES = [
    b"",
    b"\xff",
    b'[[], {"name": "\xff"}, {}]',
    '[[], {"id": 1}, {}]'.encode("utf-16"),
    '[[], {"name": "é"}, {}]'.encode("latin-1"),
]


def _body(arguments: dict[str, Any]) -> str:
    return json.dumps([[], arguments, {}])


def _as_bytes(arguments: dict[str, Any]) -> bytes:
    return json.dumps([[], arguments, {}], ensure_ascii=False).encode(errors="surrogatepass")


bodies = st.one_of(
    kwargs.map(_body), kwargs.map(_body), kwargs.map(_body), kwargs.map(_as_bytes), kwargs.map(_as_bytes),
    st.sampled_from(_BROKEN), st.sampled_from(_BYTES), st.binary(max_size=20), few_characters,
    values.map(lambda value: json.dumps([[], {"id": 1}, value])), values.map(json.dumps),
)  # fmt: skip

# --- the envelope ---

_TIMES = ["2001-01-01T00:00:00+00:00", "2001-01-01T00:00:00", "2999-01-01T00:00:00Z", "2999-01-01T00:00:00+08:00"]
_NO_TIMES = ["tomorrow", "", "2024-13-01T00:00:00", 1, 1e9, True, [], {}]
_REPLY_QUEUES = [
    *(f"image.replies{name}" for name in ("", ".orders", ".orders.a", ".orders.a.b-c:d", ".billing", ".billing.x", ".", "..orders", ".orders ", ".ordersx", ".orders-x")),
    "image.replies.orders." + "x" * 200, "image.replies.orders.\u955c", "image.replies.orders\x06\x163", "image.update", "celery",
    "0af76519-16cd-43dd-8448-eb211c80319c", "celery-task-meta-x", "image.update.leases", "", None, 7, True, [], {}, "\ud800",
]  # fmt: skip
#: Headers that mean something, with values that are right, wrong and odd.
_HEADERS: dict[str, list[Any]] = {
    "id": [7, 0, -1, 10**40, "a b", "a\nb", "镜像", "x" * 255, "x" * 256, "", None, True, 1.5, [], {}, "\ud800"],
    "task": ["image.settle", "image.updates", "os.system", "", None, 7, [], "\ud800"],
    "expires": [*_TIMES, *_NO_TIMES, None],
    "eta": [*_NO_TIMES, "3024-01-01T00:00:00+00:00", None],
    "if_revision": [0, 1, 2, -1, 10**30, None, True, False, 1.0, "1", "", [], {}, "\ud800"],
    "traceparent": [TRACE, TRACE.upper(), TRACE + "-x", "", 7, "\ud800"],
    "compression": ["application/x-gzip", "x", "", 0, None],
    "ignore_result": [True, False, "x", 1, None],
}
#: Headers that mean nothing to a caller, whatever is in them.
_NO_MATTER = [
    "sent_at", "group", "parent_id", "root_id", "retries", "deliveries", "timelimit", "stamps", "stamped_headers", "argsrepr",
    "malformed", "revoked", "received_at", "shadow", "lang", "origin", "group_index", "args", "kwargs", "reply_to", "hostname", "x",
]  # fmt: skip
_PROPERTIES: dict[str, list[Any]] = {
    "reply_to": _REPLY_QUEUES,
    "correlation_id": ["c-1", "镜 ", "", None, 7, True, [], "\ud800"],
    "body_encoding": ["base64", "utf-8", "x", None, 7],
}
_OTHERS: dict[str, list[Any]] = {
    "content-type": [
        "application/json",
        None,
        "application/x-python-serialize",
        "application/x-yaml",
        "text/plain",
        7,
        [],
        "\ud800",
    ],
    "content-encoding": [None, "binary", "UTF-8", "utf-16", "latin-1", 7, "\ud800"],
    "body": [None, 7, True, {}, [], {"id": 1}, [[], {"id": 1}, {}], "\ud800"],
    "properties": [None, 7, [], "x"],
    "headers": [None, 7, [], "x", {}],
}
odd_values = st.one_of(values, st.sampled_from([10**30, -1, 1e308, "\ud800", "x" * 5000, True, None]))


def _some(table: dict[str, list[Any]], most: int) -> st.SearchStrategy[dict[str, Any]]:
    pairs = [(name, value) for name, listed in table.items() for value in listed]
    return st.lists(st.sampled_from(pairs), max_size=most).map(dict)


proofs = st.one_of(
    st.sampled_from(["orders", "orders", "orders", *wallet.GOOD]),
    st.sampled_from(wallet.GOOD),
    st.sampled_from([*wallet.BAD, *wallet.BOUND, *wallet.BOUND]),
    st.sampled_from(wallet.NO_TOKENS).map(lambda proof: [proof]),
)
sound = st.builds(
    Draft, kwargs.map(_body) | kwargs.map(_as_bytes), proof=st.sampled_from(["orders", *wallet.GOOD, *wallet.BOUND])
)
odd = st.builds(
    lambda body, headers, no_matter, properties, proof: Draft(body, no_matter | headers, properties, proof=proof),
    bodies,
    _some(_HEADERS, 2),
    st.dictionaries(st.sampled_from(_NO_MATTER), odd_values, max_size=2),
    _some(_PROPERTIES, 1),
    proofs,
)
conditional = st.builds(
    lambda arguments, headers, properties, proof: Draft(_body(arguments), headers, properties, proof=proof),
    valid,
    _some({name: _HEADERS[name] for name in ("if_revision", "expires", "traceparent")}, 2),
    _some({name: _PROPERTIES[name] for name in ("reply_to", "correlation_id")}, 2),
    st.sampled_from(wallet.GOOD),
)
broken = st.builds(
    lambda arguments, others, proof, more: Draft(_body(arguments), {}, {}, others, proof, more=more),
    valid,
    _some(_OTHERS, 1),
    proofs,
    st.sampled_from([0] * 20 + [1_100_000]),
)
_RAW = [
    b"", b"x", b"\xff\xfe", b"null", b"[]", b"{}", b"7", b'"x"', b"[" * 30_000, b"1" * 5000, b'{"headers": {}}', b'{"headers": {"id": "x"',
    b'{"headers": {"task": "image.update"}, "body": "[[], {}, {}]"}', b'{"headers": {"id": "\xff"}}', b'{"headers": {"id": NaN}}',
    b'{"headers": {"id": "a", "id": ""}}', b"\x00", b'\xef\xbb\xbf{"headers": {"id": "x"}}',
]  # fmt: skip
raw = st.builds(lambda entry: Draft(raw=entry), st.sampled_from(_RAW) | st.binary(max_size=30))
settlements = st.builds(
    lambda about, proof: Draft(_body({"request_id": about}), {"task": "image.settle"}, proof=proof),
    st.sampled_from([f"r{number}" for number in range(50)] + ["never-sent", "", "a b", 7, None]),
    proofs,
)
drafts = st.one_of(sound, sound, conditional, conditional, odd, odd, broken, raw, settlements)
