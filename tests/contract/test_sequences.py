"""Requests one after the other, resent, settled, and the worker restarted in between: no answer changes for that."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from aries_images import contract
from tests.contract import wallet
from tests.contract.budget import budget
from tests.contract.exchange import Exchange, when
from tests.contract.messages import Draft, bodies, conditional, drafts, sound
from tests.contract.reading import Message
from tests.contract.wallet import Wallet
from tests.service import Service
from tests.workers import running_worker

#: Worker starts in one sequence: each takes a second or two.
_RESTARTS = 1


class Town:
    """An exchange whose worker can be made to leave, or killed, and another one started."""

    def __init__(self, service: Service, purse: Wallet) -> None:
        self.purse = purse
        self.exchange = Exchange(service, purse.proofs)
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        self._worker = self._stack.enter_context(running_worker(self.exchange.service.environment))

    def end(self, number: signal.Signals) -> None:
        os.kill(self._worker.process.pid, number)
        self._worker.process.wait(20)
        self._stack.close()


@pytest.fixture(scope="module")
def town(service: Service, purse: Wallet) -> Iterator[Town]:
    town = Town(service, purse)
    yield town
    town.end(signal.SIGKILL)
    print(f"{town.exchange.messages} messages")  # noqa: T201  # pytest's to show


class Sequences(RuleBasedStateMachine):
    """What callers do with request ids, and what happens to the worker meanwhile."""

    town: Town
    sent = Bundle("sent")

    @initialize()
    def begin(self) -> None:
        self.town.exchange.begin()
        self.number = self.restarts = 0

    def entry(self, draft: Draft, like: bytes | None = None) -> bytes:
        self.number += 1
        before = like and Message(like, {}).request_id
        return draft.entry(before or f"s{self.number}", self.town.purse)

    @rule(target=sent, draft=sound | conditional | drafts)
    def send(self, draft: Draft) -> bytes:
        entry = self.entry(draft)
        self.town.exchange.send([entry])
        return entry

    @rule(entry=sent, times=st.integers(1, 3))
    def resend(self, entry: bytes, times: int) -> None:
        self.town.exchange.send([entry] * times)

    @rule(entry=sent, body=bodies, proof=st.sampled_from(wallet.GOOD))
    def send_another_body_under_the_same_id(self, entry: bytes, body: Any, proof: str) -> None:
        self.town.exchange.send([self.entry(Draft(body, proof=proof), entry)])

    @rule(entry=sent, proof=st.sampled_from([*wallet.GOOD, *wallet.BAD]))
    def settle(self, entry: bytes, proof: str) -> None:
        about = Message(entry, {}).request_id
        body = f'[[], {{"request_id": "{about}"}}, {{}}]'
        self.town.exchange.send([self.entry(Draft(body, {"task": "image.settle"}, proof=proof)), entry])

    @rule(proof=st.sampled_from(wallet.GOOD), target=sent)
    def settle_before_it_comes(self, proof: str) -> bytes:
        entry = self.entry(Draft('[[], {"id": 1, "os_name": "late"}, {}]'))
        body = f'[[], {{"request_id": "{Message(entry, {}).request_id}"}}, {{}}]'
        self.town.exchange.send([self.entry(Draft(body, {"task": "image.settle"}, proof=proof)), entry])
        return entry

    @precondition(lambda self: self.restarts < _RESTARTS)
    @rule(
        how=st.sampled_from([signal.SIGTERM, signal.SIGKILL]),
        entries=st.lists(sent, max_size=3),
        news=st.lists(sound | conditional, min_size=1, max_size=5),
    )
    def restart_with_requests_on_their_way(self, how: signal.Signals, entries: list[bytes], news: list[Draft]) -> None:
        """Some are pushed while the worker ends, and some while there is none.

        Of a worker that is killed nobody gives the requests back, and those behind them overtake them: only one is new.
        """
        self.restarts += 1
        began, made = when(datetime.now(UTC)), [self.entry(draft) for draft in news]
        before = [*entries, *(made if how == signal.SIGTERM else made[:1])]
        after = [*entries, *map(self.entry, news)] if how == signal.SIGTERM else entries
        exchange, broker = self.town.exchange, self.town.exchange.service.broker
        broker.lpush(contract.QUEUE, *before)
        self.town.end(how)
        if after:
            broker.lpush(contract.QUEUE, *after)
        self.town.start()
        exchange.wait()
        exchange.check(before + after, began, redelivered=True)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_no_answer_changes_whatever_comes_between(town: Town) -> None:
    Sequences.town = town
    run_state_machine_as_test(Sequences, settings=budget(3, 150, steps=15))  # type: ignore[no-untyped-call]
