"""All documents that are made from the contract, as they have to be."""

import json
from pathlib import Path
from typing import Any

import yaml

from documents import asyncapi, error_table, page, schema_files
from gateway import openapi

CHECKOUT = Path(__file__).parents[1]
DOCS = CHECKOUT / "docs"


class _Writer(yaml.SafeDumper):
    """YAML for people: no anchors, and lines of text as lines."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text(writer: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Writer.add_representer(str, _text)


def all_documents() -> dict[Path, str]:
    """The text of each file."""
    queues = asyncapi.document()
    readmes = [CHECKOUT / "README.md", CHECKOUT / "README.zh-CN.md"]
    return {
        **{DOCS / "schemas" / f"{name}.schema.json": _json(name) for name in schema_files.FILES},
        DOCS / "asyncapi.yaml": _yaml(queues),
        DOCS / "asyncapi.html": page.html(queues),
        DOCS / "openapi.yaml": _yaml(openapi.document()),
        **{readme: error_table.with_table(readme.read_text(), number) for number, readme in enumerate(readmes)},
    }


def _json(name: str) -> str:
    schema = schema_files.standing_alone(schema_files.FILES[name])
    return json.dumps(schema, ensure_ascii=False, indent=2) + "\n"


def _yaml(document: dict[str, Any]) -> str:
    """The document in YAML, its keys in their order."""
    text = yaml.dump(document, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120)
    return f"# {schema_files.MADE_BY}\n{text}"
