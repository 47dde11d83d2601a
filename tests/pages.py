"""The handbook as its tests read it: each block of code, and what is noted about it in comments that a reader never sees.

Notes are HTML comments right above a block, `<!-- what: value -->`, as many as there is to say:

    stays up: WORDS       the command goes on; it is up when it has printed WORDS, and gets Ctrl-C at the end of the page
    exit code: N          instead of 0
    prints: WORDS         what the block must print, among other things
    first: COMMANDS       what happens just before, so that there is something to be seen
    in place of X: COMMAND    X is an example; what COMMAND prints stands for it
    make -n: REASON       what make would do is looked at, and not done
    run by: FILE          another test runs it
    not run: REASON       nobody does
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.workers import CHECKOUT

ENGLISH, CHINESE = CHECKOUT / "README.md", CHECKOUT / "README.zh-CN.md"
#: Every page that a reader may take for the truth of today.
PAGES = (ENGLISH, CHINESE, *sorted(CHECKOUT.glob("C*.md")), *sorted(CHECKOUT.glob("docs/**/*.md")))

#: Languages of what can be run, and of what is only looked at.
PROGRAMS, DATA = {"sh", "python", "py", "js"}, {"json", "mermaid", "text"}

#: A comment that is a note.
NOTE = re.compile(r"<!-- (?P<what>.*?)(?:: (?P<value>.*?))? -->", re.DOTALL)
_PLACE = "in place of "
KINDS = {"stays up", "exit code", "prints", "first", "make -n", "run by", "not run"}


@dataclass(frozen=True)
class Block:
    """A block of code, and what is noted about it."""

    page: Path
    line: int
    language: str
    code: str
    notes: tuple[tuple[str, str], ...]

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.page.relative_to(CHECKOUT)}:{self.line}"

    def noted(self, what: str) -> list[str]:
        """The values of all notes of this kind."""
        return [value for kind, value in self.notes if kind == what]

    def note(self, what: str) -> str | None:
        """The value of the one note of this kind, if there is one."""
        return next(iter(self.noted(what)), None)

    @property
    def is_run(self) -> bool:
        """Whether what it says is to be done, by nobody else."""
        kept = self.note("run by") is not None or self.note("not run") is not None
        return self.language in PROGRAMS and not kept

    @property
    def examples(self) -> dict[str, str]:
        """For each example in the code the command that prints what stands for it."""
        return {kind.removeprefix(_PLACE): value for kind, value in self.notes if kind.startswith(_PLACE)}


@cache
def _parsed(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def blocks(page: Path) -> list[Block]:
    """Every block of code in the page, fenced or indented, from top to bottom."""
    found, above = [], ""
    for token in _parsed(page):
        if token.type in {"fence", "code_block"}:
            line, _ = token.map or (0, 0)
            notes = tuple((note["what"], note["value"] or "") for note in NOTE.finditer(above))
            found.append(Block(page, line + 1, token.info.strip(), token.content, notes))
        above = above + token.content if token.type == "html_block" else ""
    return found


def commands(code: str) -> list[str]:
    """The lines of a script without what is remarked about them."""
    return [line for line in (re.sub(r"(^|\s+)#\s.*", "", line) for line in code.splitlines()) if line]


def _inline(page: Path) -> Iterator[Token]:
    for token in _parsed(page):
        yield from token.children or ()


def inline_code(page: Path) -> list[str]:
    """What is `so` in the running text."""
    return [token.content for token in _inline(page) if token.type == "code_inline"]


def links(page: Path) -> list[str]:
    """Where the page's links and pictures lead."""
    targets = [token.attrGet("href") or token.attrGet("src") for token in _inline(page)]
    return [unquote(str(target)) for target in targets if target is not None]


def anchors(page: Path) -> set[str]:
    """What can stand behind # in a link to the page, as forges make it of the headings."""
    tokens = _parsed(page)
    headings = [inline for opening, inline in pairwise(tokens) if opening.type == "heading_open"]
    texts = ["".join(part.content for part in heading.children or ()) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}
