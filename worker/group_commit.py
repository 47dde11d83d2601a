"""The worker pool: whatever is waiting runs as one batch."""

import functools
import gc
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import signals
from celery.app.task import Context
from celery.concurrency.base import BasePool
from celery.exceptions import Reject
from celery.utils.log import get_logger
from celery.worker import state
from redis.exceptions import RedisError

from aries_images import contract
from aries_images.errors import InternalError
from worker.task import REVOKED, Answer, BatchTask, Delivery, jitter, pause_after

logger = get_logger(__name__)

#: Batches of each lane that a worker holds, those under way among them, so that none waits for the queue.
_WINDOWS = 2
#: Batches in a row that the lane in front may have while bulk waits: one in ten is bulk's, which never stands still.
_IN_A_ROW = 9
#: Seconds between two tries to send answers while Redis is away.
_SEND_AGAIN = 0.5
#: Seconds that one thread may keep the interpreter from the other. A batch makes some eight round trips; with Python's
#: 5 ms it would wait that long after each of them for Celery's loop, which reads the next requests meanwhile.
_SWITCH_SECONDS = 0.0005
#: Seconds that a batch under way may still take when the worker leaves. One that takes longer is left behind: its
#: requests go back to the queue, and if it commits after all they are answered from the ledger.
_LEAVE_SECONDS = 3.0
#: Characters of an outcome that Celery's events show: the names of unknown fields may be as long as the body.
_SHOWN = 200


@dataclass(slots=True, weakref_slot=True, eq=False)
class Job:
    """One request in the pool: what Celery would trace, and Celery's callbacks for it."""

    trace: Callable[..., tuple[Any, ...]]
    arguments: tuple[Any, ...]
    accepted: Callable[[int, float], None]
    finished: Callable[[tuple[int, Any, float]], None]
    #: How often it was tried and could not be decided.
    tries: int = 0
    #: By the monotonic clock, in seconds: when its first batch began, and when it is to be tried again.
    started_at: float = 0.0
    due_at: float = 0.0

    @property
    def request(self) -> dict[str, Any]:
        """Headers, arguments and the rest, as Celery's tracer gets them."""
        request: dict[str, Any] = self.arguments[2]
        return request

    @property
    def is_bulk(self) -> bool:
        """Whether it came over the queue for what can wait."""
        return (self.request.get("delivery_info") or {}).get("routing_key") == contract.BULK_QUEUE

    def terminate(self, _signal: Any) -> None:
        """A batch that runs can't be stopped; its transaction takes milliseconds."""


class _Lanes:
    """What waits, in two lanes; a batch is of one of them, so that the two share neither a transaction nor its fate."""

    def __init__(self) -> None:
        self._in_front: deque[Job] = deque()
        self._bulk: deque[Job] = deque()
        self._in_a_row = 0

    def append(self, job: Job) -> None:
        (self._bulk if job.is_bulk else self._in_front).append(job)

    def next(self) -> deque[Job]:
        """The lane that the next batch is taken from: the one in front, unless it is bulk's turn."""
        is_passed_over = bool(self._in_front and self._bulk) and self._in_a_row < _IN_A_ROW
        self._in_a_row = self._in_a_row + 1 if is_passed_over else 0
        return self._in_front if is_passed_over or not self._bulk else self._bulk

    def clear(self) -> None:
        self._in_front.clear()
        self._bulk.clear()

    def __len__(self) -> int:
        return len(self._in_front) + len(self._bulk)


_Jobs = _Lanes | deque[Job]
#: The requests of a batch that have an answer.
Decided = list[tuple[Job, Answer]]


class Pool(BasePool):  # type: ignore[misc]  # Celery has no types
    """Runs the requests of each `BatchTask` together, as many as are waiting, and all other tasks one by one.

    A batch is never waited for: it is what has come while the one before it ran, 1 to `batch_max`. `--concurrency`
    is the number of batches under way. What could not be decided, because the database is away or a row is locked,
    is tried again after a pause by a thread of its own, so that nothing else waits for it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting = _Lanes()
        self._undecided: deque[Job] = deque()
        self._lock = threading.Lock()
        #: Somebody put something into `_waiting`, or `_undecided`; or the pool closes.
        self._arrived = threading.Condition(self._lock)
        self._postponed = threading.Condition(self._lock)
        self._reports: deque[Callable[[], None]] = deque()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._wake_reader, self._wake_writer = os.pipe()
        self._has_loop = False
        self._pid = os.getpid()

    # --- Celery's side: the main thread ---

    @property
    def num_processes(self) -> int:
        """What Celery multiplies into its prefetch window."""
        return int(self.limit) * int(self.app.settings.batch_max) * _WINDOWS

    def on_start(self) -> None:
        """Start the batch threads."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        # What is there by now stays, and is most of what there ever is: the collector need not look at it each time.
        gc.collect()
        gc.freeze()
        self._threads = [
            threading.Thread(target=self._run, args=(self._waiting, self._arrived), name=f"batch-{number}", daemon=True)
            for number in range(self.limit)
        ]
        again = (self._undecided, self._postponed, self._pause)
        self._threads.append(threading.Thread(target=self._run, args=again, name="again", daemon=True))
        for thread in self._threads:
            thread.start()

    def register_with_event_loop(self, loop: Any) -> None:
        """Have Celery's callbacks run in its loop.

        Through a pipe, not `loop.call_soon`: what a callback itself puts off with `call_soon` (acknowledgements,
        events) is looked at only after the loop has waited for a file descriptor, so it must be one that wakes it.
        """
        os.set_blocking(self._wake_reader, False)
        self._has_loop = True
        loop.add_reader(self._wake_reader, self._on_woken)
        loop.on_tick.add(self._run_reports)

    def _on_woken(self) -> None:
        os.read(self._wake_reader, 4096)
        self._run_reports()

    def _run_reports(self) -> None:
        while self._reports:
            self._reports.popleft()()

    def on_apply(
        self,
        target: Callable[..., tuple[Any, ...]],
        args: Sequence[Any],
        _kwargs: dict[str, Any],
        accept_callback: Callable[..., None],
        callback: Callable[..., None],
        **_options: Any,
    ) -> Job:
        """Add a request to the waiting list."""
        job = Job(target, tuple(args), accept_callback, callback)
        with self._arrived:
            self._waiting.append(job)
            self._arrived.notify()
        return job

    def try_again(self, jobs: Sequence[Job]) -> None:
        """Take back what could not be decided; it is tried again after a pause."""
        with self._postponed:
            self._undecided += jobs
            self._postponed.notify()

    def on_close(self) -> None:
        """The worker is leaving: what is under way is finished and reported, what waits goes back to the queue."""
        with self._lock:
            self._closing = True
            self._waiting.clear()
            self._undecided.clear()
            self._arrived.notify_all()
            self._postponed.notify_all()
        deadline = time.monotonic() + _LEAVE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._run_reports()

    def on_stop(self) -> None:
        """Nothing is left to do after `on_close`."""

    def on_terminate(self) -> None:
        """The same as leaving in order: a transaction under way takes milliseconds."""
        self.on_close()

    def _get_info(self) -> dict[str, Any]:
        counts = {"waiting": len(self._waiting), "undecided": len(self._undecided)}
        return {**super()._get_info(), "batch-max": self.app.settings.batch_max, **counts}

    # --- the batch threads ---

    def _run(self, jobs: _Jobs, filled: threading.Condition, pause: Callable[[], None] | None = None) -> None:
        while batch := self._next_batch(jobs, filled, pause):
            self._run_batch(batch)

    def _run_batch(self, batch: list[Job]) -> None:
        task = self.app.tasks[batch[0].arguments[0]]
        try:
            if isinstance(task, BatchTask):
                _Batch(self, task, batch).run()
            else:
                self._run_alone(batch[0])
        except Exception:
            if len(batch) > 1:  # one of them is to blame: what is committed already is answered from the ledger
                logger.exception("a batch broke off; its requests are run one by one")
                for job in batch:
                    self._run_batch([job])
            else:
                logger.critical("a request broke off and goes back to the queue", exc_info=True)
                self.report(functools.partial(_give_back, batch[0]))

    def _next_batch(self, jobs: _Jobs, filled: threading.Condition, pause: Callable[[], None] | None) -> list[Job]:
        """What there is in `jobs`, or one lane of them, up to a full batch of one task; empty when the pool closes."""
        with self._lock:
            filled.wait_for(lambda: jobs or self._closing)
            if pause:
                pause()
            batch: list[Job] = []
            lane = jobs.next() if isinstance(jobs, _Lanes) else jobs
            while lane and not self._closing and len(batch) < self.app.settings.batch_max:
                name = lane[0].arguments[0]
                alone = not isinstance(self.app.tasks[name], BatchTask)
                if batch and (alone or name != batch[0].arguments[0]):
                    break
                batch.append(lane.popleft())
                if alone:
                    break
            return batch

    def _pause(self) -> None:
        """Wait until the first of the undecided is due; the others are tried along with it."""
        if self._undecided:
            due_at = min(job.due_at for job in self._undecided)
            self._postponed.wait_for(lambda: self._closing, max(0.0, due_at - time.monotonic()))

    def _run_alone(self, job: Job) -> None:
        started_at = time.monotonic()
        self.report(lambda: job.accepted(self._pid, started_at))
        outcome = job.trace(*job.arguments)
        self.report(lambda: job.finished(outcome))

    def report(self, callback: Callable[[], None], *, urgent: bool = True) -> None:
        """Have `callback` run where Celery expects it: in its loop if there is one, else right here.

        One that is not urgent waits until the loop turns anyway, within a second.
        """
        if not self._has_loop:
            callback()
            return
        self._reports.append(callback)
        if urgent:
            os.write(self._wake_writer, b".")

    @property
    def dead_threads(self) -> list[str]:
        """The names of threads that ended before the pool was told to."""
        return [] if self._closing else [thread.name for thread in self._threads if not thread.is_alive()]

    @property
    def closing(self) -> bool:
        """Whether the worker is leaving."""
        return self._closing


class _Batch:
    """One batch on its way through the task, the result backend and Celery's callbacks."""

    def __init__(self, pool: Pool, task: BatchTask, jobs: list[Job]) -> None:
        self._pool, self._task, self._jobs = pool, task, jobs
        self._started_at = time.monotonic()

    def run(self) -> None:
        for job in self._jobs:
            if job.request["id"] in state.revoked:  # since it was handed to the pool
                job.request[REVOKED] = True
        deliveries = [
            Delivery.of(job.request, job.request["args"], job.request["kwargs"], job.tries) for job in self._jobs
        ]
        if self._jobs[0].tries == 0:
            for job in self._jobs:
                job.started_at = self._started_at
            # Not urgent: waking the loop now would take the interpreter away from this batch, which is done in no time.
            self._pool.report(self._report_accepted, urgent=False)
            self._signal_all(signals.task_prerun, deliveries)
        outcomes = list(zip(self._jobs, self._task.answers(deliveries), strict=True))
        decided = [(job, answer) for job, answer in outcomes if answer]
        if decided and not self._send([answer for _, answer in decided]):
            return  # not acknowledged: delivered again, and answered from the ledger
        self._signal_outcomes(decided)
        self._pool.report(functools.partial(self._report_finished, decided, time.monotonic()))
        if undecided := [job for job, answer in outcomes if not answer]:
            now, spread = time.monotonic(), jitter()
            for job in undecided:
                job.due_at = now + pause_after(job.tries) * spread
                job.tries += 1
            self._pool.try_again(undecided)

    def _send(self, answers: list[Answer]) -> bool:
        """Send the answers, however long Redis is away; the leases are kept, and no more than the windows are held."""
        while True:
            try:
                self._task.backend.send_answers(answers)
            except (RedisError, OSError) as error:
                if self._pool.closing:
                    return False
                logger.warning("cannot send %d answers, trying again: %s", len(answers), error)
                time.sleep(_SEND_AGAIN)
            else:
                return True

    # --- in Celery's loop ---

    def _report_accepted(self) -> None:
        for job in self._jobs:
            job.accepted(self._pool._pid, self._started_at)  # noqa: SLF001

    def _report_finished(self, decided: Decided, finished_at: float) -> None:
        for job, answer in decided:
            runtime = finished_at - job.started_at
            if answer.failed:
                job.finished((1, _failure(answer), runtime))
            else:
                job.finished((0, answer.outcome[:_SHOWN], runtime))

    # --- Celery's signals, where anyone listens ---

    def _signal_all(self, signal: Any, deliveries: list[Delivery]) -> None:
        if signal.receivers:
            for job, delivery in zip(self._jobs, deliveries, strict=True):
                self._signal(signal, job, task_id=delivery.request_id, task=self._task)

    def _signal_outcomes(self, decided: Decided) -> None:
        for job, answer in decided:
            failure = _failure(answer) if answer.failed else None
            if failure is None and signals.task_success.receivers:
                self._signal(signals.task_success, job, result=answer.reply.document)
            if failure is not None and signals.task_failure.receivers:
                self._signal(
                    signals.task_failure,
                    job,
                    task_id=answer.reply.request_id,
                    exception=failure.exception,
                    traceback=failure.traceback,
                    einfo=failure,
                )
            if signals.task_postrun.receivers:
                self._signal(
                    signals.task_postrun,
                    job,
                    task_id=answer.reply.request_id,
                    task=self._task,
                    retval=failure.exception if failure else answer.reply.document,
                    state="FAILURE" if failure else "SUCCESS",
                )

    def _signal(self, signal: Any, job: Job, **fields: Any) -> None:
        if signal is not signals.task_success:
            fields |= {"args": job.request["args"], "kwargs": job.request["kwargs"]}
        self._task.request_stack.push(Context(job.request))  # receivers look at `task.request`
        try:
            signal.send(sender=self._task, **fields)
        finally:
            self._task.request_stack.pop()


def _give_back(job: Job) -> None:
    job.finished((1, _raised(Reject(requeue=True)), 0.0))


def _failure(answer: Answer) -> ExceptionInfo:
    return _raised(InternalError(contract.INTERNAL_ERROR.message, request_id=answer.reply.request_id))


def _raised(error: Exception) -> ExceptionInfo:
    try:
        raise error
    except type(error):
        info = ExceptionInfo()
        info.exception = error  # as it is, not in billiard's wrapper for the way between processes
        return info
