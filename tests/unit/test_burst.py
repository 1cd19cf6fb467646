"""The decision when to check and when to update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kdumphpd.config import Config, UpdateConfig
from kdumphpd.events.burst import MAX_RESTARTS, Action, Burst, Outcome, Pace

MS = 1_000
S = 1_000_000
PACE = Pace(interval_usec=500 * MS, settle_usec=10 * S, audit_usec=3600 * S)


T = TypeVar("T")


def pairwise(items: list[T]) -> Iterator[tuple[T, T]]:
    """Neighbours; itertools has it from Python 3.10 on."""
    return zip(items, items[1:])


def settle(burst: Burst, fingerprint: object = "same") -> tuple[Burst, list[int]]:
    """Let time pass without input; every check finds the loaded header current."""
    checks = []
    while burst.active:
        now = burst.deadline
        assert burst.due(now) is Action.CHECK
        checks.append(now)
        burst = burst.checked(now, fingerprint, Outcome.CURRENT)
    return burst, checks


def test_idle_has_only_the_audit_ahead() -> None:
    burst = Burst.begin(PACE, 5 * S)
    assert burst.deadline == 3605 * S
    assert burst.due(3605 * S - 1) is Action.WAIT
    assert burst.due(3605 * S) is Action.AUDIT
    burst = burst.audited(3606 * S)
    assert burst.due(3606 * S) is Action.WAIT
    assert burst.deadline == 7206 * S


def test_first_uevent_is_checked_at_once() -> None:
    burst = Burst.begin(PACE, 0).uevent(7 * S)
    assert burst.due(7 * S) is Action.CHECK
    assert burst.deadline == 7 * S
    assert burst.first_uevent == burst.run_start == 7 * S


def test_gaps_grow_until_the_settle_time_is_over() -> None:
    burst, checks = settle(Burst.begin(PACE, 0).uevent(0))
    assert checks == [0, 500 * MS, 1500 * MS, 3500 * MS, 7500 * MS, 10 * S]
    assert burst.settled
    assert burst.deadline == burst.audit_at


def test_change_after_the_remove_uevent_is_seen() -> None:
    burst = Burst.begin(PACE, 0).uevent(0).checked(0, "before", Outcome.CURRENT)
    burst = burst.checked(500 * MS, "before", Outcome.CURRENT)
    burst = burst.checked(1500 * MS, "after", Outcome.UPDATED)
    assert burst.deadline == 2000 * MS, "what is being loaded may change meanwhile: look again soon"
    assert burst.run_start == 0, "latency counts from the remove uevent"
    burst, _ = settle(burst, "after")
    assert burst.settled
    assert burst.uevents == 1, "the count is still there for the record at the end"
    assert burst.run_start is None, "a reload from here on answers no uevent"


def test_storm_is_checked_once_per_interval() -> None:
    burst, checks = Burst.begin(PACE, 0), []
    for now in range(0, 4 * S, 10 * MS):
        burst = burst.uevent(now, 3)
        if burst.due(now) is Action.CHECK:
            checks.append(now)
            burst = burst.checked(now, "same", Outcome.CURRENT)
    assert checks == list(range(0, 4 * S, 500 * MS))
    assert burst.uevents == 1200


def test_second_dimm_in_one_burst_has_its_own_latency() -> None:
    burst = Burst.begin(PACE, 0).uevent(0, 256).checked(0, "one", Outcome.UPDATED)
    burst = burst.uevent(3 * S)
    assert burst.active
    assert burst.first_uevent == 0
    assert burst.run_start == 3 * S
    assert burst.due(3 * S) is Action.CHECK, "more than an interval since the last check"


def test_update_waits_one_hundred_times_the_last_window() -> None:
    burst = Burst.begin(PACE, 0).uevent(0).updated(20 * MS, unarmed_usec=20 * MS)
    burst = burst.checked(20 * MS, "one", Outcome.UPDATED)
    assert not burst.may_update(2020 * MS - 1)
    assert burst.may_update(2020 * MS)
    burst = burst.uevent(30 * MS)
    assert burst.deadline == 520 * MS, "the look goes on"
    burst = burst.checked(520 * MS, "two", Outcome.HELD)
    assert burst.deadline == 2020 * MS, "the update comes as soon as it may"


def test_pace_is_that_of_the_configuration() -> None:
    assert Pace.of(Config()) == Pace() == PACE
    slow = Config(update=UpdateConfig(interval_seconds=2, settle_seconds=3.5))
    assert Pace.of(slow).interval_usec == 2 * S
    assert Pace.of(slow).settle_usec == 3500 * MS


def test_smaller_percentage_rests_longer() -> None:
    assert Pace(max_disarmed_percent=0.5).rest_after(3) == 600
    assert Pace(max_disarmed_percent=1.0).rest_after(0) == 0


def test_lost_uevents_ask_for_a_resync_once() -> None:
    burst = Burst.begin(PACE, 0).lost(1 * S)
    assert burst.due(1 * S) is Action.CHECK
    assert burst.resync
    assert burst.uevents == 0
    burst = burst.checked(1 * S, "x", Outcome.CURRENT)
    assert not burst.resync
    assert burst.losses == 1


def test_uevent_that_came_during_the_check_is_checked_again() -> None:
    burst = Burst.begin(PACE, 0).uevent(0).checked(40 * MS, "x", Outcome.CURRENT).uevent(40 * MS)
    assert burst.deadline == 540 * MS


def test_a_look_before_the_uevent_does_not_count_towards_agreement() -> None:
    pace = Pace(interval_usec=1 * S, settle_usec=1 * S)
    burst = Burst.begin(pace, 0).uevent(0).checked(0, "x", Outcome.CURRENT).uevent(1)
    burst = burst.checked(1 * S + 1, "x", Outcome.CURRENT)
    assert burst.active, "one look after the uevent is not two"
    assert not burst.checked(2 * S + 1, "x", Outcome.CURRENT).active


def test_stale_audit_is_a_hint() -> None:
    burst = Burst.begin(PACE, 0).audited(3600 * S, stale=True)
    assert burst.due(3600 * S) is Action.CHECK
    assert burst.first_uevent is None
    burst, checks = settle(burst)
    assert len(checks) > 2


def test_failed_load_backs_off_to_the_audit() -> None:
    burst = Burst.begin(PACE, 0).uevent(0)
    times = []
    while burst.active:
        if burst.due(burst.deadline) is Action.AUDIT:
            burst = burst.audited(burst.deadline)
            continue
        times.append(burst.deadline)
        burst = burst.checked(burst.deadline, "x", Outcome.FAILED)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == [1 * S << n for n in range(len(gaps))]
    assert gaps[-1] < PACE.audit_usec <= gaps[-1] * 2
    assert not burst.settled


def test_machine_that_never_rests_is_given_up_until_the_audit() -> None:
    burst = Burst.begin(PACE, 0).uevent(0)
    checks = 0
    while burst.active:
        burst = burst.checked(burst.deadline, checks, Outcome.UPDATED)
        checks += 1
        assert checks < 100
    assert MAX_RESTARTS < checks < 2 * MAX_RESTARTS
    assert not burst.settled


def test_new_settings_keep_what_is_under_way() -> None:
    burst = Burst.begin(PACE, 0).uevent(0).checked(0, "x", Outcome.CURRENT)
    burst = burst.paced(Pace(audit_usec=60 * S), 1 * S)
    assert burst.active
    assert burst.audit_at == 61 * S


@pytest.mark.parametrize(
    "wrong",
    [
        {"interval_usec": 0},
        {"interval_usec": 20 * S},
        {"audit_usec": 0},
        {"max_disarmed_percent": 0.0},
        {"max_disarmed_percent": math.nan},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"interval|percentage"):
        Pace(**wrong)  # type: ignore[arg-type]


class DaemonModel(RuleBasedStateMachine):
    """A daemon that does as it is told, on a machine that hotplugs at will.

    Every change of the machine has a uevent not more than half the settle
    time before it, as the kernel's memory removal does.
    """

    @initialize(
        interval=st.integers(1, 2 * S),
        settle_factor=st.integers(2, 40),
        audit=st.integers(60 * S, 3600 * S),
        percent=st.sampled_from([0.1, 0.5, 1.0, 3.0]),
    )
    def begin(self, interval: int, settle_factor: int, audit: int, percent: float) -> None:
        self.pace = Pace(interval, interval * settle_factor, audit, percent)
        self.now = 0
        self.burst = Burst.begin(self.pace, 0)
        self.changes: list[int] = []  # when the machine changes, in order
        self.loaded = 0  # how many changes the loaded header knows
        self.hint: int | None = None  # the latest hint that no check followed
        self.checks: list[tuple[int, bool]] = []  # end of check, leading edge
        self.windows: list[tuple[int, int]] = []  # start and length of not armed
        self.unarmed = 0
        self.leading = False

    @rule(unarmed=st.integers(0, 300 * MS))
    def load_takes(self, unarmed: int) -> None:
        self.unarmed = unarmed

    @rule(count=st.integers(1, 512), delay=st.integers(0, 100), changes=st.booleans())
    def hotplug(self, count: int, delay: int, changes: bool) -> None:
        self.leading |= not self.burst.active
        self.burst = self.burst.uevent(self.now, count)
        self.hint = self.now
        if changes:
            self.changes.append(self.now + delay * self.pace.settle_usec // 200)
            self.changes.sort()

    @rule()
    def lose(self) -> None:
        self.leading |= not self.burst.active
        self.burst = self.burst.lost(self.now)
        self.hint = self.now

    @rule(gap=st.one_of(st.integers(0, 5 * MS), st.integers(0, 30 * S), st.integers(0, 7200 * S)))
    def time_passes(self, gap: int) -> None:
        target = self.now + gap
        while self.burst.deadline <= target:
            self.now = max(self.now, self.burst.deadline)
            self.act()
        self.now = max(self.now, target)

    @precondition(lambda self: self.burst.due(self.now) is not Action.WAIT)
    @rule()
    def act(self) -> None:
        action = self.burst.due(self.now)
        assert action is not Action.WAIT, "the deadline came and nothing is due"
        if action is Action.AUDIT:
            self.burst = self.burst.audited(self.now)
            return
        began = self.now
        outcome = self.compare_and_load()
        self.burst = self.burst.checked(self.now, self.present(began), outcome)
        self.checks.append((began, self.leading))
        self.leading = False
        self.hint = None

    def present(self, when: int) -> int:
        return sum(change <= when for change in self.changes)

    def compare_and_load(self) -> Outcome:
        present = self.present(self.now)
        if present == self.loaded:
            return Outcome.CURRENT
        if not self.burst.may_update(self.now):
            return Outcome.HELD
        self.windows.append((self.now, self.unarmed))
        self.now += self.unarmed
        self.loaded = present
        self.burst = self.burst.updated(self.now, self.unarmed)
        return Outcome.UPDATED

    @invariant()
    def armed_all_but_the_agreed_share(self) -> None:
        for (start, unarmed), (following, _) in pairwise(self.windows[-2:]):
            assert unarmed * 100 <= (following - start) * self.pace.max_disarmed_percent

    @invariant()
    def every_hint_has_a_check_ahead(self) -> None:
        if self.hint is None:
            return
        checked_at = self.burst.checked_at
        earliest = 0 if checked_at is None else checked_at + self.pace.interval_usec
        assert self.burst.check_at is not None
        assert self.burst.check_at <= max(self.hint, earliest)

    @invariant()
    def no_faster_than_the_interval_but_for_leading_edges(self) -> None:
        for (earlier, _), (later, leading) in pairwise(self.checks[-2:]):
            assert leading or later - earlier >= self.pace.interval_usec

    @invariant()
    def idle_means_current(self) -> None:
        if not self.burst.active and self.burst.settled:
            assert self.loaded == self.present(self.now)

    def teardown(self) -> None:
        if not hasattr(self, "burst"):
            return
        bound = (MAX_RESTARTS + 3) * (self.pace.settle_usec // self.pace.interval_usec + 4)
        before = len(self.checks)
        while self.burst.active:
            self.now = max(self.now, self.burst.deadline)
            self.act()
            assert len(self.checks) - before <= bound, "never quiet"
        assert self.burst.deadline == self.burst.audit_at
        assert self.loaded == len(self.changes), "a change was never loaded"
        assert self.burst.settled


TestDaemonModel = DaemonModel.TestCase
TestDaemonModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
