"""The handbook against the code: what it links to, names and tells to type is there, and nothing in it is run by nobody."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from celery.bin.celery import celery as celery_command

from aries_images.cli import cli
from tests.pages import (
    CHINESE,
    DATA,
    ENGLISH,
    KINDS,
    NOTE,
    PAGES,
    PROGRAMS,
    Block,
    anchors,
    blocks,
    commands,
    inline_code,
    links,
)
from tests.workers import CHECKOUT
from worker.__main__ import commands as operators_commands

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
#: What a block begins with that nobody runs, or that tests other than that of the handbook do, and how many there are.
NOT_RUN = Counter(
    {
        ("docs/deployment.md", "docker build"): 1,
        ("docs/deployment.md", "docker compose"): 1,
        ("docs/deployment.md", "kubectl apply"): 1,
        ("docs/deployment.md", "cp deploy/systemd/*.service"): 1,
    }
)
RUN_BY_OTHERS = Counter(
    {
        ("README.md", "tests/integration/test_readme.py"): 4,
        ("docs/testing.md", "tests/integration/test_readme.py"): 1,
        ("docs/callers.md", "tests/integration/test_callers_programs.py"): 6,
    }
)
#: Only looked at: `make` itself has made the environment in which tests run.
MADE_BY_HAND = Counter({"CONTRIBUTING.md": 1, "docs/reliability.md": 1, "docs/upkeep.md": 1})
#: Of Celery's own command; Flower adds its one where it is installed.
CELERYS = {*celery_command.commands, "flower"}


def all_blocks() -> list[Block]:
    return [block for page in PAGES if page != CHINESE for block in blocks(page)]


def name(page: Path) -> str:
    return str(page.relative_to(CHECKOUT))


# --- what is run ---


@pages
def test_every_block_says_what_it_is(page: Path) -> None:
    assert [block.place for block in blocks(page) if block.language not in PROGRAMS | DATA] == []


@pages
def test_every_note_is_understood_and_stands_above_a_block(page: Path) -> None:
    notes = [(block.place, kind) for block in blocks(page) for kind, _ in block.notes]
    assert [note for note in notes if note[1] not in KINDS and not note[1].startswith("in place of ")] == []
    written = [note["what"] for note in NOTE.finditer(page.read_text())]
    assert len([what for what in written if what in KINDS or what.startswith("in place of ")]) == len(notes)


def test_what_nobody_runs_is_known() -> None:
    found = Counter()
    for block in all_blocks():
        if block.note("not run"):
            found[name(block.page), " ".join(block.code.split()[:2])] += 1
    assert found == NOT_RUN


def test_what_is_only_looked_at_is_known() -> None:
    assert Counter(name(block.page) for block in all_blocks() if block.note("make -n")) == MADE_BY_HAND


def test_what_other_tests_run_is_known_and_they_read_the_page() -> None:
    found = Counter((name(block.page), other) for block in all_blocks() if (other := block.note("run by")))
    assert found == RUN_BY_OTHERS
    for page, test in found:
        assert Path(page).name in (CHECKOUT / test).read_text() or "callers_page" in (CHECKOUT / test).read_text()


def test_both_readmes_have_the_same_commands() -> None:
    english, chinese = (
        [commands(block.code) for block in blocks(page) if block.language == "sh"] for page in (ENGLISH, CHINESE)
    )
    assert english
    assert english == chinese


# --- what is named ---


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    astray = []
    for link in links(page):
        if not link.startswith(("https:", "http:")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                astray.append(link)
    assert astray == []


def test_the_handbooks_first_page_leads_to_every_other() -> None:
    index = CHECKOUT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in links(index)}
    assert {page for page in PAGES if page.parent.name != "decisions"} - linked == {index}


@pages
def test_every_file_that_is_named_is_there(page: Path) -> None:
    named = [
        code for code in inline_code(page) if re.fullmatch(r"[\w.-]+(/[\w.*-]+)+\.(py|md|ya?ml|json|acl|lock)", code)
    ]
    kept = [file for file in named if not file.startswith("var/")]
    assert [file for file in kept if not any([*CHECKOUT.glob(file), *CHECKOUT.glob(f"docs/{file}")])] == []


def test_architecture_names_every_module() -> None:
    [folders] = [block.code for block in blocks(CHECKOUT / "docs" / "architecture.md") if block.language == "text"]
    named = {*re.findall(r"[\w]+\.py", folders)}
    described = ("aries_images", "models", "tasks", "worker", "gateway")
    modules = {file.name for folder in described for file in (CHECKOUT / folder).glob("*.py")}
    modules |= {file.name for file in CHECKOUT.glob("*.py")}
    assert {module for module in modules if not module.startswith("_")} ^ named == set()
    packages = {file.parent for file in CHECKOUT.glob("*/__init__.py")} | {CHECKOUT / "deploy"}
    assert [package.name for package in packages if f"{package.name}/" not in folders] == []


# --- what is told to type ---


@cache
def targets() -> set[str]:
    return {*re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)}


def typed(page: Path) -> Iterator[list[str]]:
    """Every command in the page, in the running text too, word by word."""
    for code in inline_code(page):
        yield (
            shlex.split(code.replace("…", ""), comments=True) if code.count('"') % 2 == code.count("'") % 2 == 0 else []
        )
    for block in blocks(page):
        if block.language == "sh":
            for line in commands(block.code):
                for part in re.split(r"\s(?:\||&&|\|\||;)\s", line):
                    try:
                        yield shlex.split(part)
                    except ValueError:  # a script of several lines, which is run
                        yield []


def misunderstood(words: list[str], group: click.Group) -> str | None:
    """What the command line cannot mean, if there is such a thing; nothing is run."""
    command: click.Command = group
    context = click.Context(command)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        if found is None:
            return words[0]
        command, words = found, words[1:]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h", "--version"}
    return next((word for word in words if word.startswith("--") and word.split("=")[0] not in known), None)


def problem(words: list[str]) -> str | None:
    """What is wrong with a command, if it is one that this code base answers for."""
    match words:
        case ["make", str(target), *_] if re.fullmatch(r"[a-z]+", target):
            return None if target in targets() else target
        case [_, "-m", "worker", *rest]:
            return misunderstood(rest, operators_commands)
        case ["aries-images", *rest] | [_, "-m", "aries_images", *rest]:
            return misunderstood(rest, cli)
        case [str(celery), *rest] if Path(celery).name == "celery":
            while rest and rest[0].startswith("-"):  # `-A worker` and the like
                rest = rest[2:]
            return rest[0] if rest and rest[0] not in CELERYS else None
    return None


@pages
def test_every_command_is_there_with_its_options(page: Path) -> None:
    assert [(wrong, " ".join(words)) for words in typed(page) if (wrong := problem(words))] == []


@cache
def names_of_tests() -> str:
    files = [file.read_text() for file in (CHECKOUT / "tests").glob("*/test_*.py")]
    return "\n".join(name for file in files for name in re.findall(r"def (test_\w+)", file))


@pages
def test_every_choice_of_tests_chooses_some(page: Path) -> None:
    expressions = re.findall(r"-k (\w+|'[^']+')", page.read_text())
    chosen = {word for expression in expressions for word in re.split(r" or | and ", expression.strip("'"))}
    files = "\n".join(file.stem for file in (CHECKOUT / "tests").glob("*/test_*.py"))
    assert [word for word in chosen if word not in names_of_tests() and word not in files] == []
