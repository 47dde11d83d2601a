"""Bodies from the schema of the request: within its rules, at their borders, beyond them and beside them."""

import unicodedata
from typing import Any

from hypothesis import strategies as st

from aries_images.contract import UpdateRequest

SCHEMA: dict[str, dict[str, Any]] = UpdateRequest.model_json_schema()["properties"]
#: Images that there are, and one that there is not.
IDS = (1, 2, 3, 4, 5, 9_223_372_036_854_775_807, 77)
#: Asked for again and again, so that they are taken.
NAMES = ("image-1", "image-2", "Café", "Cafe\u0301", "\u1100\u1161", "가", "ＯＮＥ", "a b")
CATEGORIES = [
    "Lu",
    "Ll",
    "Lt",
    "Lm",
    "Lo",
    "Mn",
    "Mc",
    "Me",
    "Nd",
    "Nl",
    "No",
    "Pc",
    "Pd",
    "Ps",
    "Pe",
    "Pi",
    "Pf",
    "Po",
    "Sm",
    "Sc",
    "Sk",
    "So",
    "Zs",
    "Zl",
    "Zp",
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Cn",
]

characters = st.one_of(*(st.characters(categories=(category,)) for category in CATEGORIES))
few_characters = st.text(characters, max_size=4)
words = st.text(st.characters(categories=("Lu", "Ll", "Lo", "Nd")), min_size=1, max_size=6)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), few_characters,
    st.sampled_from([10**30, -(10**300), 1e308, 5e-324, "1", "", [], {}, [1], {"id": 1}]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(few_characters, inner, max_size=3),
    max_leaves=5,
)


def _lengths(schema: dict[str, Any]) -> list[int]:
    borders = [schema.get("minLength", 0), schema["maxLength"]]
    return sorted({length for border in borders for length in (border - 1, border, border + 1) if length >= 0})


def _texts(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    """Texts as long as is allowed and one more; every category at the edges and inside; composed and decomposed."""
    # The last but one is two characters in NFC, the one before it one.
    of_one = st.sampled_from(["a", "镜", "𠮷", "e\u0301", "\u0958", " "])
    long = st.builds(lambda one, length: one * length, of_one, st.sampled_from(_lengths(schema)))
    odd = st.builds(lambda *parts: "".join(parts), few_characters, words, few_characters)
    forms = st.builds(unicodedata.normalize, st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]), odd)
    return st.one_of(st.sampled_from(NAMES), words, long, odd, forms)


def _beside(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values at the borders of a field's schema, beyond them, and of other types."""
    if "enum" in schema:
        written = [one for word in schema["enum"] for one in (word, word.upper(), word + " ", "\n" + word, word[:-1])]
        return st.sampled_from(written) | values
    if schema["type"] == "integer":
        low, high = schema["minimum"], schema["maximum"]
        numbers = [low - 1, low, high, high + 1, -high, 2.0, float(high), str(low), True, False]
        return st.sampled_from([*IDS, *numbers]) | values
    return _texts(schema) | values


def _within(name: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return st.sampled_from(IDS) if name == "id" else st.sampled_from(NAMES) | words


valid = st.fixed_dictionaries(
    {"id": _within("id", SCHEMA["id"])},
    optional={name: _within(name, schema) for name, schema in SCHEMA.items() if name != "id"},
)
#: Of each field a value beside its rule; of others their names.
beside = st.builds(
    lambda good, odd, others: good | odd | others,
    valid,
    st.fixed_dictionaries({}, optional={name: _beside(schema) for name, schema in SCHEMA.items()}),
    st.dictionaries(
        few_characters
        | st.sampled_from(["source_path", "created_at", "updated_at", "revision", "self", "Name", "x" * 300]),
        values,
        max_size=2,
    ),
)
kwargs = st.one_of(valid, valid, valid, beside, st.dictionaries(few_characters, values, max_size=3))
