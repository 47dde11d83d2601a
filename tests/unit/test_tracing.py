"""OpenTelemetry is an extra: where it is not installed, or not asked for, it is not there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.workers import CHECKOUT
from worker.settings import Settings
from worker.tracing import Tracing, is_wanted, tracing_for

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    "environment",
    [ENDPOINT, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, {"OTEL_TRACES_EXPORTER": "console"}],
)
def test_opentelemetrys_own_variables_ask_for_traces(environment: dict[str, str]) -> None:
    assert is_wanted(environment)
    assert not is_wanted(environment | {"OTEL_SDK_DISABLED": "TRUE"})
    assert not is_wanted(environment | {"OTEL_TRACES_EXPORTER": "none"})


@pytest.mark.parametrize(
    "environment", [{}, {"OTEL_SERVICE_NAME": "images"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}], ids=str
)
def test_without_them_there_are_none(environment: dict[str, str]) -> None:
    assert not is_wanted(environment)


def test_an_exporter_that_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
    assert type(tracing_for(Settings())) is Tracing
    assert "there is no exporter 'carrier-pigeon' here" in caplog.text


#: A process in which OpenTelemetry is not installed: an update is sent, one is answered, and both are told of.
_WITHOUT = """
import json, sys

class NotInstalled:
    asked = []

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            frame = sys._getframe()
            while "importlib" in frame.f_code.co_filename or frame.f_globals is globals():
                frame = frame.f_back
            self.asked.append(frame.f_globals["__name__"])
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, NotInstalled())
sys.path.insert(0, ".")

from models.migrations import upgrade
from aries_images import ImageClient, OutcomeUnknown
from worker.celery import app

upgrade(app.settings.database_url)
app.loader.import_default_modules()
app.conf.task_always_eager = True
reply = app.tasks["image.update"].apply_async(kwargs={"id": 1}).get()
try:
    with ImageClient("redis://127.0.0.1:1", "redis://127.0.0.1:1") as client:
        client.update(1, timeout=0.1)
except OutcomeUnknown:
    outcome = "sent as far as possible"
loaded = [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]
print(json.dumps([reply["status"], outcome, loaded, NotInstalled.asked]))
"""


def without(folder: Path, **environment: str) -> tuple[list[Any], str]:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT],
        cwd=CHECKOUT,
        env={"ARIES_DATABASE_URL": f"sqlite:///{folder}/aries.db", "ARIES_AUTH": "off"} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found: list[Any] = json.loads(done.stdout)
    return found, done.stderr


def test_without_the_extra_nothing_of_ours_looks_for_it(tmp_path: Path) -> None:
    (status, outcome, loaded, asked), _ = without(tmp_path)
    assert (status, outcome, loaded) == (404, "sent as far as possible", [])
    assert {name.partition(".")[0] for name in asked} <= {"redis"}, "whose own figures are made with it, if it is there"


def test_a_worker_that_is_asked_for_traces_without_it_says_so_and_works(tmp_path: Path) -> None:
    (status, _, _, asked), log = without(tmp_path, **ENDPOINT)
    assert status == 404
    assert "worker.spans" in asked
    assert "no traces, for the extra `tracing` is not installed" in log
