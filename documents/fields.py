"""A schema as a list of fields for people: name, what may stand there, and what it means."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from markupsafe import Markup, escape

Schema = dict[str, Any]

#: Patterns with such escapes say less to people than the description of the field does.
_UNREADABLE = "\\u"


class Field(NamedTuple):
    """A line of the list."""

    name: str
    required: bool
    kind: Markup
    description: str


def fields_of(schema: Schema, inside: str = "") -> Iterator[Field]:
    """The fields of an object, those of objects in it included, as `outer.inner`."""
    for name, field in schema.get("properties", {}).items():
        required = name in schema.get("required", ())
        yield Field(inside + name, required, kind_of(field), field.get("description", ""))
        yield from fields_of(field, f"{inside}{name}.")


def kind_of(schema: Schema) -> Markup:
    """What may stand there, in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return Markup('<a href="#{0}">{0}</a>').format(name)
    if "oneOf" in schema and "properties" not in schema:
        return Markup(" or ").join(kind_of(one) for one in schema["oneOf"])
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return Markup(" ").join(_code(value) for value in values)
    if "contentSchema" in schema:
        return Markup("JSON in a string: ") + kind_of(schema["contentSchema"])
    if schema.get("type") == "array":
        return _array(schema)
    return _simple(schema)


def _array(schema: Schema) -> Markup:
    if "prefixItems" in schema:
        return Markup("[{}]").format(Markup(", ").join(kind_of(item) for item in schema["prefixItems"]))
    if schema.get("maxItems") == 0:
        return Markup("<code>[]</code>")
    return Markup("array of ") + kind_of(schema["items"])


def _simple(schema: Schema) -> Markup:
    kinds = schema.get("type", "anything")
    said = escape(kinds if isinstance(kinds, str) else " or ".join(kinds))
    patterns = [one["pattern"] for one in (schema, *schema.get("allOf", ())) if "pattern" in one]
    limits = [*_limits(schema), *(Markup("<code>{}</code>").format(p) for p in patterns if _UNREADABLE not in p)]
    return Markup(", ").join([said, *limits])


def _limits(schema: Schema) -> Iterator[str]:
    if "maximum" in schema:
        yield f"{schema['minimum']} to {schema['maximum']}"
    elif "minimum" in schema:
        yield f"at least {schema['minimum']}"
    if "maxLength" in schema:
        yield f"{schema.get('minLength', 0)} to {schema['maxLength']} characters"
    if "format" in schema:
        yield str(schema["format"])


def _code(value: Any) -> Markup:
    return Markup("<code>{}</code>").format(json.dumps(value, ensure_ascii=False))
