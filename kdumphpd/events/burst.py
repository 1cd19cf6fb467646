"""When to look at the machine and when to update, from uevents and the clock.

A uevent is only a hint, the state of the machine decides. This module turns
hints into as few looks as will do:

* The first uevent of a burst: look at once (leading edge).
* While uevents come: at most one look per interval.
* After the last one: look again, at growing gaps, until two looks in a row
  agree and the settle time has passed. The ``remove`` uevent of a memory
  block comes *before* /proc/iomem changes (remove_memory_block_devices()
  precedes release_mem_region_adjustable(), mm/memory_hotplug.c), so one look
  is too early.
* An update that left the host not armed for some time is followed by a rest
  many times as long (1 % by default): looks go on, the next update waits.
* Lost events (ENOBUFS) are a hint like any other.
* A slow periodic audit covers everything else.

Everything here is pure: a :class:`Burst` is a value, each input gives the
next one. Times are integer microseconds of CLOCK_MONOTONIC.

How the daemon uses it::

    action = burst.due(now)
    if action is Action.CHECK:
        ...snapshot, compare with the loaded header...
        if it differs and burst.may_update(now):
            ...load...
            burst = burst.updated(now, unarmed_usec)
        burst = burst.checked(now, fingerprint, outcome)
    elif action is Action.AUDIT:
        burst = burst.audited(now, stale=...)
    ...select until burst.deadline...
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

from kdumphpd.config import Config

# How often the gaps between looks may begin anew because something changed
# without a uevent. With it the looks after the last uevent are bounded.
MAX_RESTARTS = 8


class Action(enum.Enum):
    """What is due."""

    WAIT = "wait"
    CHECK = "check"  # snapshot, compare, update if it differs and may be
    AUDIT = "audit"  # read back and verify everything


class Outcome(enum.Enum):
    """How a check ended."""

    CURRENT = "current"  # the loaded header described the machine already
    UPDATED = "updated"  # it did not, a load has mended it
    HELD = "held"  # it does not, and the update has to wait
    FAILED = "failed"  # it does not, and no load succeeded


@dataclass(frozen=True)
class Pace:
    """How fast to go; all times in microseconds."""

    interval_usec: int = 500_000
    settle_usec: int = 10_000_000
    audit_usec: int = 3_600_000_000
    max_disarmed_percent: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.interval_usec <= self.settle_usec:
            raise ValueError("the interval must be positive and not above the settle time")
        if self.audit_usec <= 0 or not 0 < self.max_disarmed_percent <= 100:
            raise ValueError("the audit interval and the percentage must be positive")

    @classmethod
    def of(cls, config: Config) -> Pace:
        """Take the pace from the ``[update]`` and ``[audit]`` tables."""
        return cls(
            interval_usec=round(config.update.interval_seconds * 1_000_000),
            settle_usec=round(config.update.settle_seconds * 1_000_000),
            audit_usec=round(config.audit.interval_seconds * 1_000_000),
            max_disarmed_percent=config.update.max_disarmed_percent,
        )

    def rest_after(self, unarmed_usec: int) -> int:
        """How long to leave the host armed after ``unarmed_usec`` without."""
        return math.ceil(unarmed_usec * 100 / self.max_disarmed_percent)


@dataclass(frozen=True)
class Burst:
    """The state between uevents, checks and audits.

    Attributes:
        pace: the settings.
        audit_at: when the next periodic audit is due.
        check_at: when the next check is due; None while idle.
        checked_at: end of the latest check.
        last_hint: the latest uevent or loss of this burst.
        first_uevent: the first uevent of this burst; kept until the next.
        run_start: the first uevent of the latest run of uevents without a
            pause of an interval or more: where an update's latency begins;
            None while idle.
        uevents: uevents seen in this burst; kept until the next.
        losses: times that the kernel dropped uevents in this burst.
        updates: updates made in this burst.
        resync: uevents were lost since the latest check; trust no cache.
        fingerprint: what the latest check since the last hint saw.
        step: exponent of the gap to the next check.
        restarts: times that the gaps began anew since the last hint.
        rest_until: no update before this.
        settled: whether the latest burst ended with two checks in agreement.
    """

    pace: Pace
    audit_at: int
    check_at: int | None = None
    checked_at: int | None = None
    last_hint: int = 0
    first_uevent: int | None = None
    run_start: int | None = None
    uevents: int = 0
    losses: int = 0
    updates: int = 0
    resync: bool = False
    fingerprint: object = None
    step: int = 0
    restarts: int = 0
    rest_until: int = 0
    settled: bool = True

    @classmethod
    def begin(cls, pace: Pace, now: int) -> Burst:
        """Start idle, the first audit one audit interval from ``now``."""
        return cls(pace=pace, audit_at=now + pace.audit_usec)

    @property
    def active(self) -> bool:
        """Whether a burst is under way: something is still to be checked."""
        return self.check_at is not None

    @property
    def deadline(self) -> int:
        """When :meth:`due` will have something to do if nothing comes in."""
        return self.audit_at if self.check_at is None else min(self.check_at, self.audit_at)

    def due(self, now: int) -> Action:
        """Say what to do at ``now``."""
        if self.check_at is not None and self.check_at <= now:
            return Action.CHECK
        return Action.AUDIT if self.audit_at <= now else Action.WAIT

    def may_update(self, now: int) -> bool:
        """Whether the rest after the latest update is over."""
        return now >= self.rest_until

    def paced(self, pace: Pace, now: int) -> Burst:
        """Take new settings (SIGHUP); what is under way goes on."""
        return replace(self, pace=pace, audit_at=min(self.audit_at, now + pace.audit_usec))

    def uevent(self, now: int, count: int = 1) -> Burst:
        """Note ``count`` uevents that came together."""
        begun = self._hinted(now)
        paused = not self.active or now - self.last_hint >= self.pace.interval_usec
        first, run = begun.first_uevent, begun.run_start
        return replace(
            begun,
            uevents=begun.uevents + count,
            first_uevent=now if first is None else first,
            run_start=now if paused or run is None else run,
        )

    def lost(self, now: int) -> Burst:
        """Note that the kernel dropped uevents, nobody knows how many."""
        begun = self._hinted(now)
        return replace(begun, losses=begun.losses + 1, resync=True)

    def checked(self, now: int, fingerprint: object, outcome: Outcome) -> Burst:
        """Note the end of a check.

        Args:
            now: the end, not the beginning: uevents that came in between are
                still to be read and ask for one more check.
            fingerprint: of the snapshot; equal for equal machines, never None.
            outcome: what came of it. After a load call :meth:`updated` first.
        """
        agrees = outcome is Outcome.CURRENT and fingerprint == self.fingerprint
        restart = not agrees and self.restarts < MAX_RESTARTS and outcome is not Outcome.FAILED
        seen = replace(
            self,
            checked_at=now,
            fingerprint=fingerprint,
            resync=False,
            step=0 if restart else self.step + 1,
            restarts=self.restarts + restart,
        )
        if outcome is Outcome.HELD:
            return replace(seen, check_at=max(self.rest_until, now + self.pace.interval_usec))
        if outcome is Outcome.FAILED:
            return seen._backed_off(now)
        return seen._settling(now, agrees)

    def updated(self, now: int, unarmed_usec: int) -> Burst:
        """Note a load that left the host not armed for ``unarmed_usec``.

        For every load, by whatever backend, that replaced an armed image, and
        for failed ones after which the host is armed all the same. The rest
        counts from ``now``, the end of the load.
        """
        rest_until = max(self.rest_until, now + self.pace.rest_after(unarmed_usec))
        return replace(self, rest_until=rest_until, updates=self.updates + 1)

    def audited(self, now: int, stale: bool = False) -> Burst:
        """Note the end of an audit; a stale header is a hint to check."""
        planned = replace(self, audit_at=now + self.pace.audit_usec)
        return planned._hinted(now) if stale else planned

    def _hinted(self, now: int) -> Burst:
        """Begin a burst, or have one more check follow in the present one."""
        base, check_at = self, now
        if self.check_at is None:
            base = replace(self, uevents=0, losses=0, updates=0, first_uevent=None, run_start=None)
        elif self.checked_at is not None:
            check_at = min(self.check_at, max(now, self.checked_at + self.pace.interval_usec))
        # Two checks that agree must both be later than the last hint.
        base = replace(base, fingerprint=None, step=0, restarts=0)
        return replace(base, check_at=check_at, last_hint=now)

    def _settling(self, now: int, agrees: bool) -> Burst:
        settle_end = self.last_hint + self.pace.settle_usec
        gap = self.pace.interval_usec << self.step
        if agrees and now >= settle_end:
            return self._over(settled=True)
        if not agrees and gap > self.pace.settle_usec:
            return self._over(settled=False)
        # One check falls on the end of the settle time, not far beyond it.
        gap = min(gap, max(self.pace.interval_usec, settle_end - now))
        return replace(self, check_at=now + gap)

    def _backed_off(self, now: int) -> Burst:
        """Try again at doubled gaps, until the periodic audit is as frequent."""
        gap = self.pace.interval_usec << self.step
        if gap >= self.pace.audit_usec:
            return self._over(settled=False)
        return replace(self, check_at=now + gap)

    def _over(self, settled: bool) -> Burst:
        # A load in idle time (a reload, a repair) answers no uevent.
        return replace(self, check_at=None, run_start=None, settled=settled)
