"""The AsyncAPI document as one page of HTML, which needs nothing but itself."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from documents.fields import Field, fields_of, kind_of

_markdown = MarkdownIt("commonmark", {"html": False})


def html(document: dict[str, Any]) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": _text, "line": _line, "json": _json, "decoded": _decoded, "named": _named}
    template = environment.get_template("page.html.jinja")
    return template.render(
        document=document,
        schemas=document["components"]["schemas"],
        messages=document["components"]["messages"],
        named=_named,
        fields=_fields,
        kind=kind_of,
    )


def _text(description: str) -> Markup:
    return Markup(_markdown.render(description))  # noqa: S704  # it has escaped what is not Markdown


def _line(description: str) -> Markup:
    return Markup(_markdown.renderInline(description))  # noqa: S704  # the same


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _decoded(example: dict[str, Any]) -> Any:
    """The body of a message, which is JSON in a string; None where there is none."""
    return json.loads(example["body"]) if "body" in example else None


def _named(reference: dict[str, str]) -> str:
    """The last part of what a reference leads to: its name."""
    return reference["$ref"].rsplit("/", 1)[-1]


def _fields(schema: dict[str, Any]) -> list[Field]:
    return [*fields_of(schema)]
