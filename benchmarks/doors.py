"""The doors that callers come in by: the gateway beside the client, beside threads that wait, and the bulk command."""

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from aries_images import ImageClient
from benchmarks.modes import Figures, drain
from benchmarks.site import CONTENDERS, Request, Site, cpu, requests, tree
from gateway.openapi import PATH
from worker.embedded import PATIENCE, end_child, free_port, start_child

_GATEWAY = ("gateway",)
_THREADS = ("uvicorn", "benchmarks.threads:app", "--no-access-log")
#: Of the one caller, by each door, after the first ones, which open connections.
_CALLS = 300
_CONNECTIONS, _SECONDS = 200, 8.0
_FILE = 100_000
#: From one look at the memory of the bulk command to the next, in seconds.
_LOOK_EVERY = 0.2


# --- one caller ------------------------------------------------------------------------------------------------------


def one_caller(site: Site, _folder: Path) -> dict[str, Figures]:
    """One caller who waits for each answer, by turns over HTTP and with the client."""
    site.clear()
    asked = requests(2 * _CALLS, site.rows)
    with site.worker(CONTENDERS[0]), _serving(site, _GATEWAY) as (port, _), closing(_client(site)) as client:
        http = socket.create_connection(("127.0.0.1", port))
        _put(http, asked[0])
        client.update(**_fields(asked[1]))
        pairs = [
            (_timed(_put, http, over_http), _timed(client.update, **_fields(in_python)))
            for over_http, in_python in zip(asked[2::2], asked[3::2], strict=True)
        ]
        http.close()
    return {"gateway": _times([pair[0] for pair in pairs]), "ImageClient": _times([pair[1] for pair in pairs])}


def _client(site: Site) -> ImageClient:
    return ImageClient(site.urls["ARIES_BROKER_URL"], site.urls["ARIES_RESULT_URL"])


def _fields(request: Request) -> dict[str, Any]:
    return {"id": request.image, "name": f"n-{request.id}", "description": "benchmark"}


def _put(http: socket.socket, request: Request) -> None:
    """One HTTP request and its answer, read as far as it must be: what other clients cost is not the gateway's."""
    http.sendall(_http_request(request))
    answer = http.recv(65536)
    while _is_cut_off(answer):
        answer += http.recv(65536)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise OSError(f"{answer!r}")


def _is_cut_off(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    return not end or len(body) < int(head.lower().partition(b"content-length: ")[2].split()[0])


def _http_request(request: Request) -> bytes:
    body = json.dumps(_fields(request)).encode()
    head = f"PUT {PATH} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _timed(call: Callable[..., Any], *words: Any, **named: Any) -> float:
    begun = time.perf_counter()
    call(*words, **named)
    return (time.perf_counter() - begun) * 1000


def _times(milliseconds: Sequence[float]) -> Figures:
    return {
        "p50 ms": statistics.median(milliseconds),
        "p99 ms": statistics.quantiles(milliseconds, n=100)[98],
    }


# --- two hundred connections -----------------------------------------------------------------------------------------


def many_connections(site: Site, _folder: Path) -> dict[str, Figures]:
    """Two hundred connections, kept open, each of which asks again when it is answered; one process serves them."""
    return {"gateway": _flood(site, _GATEWAY), "threads and AsyncResult.get": _flood(site, _THREADS)}


def _flood(site: Site, application: Sequence[str]) -> Figures:
    site.clear()
    context = get_context("spawn")
    with site.worker(CONTENDERS[0]), _serving(site, application) as (port, gateway):
        answered = context.Queue()
        caller = context.Process(target=_load, args=(port, site.rows, answered))
        before = cpu(tree(gateway))
        caller.start()
        took, errors = answered.get()
        caller.join()
        used = cpu(tree(gateway)) - before
        figures: Figures = {
            "requests/s": len(took) / _SECONDS,
            **_times(took),
            "gateway ms": used / len(took) * 1000,
            "gateway MiB": sum(process.memory_info().rss for process in tree(gateway)) >> 20,
        }
    return figures | ({"void": f"{sum(errors.values())} errors: {errors}"} if errors else {})


def _load(port: int, rows: int, answered: Any) -> None:
    """A process with all connections; puts how long each answer took, and how often which other status came."""
    took: list[float] = []
    errors: dict[int, int] = {}

    async def caller(number: int, until: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (begun := time.perf_counter()) < until:
            [request] = requests(1, 1)
            writer.write(_http_request(Request(request.id, number % rows + 1)))
            status = await _read_answer(reader)
            if status == 200:  # noqa: PLR2004  # HTTP's
                took.append((time.perf_counter() - begun) * 1000)
            else:
                errors[status] = errors.get(status, 0) + 1
        writer.close()

    async def main() -> None:
        until = time.perf_counter() + _SECONDS
        await asyncio.gather(*(caller(number, until) for number in range(_CONNECTIONS)))

    asyncio.run(main())
    answered.put((took, errors))


async def _read_answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    await reader.readexactly(length)
    return int(head.split()[1])


# --- a file ----------------------------------------------------------------------------------------------------------


def a_file(site: Site, folder: Path) -> dict[str, Figures]:
    """The bulk command with a file; and as many requests that wait in the queue already."""
    asked = requests(_FILE, site.rows)
    file, replies = folder / "updates.jsonl", folder / "replies.jsonl"
    file.write_text("".join(json.dumps({**_fields(each), "request_id": each.id}) + "\n" for each in asked))
    replies.unlink(missing_ok=True)
    site.clear()
    command = [sys.executable, "-m", "aries_images", "apply", str(file), "--out", str(replies)]
    with site.worker(CONTENDERS[0]):
        begun = time.perf_counter()
        with psutil.Popen(command, env=os.environ | site.urls, stderr=subprocess.DEVNULL) as process:
            used, memory = _watch(process)
        took = time.perf_counter() - begun
    wrong = site.check(asked) if process.returncode == 0 else f"the command ended with {process.returncode}"
    applied: Figures = {
        "updates/s": _FILE / took,
        "client ms": used / _FILE * 1000,
        "client MiB, after a quarter": memory[len(memory) // 4],
        "client MiB, at most": max(memory),
    }
    return {
        "aries-images apply": applied | ({"void": wrong} if wrong else {}),
        "drain": drain(site, CONTENDERS[0], _FILE),
    }


def _watch(process: psutil.Popen) -> tuple[float, list[int]]:
    """CPU seconds of a process until it ends, and its memory in MiB from look to look."""
    used, memory = 0.0, []
    with suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            used = cpu([process])
            memory.append(process.memory_info().rss >> 20)
            time.sleep(_LOOK_EVERY)
    process.wait()
    return used, memory


@contextmanager
def _serving(site: Site, application: Sequence[str]) -> Iterator[tuple[int, psutil.Process]]:
    """An HTTP server with one process, on a port; and that process."""
    port = free_port()
    words = [sys.executable, "-m", *application, f"--port={port}"]
    server = start_child(words, env=os.environ | site.urls, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE
        while not _listens(port):
            if time.monotonic() > until:
                raise TimeoutError(f"{application[-1]} did not start")
            time.sleep(0.05)
        yield port, psutil.Process(server.pid)
    finally:
        end_child(server, signal.SIGTERM)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


#: What can be measured here; in each the last contender is the one that the other is held against.
DOORS: dict[str, Callable[[Site, Path], dict[str, Figures]]] = {
    "http": one_caller,
    "http, 200 connections": many_connections,
    "file": a_file,
}
