"""The adoption state machine: single answers, and a model host that everybody loads on."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kdumphpd.distribution.adoption import (
    SETTLE_USEC,
    Adoption,
    Decision,
    Owner,
    Reason,
    Resolution,
    Seen,
    Whose,
)
from kdumphpd.distribution.unit_state import UnitState

SECOND = 1_000_000


def seen(whose: Whose, owner: Owner = Owner.KDUMP, unit: UnitState = UnitState.UNKNOWN) -> Seen:
    return Seen(whose, owner, unit=unit)


def settled(adoption: Adoption, what: Seen, now: int = 0) -> Adoption:
    return adoption.decided(now, adoption.resolve(what))


@pytest.mark.parametrize(
    ("whose", "unit", "decision", "reason"),
    [
        (Whose.OURS, UnitState.UNKNOWN, Decision.KEEP, Reason.CURRENT),
        (Whose.OURS_OTHER, UnitState.UNKNOWN, Decision.ADOPT, Reason.CHANGED),
        (Whose.KDUMPS, UnitState.UNKNOWN, Decision.ADOPT, Reason.KDUMP_LOADED),
        (Whose.LIKE_KDUMPS, UnitState.ACTIVE, Decision.ADOPT, Reason.KDUMP_LOADED),
        (Whose.LIKE_KDUMPS, UnitState.STOPPED, Decision.STAY_OUT, Reason.FOREIGN),
        (Whose.LIKE_KDUMPS, UnitState.UNKNOWN, Decision.STAY_OUT, Reason.FOREIGN),
        (Whose.UNKNOWN, UnitState.ACTIVE, Decision.ADOPT, Reason.KDUMP_LOADED),
        (Whose.UNKNOWN, UnitState.STOPPED, Decision.STAY_OUT, Reason.FOREIGN),
        (Whose.OTHER, UnitState.ACTIVE, Decision.STAY_OUT, Reason.FOREIGN),
        (Whose.TEST, UnitState.ACTIVE, Decision.STAY_OUT, Reason.TESTED),
        (Whose.NOTHING, UnitState.STOPPED, Decision.STAY_OUT, Reason.STOPPED),
        (Whose.NOTHING, UnitState.UNKNOWN, Decision.STAY_OUT, Reason.STOPPED),
        (Whose.NOTHING, UnitState.CHANGING, Decision.WAIT, Reason.AT_WORK),
        (Whose.NOTHING, UnitState.FAILED, Decision.STAY_OUT, Reason.KDUMP_FAILED),
        (Whose.NOTHING, UnitState.ACTIVE, Decision.ADOPT, Reason.KDUMP_LOST),
    ],
)
def test_start_with_kdump(
    whose: Whose, unit: UnitState, decision: Decision, reason: Reason
) -> None:
    assert Adoption().resolve(seen(whose, unit=unit)) == Resolution(decision, reason)


@pytest.mark.parametrize("whose", [Whose.KDUMPS, Whose.LIKE_KDUMPS, Whose.UNKNOWN])
def test_image_that_turns_up_without_kdump_is_left_alone(whose: Whose) -> None:
    watching = settled(Adoption(), seen(Whose.OURS))
    by_hand = watching.resolve(seen(whose, unit=UnitState.ACTIVE))
    assert by_hand == Resolution(Decision.STAY_OUT, Reason.BY_HAND)
    after = watching.decided(0, by_hand).acted(1)
    assert after.resolve(seen(whose, unit=UnitState.ACTIVE)).decision is Decision.ADOPT


@pytest.mark.parametrize("whose", [Whose.OTHER, Whose.TEST])
def test_another_image_is_left_alone_although_kdump_acted(whose: Whose) -> None:
    watching = settled(Adoption(), seen(Whose.OURS)).acted(5)
    assert watching.resolve(seen(whose, unit=UnitState.ACTIVE)).decision is Decision.STAY_OUT


@pytest.mark.parametrize("whose", [one for one in Whose if one is not Whose.OURS])
def test_kdump_at_work_is_waited_for(whose: Whose) -> None:
    adoption = Adoption()
    resolution = adoption.resolve(Seen(whose, Owner.KDUMP, kdump_busy=True))
    assert resolution == Resolution(Decision.WAIT, Reason.AT_WORK)
    waiting = adoption.decided(0, resolution)
    assert waiting.fresh
    assert waiting.look_at is not None
    assert waiting.acted(7).due(7)


def test_configuration_owns_at_start_and_reload_only() -> None:
    fresh = Adoption()
    for whose in (Whose.NOTHING, Whose.OTHER, Whose.KDUMPS, Whose.UNKNOWN):
        assert fresh.resolve(seen(whose, Owner.CONFIGURATION)).decision is Decision.ADOPT
        later = settled(fresh, seen(Whose.OURS, Owner.CONFIGURATION))
        assert later.resolve(seen(whose, Owner.CONFIGURATION)).decision is Decision.STAY_OUT


@pytest.mark.parametrize(
    ("owner", "unit", "decision"),
    [
        (Owner.KDUMP, UnitState.ACTIVE, Decision.ADOPT),
        (Owner.KDUMP, UnitState.UNKNOWN, Decision.ADOPT),
        (Owner.KDUMP, UnitState.FAILED, Decision.ADOPT),
        (Owner.KDUMP, UnitState.STOPPED, Decision.STAY_OUT),
        (Owner.CONFIGURATION, UnitState.STOPPED, Decision.ADOPT),
    ],
)
def test_what_our_own_load_lost_is_loaded_again(
    owner: Owner, unit: UnitState, decision: Decision
) -> None:
    lost = settled(Adoption(), seen(Whose.OURS, owner)).failed(0, armed=False)
    assert lost.resolve(seen(Whose.NOTHING, owner, unit)).decision is decision


@pytest.mark.parametrize(
    ("stopped", "expected"),
    [
        (True, Resolution(Decision.STAY_OUT, Reason.STOPPED)),
        (False, Resolution(Decision.ADOPT, Reason.KDUMP_LOST)),
    ],
)
def test_kdumpctl_stop_is_told_from_a_reload_that_failed(
    stopped: bool, expected: Resolution
) -> None:
    """Both leave nothing loaded, and kdump.service active."""
    nothing = seen(Whose.NOTHING, unit=UnitState.ACTIVE)
    acted = settled(Adoption(), seen(Whose.OURS)).acted(5, stopped=stopped)
    assert acted.resolve(nothing) == expected
    if stopped:
        later = settled(acted, nothing)
        assert later.resolve(nothing) == expected, "it is remembered"
        assert later.acted(9).resolve(nothing).decision is Decision.ADOPT


def test_what_is_unloaded_without_kdump_stays_unloaded() -> None:
    watching = settled(Adoption(), seen(Whose.OURS))
    assert watching.resolve(seen(Whose.NOTHING, unit=UnitState.ACTIVE)) == Resolution(
        Decision.STAY_OUT, Reason.UNLOADED
    )


def test_changed_file_is_looked_at_when_it_has_settled() -> None:
    adoption = settled(Adoption(), seen(Whose.OURS)).files_changed(10)
    assert not adoption.due(10 + SETTLE_USEC - 1)
    assert adoption.files_changed(10 + SETTLE_USEC - 1).due(10 + SETTLE_USEC)


@given(st.lists(st.booleans(), max_size=40))
def test_failures_are_retried_at_growing_bounded_gaps(armed: list[bool]) -> None:
    adoption, now, gaps = Adoption(), 0, []
    for one in armed:
        adoption = adoption.failed(now, armed=one)
        assert adoption.look_at is not None
        gaps.append(adoption.look_at - now)
        now = adoption.look_at
    assert gaps == sorted(gaps)
    assert all(SECOND <= gap <= 300 * SECOND for gap in gaps)
    assert adoption.lost_by_us == (not all(armed))


class By(enum.Enum):
    US = 1
    KDUMP = 2
    ADMIN = 3


@dataclass(frozen=True)
class Image:
    by: By
    parts: int


class Host(RuleBasedStateMachine):
    """kdump, an administrator and the machine; `look` is what the service does."""

    def __init__(self) -> None:
        super().__init__()
        self.adoption = Adoption()
        self.image: Image | None = None
        self.wanted = 0
        self.running = False
        self.now = 0
        self.watched = False  # the service has looked at least once

    @initialize(running=st.booleans())
    def begin(self, running: bool) -> None:
        if running:
            self.kdump_starts()

    def _hint(self) -> None:
        if self.watched:
            self.adoption = self.adoption.acted(self.now)

    @rule()
    def kdump_starts(self) -> None:
        self.running = True
        if self.image is None:
            self.image = Image(By.KDUMP, self.wanted)
        self._hint()

    @rule()
    def kdump_restarts(self) -> None:
        self.running = True
        self.image = Image(By.KDUMP, self.wanted)
        self._hint()

    @rule()
    def kdump_stops(self) -> None:
        self.running, self.image = False, None
        self._hint()

    @rule()
    def kdumpctl_stop(self) -> None:
        """Its service stays active."""
        self.image = None
        if self.watched:
            self.adoption = self.adoption.acted(self.now, stopped=True)

    @precondition(lambda self: self.running)
    @rule()
    def kdumpctl_reload_fails(self) -> None:
        self.image = None
        self._hint()

    @rule()
    def kdump_status(self) -> None:
        self._hint()

    @rule(parts=st.integers(100, 102))
    def admin_loads(self, parts: int) -> None:
        self.image = Image(By.ADMIN, parts)

    @rule()
    def admin_loads_the_same(self) -> None:
        self.image = Image(By.ADMIN, self.wanted)

    @rule()
    def configuration_changes(self) -> None:
        self.wanted += 1
        if self.watched:
            self.adoption = self.adoption.files_changed(self.now)

    @rule()
    def time_passes(self) -> None:
        self.now += 400 * SECOND

    @rule(fails=st.sampled_from(["no", "no", "no", "harmless", "lost"]))
    def look(self, fails: str) -> None:
        before = self.image
        # A look whose load failed has decided nothing: the next one is still the first.
        first, acted = self.adoption.fresh, self.adoption.kdump_acted
        self.watched = True
        stopped = self.adoption.kdump_stopped
        unit = UnitState.ACTIVE if self.running else UnitState.STOPPED
        resolution = self.adoption.resolve(Seen(self._whose(), Owner.KDUMP, unit=unit))
        if resolution.decision is not Decision.ADOPT:
            self.adoption = self.adoption.decided(self.now, resolution)
            assert self.image == before
            return
        # What was loaded with other parts by hand is never replaced, and what was
        # loaded by hand at all not before kdump acts again.
        assert before is None or before.by is not By.ADMIN or before.parts == self.wanted
        assert before is None or before.by is not By.ADMIN or first or acted
        assert before is not None or (self.running and not stopped)
        if fails == "no":
            self.image = Image(By.US, self.wanted)
            self.adoption = self.adoption.decided(self.now, resolution)
        else:
            if fails == "lost":
                self.image = None
            self.adoption = self.adoption.failed(self.now, armed=self.image is not None)
            assert self.adoption.look_at is not None

    def _whose(self) -> Whose:
        if self.image is None:
            return Whose.NOTHING
        same = self.image.parts == self.wanted
        if self.image.by is By.US:
            return Whose.OURS if same else Whose.OURS_OTHER
        return Whose.KDUMPS if same else Whose.OTHER

    @precondition(lambda self: self.watched)
    @rule()
    def restart_ends_with_ours(self) -> None:
        """After kdumpctl restart one look is enough, whatever was before."""
        self.kdump_restarts()
        assert self.adoption.due(self.now)
        self.look("no")
        assert self.image == Image(By.US, self.wanted)

    @precondition(lambda self: self.watched and self.running)
    @rule()
    def a_reload_that_failed_is_mended(self) -> None:
        self.kdumpctl_reload_fails()
        self.look("no")
        assert self.image == Image(By.US, self.wanted)

    @precondition(lambda self: self.watched)
    @rule(by_hand=st.booleans())
    def stop_stays_stopped(self, by_hand: bool) -> None:
        (self.kdumpctl_stop if by_hand else self.kdump_stops)()
        for _ in range(3):
            self.now += 400 * SECOND
            self.look("no")
            assert self.image is None

    @invariant()
    def an_image_of_other_parts_by_hand_stays(self) -> None:
        assert self.image is None or self.image.by is not By.US or self.image.parts < 100


TestHost = Host.TestCase
