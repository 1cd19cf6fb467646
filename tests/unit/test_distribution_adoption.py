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
    Loaded,
    Owner,
    Reason,
    Seen,
)

SECOND = 1_000_000


def seen(loaded: Loaded, owner: Owner = Owner.KDUMP, **more: bool) -> Seen:
    return Seen(loaded, owner, **more)


def settled(adoption: Adoption, what: Seen, now: int = 0) -> Adoption:
    return adoption.decided(now, adoption.decide(what))


@pytest.mark.parametrize(
    ("loaded", "decision", "reason"),
    [
        (Loaded.NOTHING, Decision.STAY_OUT, Reason.STOPPED),
        (Loaded.KDUMPS, Decision.ADOPT, Reason.KDUMP_LOADED),
        (Loaded.OTHER, Decision.STAY_OUT, Reason.FOREIGN),
        (Loaded.UNTOLD, Decision.STAY_OUT, Reason.FOREIGN),
        (Loaded.OURS, Decision.KEEP, Reason.CURRENT),
        (Loaded.OURS_OTHER, Decision.ADOPT, Reason.CHANGED),
    ],
)
def test_start_with_kdump(loaded: Loaded, decision: Decision, reason: Reason) -> None:
    verdict = Adoption().decide(seen(loaded))
    assert (verdict.decision, verdict.reason, verdict.news) == (decision, reason, True)


def test_untold_image_at_start_is_kdumps_if_its_service_runs() -> None:
    running = Adoption().decide(seen(Loaded.UNTOLD, kdump_running=True))
    stopped = Adoption().decide(seen(Loaded.UNTOLD, kdump_running=False))
    assert running.decision is Decision.ADOPT
    assert stopped.decision is Decision.STAY_OUT


@pytest.mark.parametrize("loaded", [Loaded.KDUMPS, Loaded.UNTOLD])
def test_image_that_turns_up_without_kdump_is_left_alone(loaded: Loaded) -> None:
    watching = settled(Adoption(), seen(Loaded.OURS))
    by_hand = watching.decide(seen(loaded, kdump_running=True))
    assert (by_hand.decision, by_hand.reason) == (Decision.STAY_OUT, Reason.BY_HAND)
    after = watching.decided(0, by_hand)
    assert not after.decide(seen(loaded)).news
    assert after.acted(1).decide(seen(loaded)).decision is Decision.ADOPT


def test_another_image_is_left_alone_although_kdump_acted() -> None:
    watching = settled(Adoption(), seen(Loaded.OURS)).acted(5)
    assert watching.decide(seen(Loaded.OTHER)).decision is Decision.STAY_OUT


@pytest.mark.parametrize("loaded", [one for one in Loaded if one is not Loaded.OURS])
def test_kdump_at_work_is_waited_for(loaded: Loaded) -> None:
    adoption = Adoption()
    verdict = adoption.decide(seen(loaded, kdump_busy=True))
    assert (verdict.decision, verdict.reason) == (Decision.WAIT, Reason.AT_WORK)
    waiting = adoption.decided(0, verdict)
    assert waiting.fresh
    assert waiting.look_at is not None
    assert waiting.acted(7).due(7)


def test_configuration_owns_at_start_and_reload_only() -> None:
    fresh = Adoption()
    for loaded in (Loaded.NOTHING, Loaded.OTHER, Loaded.KDUMPS, Loaded.UNTOLD):
        assert fresh.decide(seen(loaded, Owner.CONFIGURATION)).decision is Decision.ADOPT
        later = settled(fresh, seen(Loaded.OURS, Owner.CONFIGURATION))
        assert later.decide(seen(loaded, Owner.CONFIGURATION)).decision is Decision.STAY_OUT
        assert later.asked(3).decide(seen(loaded, Owner.CONFIGURATION)).decision is Decision.ADOPT


@pytest.mark.parametrize(
    ("owner", "running", "decision"),
    [
        (Owner.KDUMP, True, Decision.ADOPT),
        (Owner.KDUMP, None, Decision.ADOPT),
        (Owner.KDUMP, False, Decision.STAY_OUT),
        (Owner.CONFIGURATION, False, Decision.ADOPT),
    ],
)
def test_what_our_own_load_lost_is_loaded_again(
    owner: Owner, running: bool | None, decision: Decision
) -> None:
    lost = settled(Adoption(), seen(Loaded.OURS, owner)).failed(0, armed=False)
    assert lost.decide(Seen(Loaded.NOTHING, owner, False, running)).decision is decision


def test_nothing_loaded_is_said_once() -> None:
    adoption = Adoption()
    news = []
    for _ in range(3):
        verdict = adoption.decide(seen(Loaded.NOTHING))
        adoption = adoption.decided(0, verdict)
        news.append(verdict.news)
    assert news == [True, False, False]


def test_changed_file_is_looked_at_when_it_has_settled() -> None:
    adoption = settled(Adoption(), seen(Loaded.OURS)).files_changed(10)
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
        verdict = self.adoption.decide(
            Seen(self._loaded(), Owner.KDUMP, kdump_running=self.running)
        )
        if verdict.decision is not Decision.ADOPT:
            self.adoption = self.adoption.decided(self.now, verdict)
            assert self.image == before
            return
        # What was loaded with other parts by hand is never replaced, and what was
        # loaded by hand at all not before kdump acts again.
        assert before is None or before.by is not By.ADMIN or before.parts == self.wanted
        assert before is None or before.by is not By.ADMIN or first or acted
        assert before is not None or (self.adoption.lost_by_us and self.running)
        if fails == "no":
            self.image = Image(By.US, self.wanted)
            self.adoption = self.adoption.decided(self.now, verdict)
        else:
            if fails == "lost":
                self.image = None
            self.adoption = self.adoption.failed(self.now, armed=self.image is not None)
            assert self.adoption.look_at is not None

    def _loaded(self) -> Loaded:
        if self.image is None:
            return Loaded.NOTHING
        same = self.image.parts == self.wanted
        if self.image.by is By.US:
            return Loaded.OURS if same else Loaded.OURS_OTHER
        return Loaded.KDUMPS if same else Loaded.OTHER

    @precondition(lambda self: self.watched)
    @rule()
    def restart_ends_with_ours(self) -> None:
        """After kdumpctl restart one look is enough, whatever was before."""
        self.kdump_restarts()
        assert self.adoption.due(self.now)
        self.look("no")
        assert self.image == Image(By.US, self.wanted)

    @precondition(lambda self: self.watched)
    @rule()
    def stop_stays_stopped(self) -> None:
        self.kdump_stops()
        for _ in range(3):
            self.now += 400 * SECOND
            self.look("no")
            assert self.image is None

    @invariant()
    def an_image_of_other_parts_by_hand_stays(self) -> None:
        assert self.image is None or self.image.by is not By.US or self.image.parts < 100


TestHost = Host.TestCase
