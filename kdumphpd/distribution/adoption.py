"""Whose image is loaded, and what follows: keep it, load ours in its place, or stay out.

kdump owns *what* is loaded, we own that it is current. So:

* Nothing loaded: kdump's service says whether that is meant. If it is stopped, or
  ``kdumpctl stop`` ran, nothing is ours to change. If it is active, a load has failed
  (``kdumpctl reload`` unloads first), and the image is loaded again. So it is where a load
  of our own failed.
* Our image: keep it; if kdump would load something else by now (a changed
  sysconfig, a rebuilt initrd, another kernel), load that.
* An image that kdump loaded: load ours in its place, with the same kernel, initrd and
  command line.
* An image that an administrator loaded with kexec, or ``kdumpctl test``: say so, and leave
  it alone until kdump acts again.

How kdump's image is told from an administrator's: by two things, both needed.

1. *It is made of what kdump would load*: its kernel, command line and initrd, read back
   from the segments that the kernel has armed (`kdumphpd.distribution.armed`). Then taking
   it over changes nothing about what would boot. While kdump's service is active the kernel
   alone decides: kdump itself loads images with another initrd (early kdump, or one that was
   rebuilt since) or command line (``bash -x kdumpctl restart`` adds rd.debug).
2. *kdump acted since we last looked* (`kdumphpd.distribution.watch`). An image that
   turns up while kdump did nothing is somebody's deliberate doing, whatever
   it is made of. At our start nobody has watched: the first alone decides.

Where the kernel does not show what is armed (1 unknown), the second alone decides,
and at the start whether kdump's service is active.

With ``source = "explicit"`` the configuration owns the image: at the start and
when it is read again its image is loaded whatever is there; in between whoever
loads or unloads something is respected.

Everything here is pure.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from kdumphpd.distribution.unit_state import UnitState

#: An editor's several writes are one change; kdump's own end is never waited for.
SETTLE_USEC = 1_000_000
#: kdump's end is a hint, but a hint can get lost.
_WAIT_USEC = 5_000_000
_FIRST_RETRY_USEC = 1_000_000
_LAST_RETRY_USEC = 300_000_000


class Whose(enum.Enum):
    """Whose image is loaded, and what it is made of."""

    OURS = "ours"  # of what is wanted
    OURS_OTHER = "ours, of other parts"  # something else is wanted by now
    KDUMPS = "kdump's"  # not ours, of what kdump would load
    LIKE_KDUMPS = "like kdump's"  # not ours, of kdump's kernel with another initrd or line
    TEST = "kdumpctl test's"  # kdumpctl test loads it, and crashes the host at once
    OTHER = "another"  # not ours, of another kernel
    UNKNOWN = "unknown"  # not ours, and the kernel does not show what it is made of
    NOTHING = "nothing"


class Owner(enum.Enum):
    """Who says what is loaded."""

    CONFIGURATION = "configuration"  # source = "explicit"
    KDUMP = "kdump"  # source = "auto"


class Decision(enum.Enum):
    """What to do."""

    KEEP = "keep"  # ours: only the header needs looking after
    ADOPT = "adopt"  # one full load of what is wanted
    STAY_OUT = "stay out"  # load nothing, not even a delta
    WAIT = "wait"  # kdump is at work; its end is a hint


class Reason(enum.Enum):
    """Why, as a sentence for the journal."""

    CURRENT = "the image is the one that is wanted"
    CHANGED = "what is to be loaded has changed"
    KDUMP_LOADED = "kdump loaded its image"
    CONFIGURED = "the configuration wants another image"
    FAILED_BEFORE = "an earlier load failed and left nothing"
    KDUMP_LOST = "nothing is loaded although kdump's service is active"
    KDUMP_FAILED = "nothing is loaded: kdump's service failed"
    STOPPED = "nothing is loaded: kdump is stopped"
    UNLOADED = "another program unloaded the crash image"
    FOREIGN = "the loaded image is neither ours nor what kdump would load"
    TESTED = "kdumpctl test loaded the image"
    BY_HAND = "an image was loaded without kdump"
    AT_WORK = "kdump is at work"


@dataclass(frozen=True)
class Seen:
    """One look.

    Attributes:
        whose: the image that is loaded.
        owner: who says what is.
        kdump_busy: somebody holds kdump's lock.
        unit: state of kdump's service.
    """

    whose: Whose
    owner: Owner
    kdump_busy: bool = False
    unit: UnitState = UnitState.UNKNOWN


@dataclass(frozen=True)
class Resolution:
    """What to do, and why."""

    decision: Decision
    reason: Reason


#: kdump holds its lock, so nothing was decided.
AT_WORK = Resolution(Decision.WAIT, Reason.AT_WORK)


@dataclass(frozen=True)
class Adoption:
    """What is remembered between two looks; times in microseconds.

    Attributes:
        fresh: no look yet since the start or since the configuration was read.
        kdump_acted: kdump acted since the latest look that decided something.
        kdump_stopped: ``kdumpctl stop`` was the last that it did.
        lost_by_us: our own load failed and left nothing loaded.
        look_at: when the next look is due; None if only a hint makes it so.
        failures: of adoption in a row.
    """

    fresh: bool = True
    kdump_acted: bool = False
    kdump_stopped: bool = False
    lost_by_us: bool = False
    look_at: int | None = None
    failures: int = 0

    def acted(self, now: int, *, stopped: bool = False) -> Adoption:
        """Kdump has acted and is through, by ``kdumpctl stop`` if ``stopped``: look at once."""
        return replace(self, kdump_acted=True, kdump_stopped=stopped, look_at=now, failures=0)

    def files_changed(self, now: int) -> Adoption:
        """A file that decides what is to be loaded changed: look when it has settled."""
        due = now + SETTLE_USEC
        return replace(
            self, look_at=due if self.look_at is None else min(self.look_at, due), failures=0
        )

    def due(self, now: int) -> bool:
        """Whether a look is due."""
        return self.look_at is not None and self.look_at <= now

    def resolve(self, seen: Seen) -> Resolution:
        """What to do about what was seen."""
        return Resolution(*self._answer(seen))

    def decided(self, now: int, resolution: Resolution) -> Adoption:
        """Note a decision that was carried out; for a load that failed see `failed`."""
        if resolution.decision is Decision.WAIT:
            return replace(self, look_at=now + _WAIT_USEC)
        # What kdumpctl stop left stays as it is until kdump acts again.
        stopped = self.kdump_stopped and resolution.reason is Reason.STOPPED
        return Adoption(fresh=False, kdump_stopped=stopped)

    def failed(self, now: int, *, armed: bool) -> Adoption:
        """Note a look or a load that failed; it is tried again at growing gaps.

        Args:
            now: the time.
            armed: whether anything is loaded after it.
        """
        gap = min(_FIRST_RETRY_USEC << min(self.failures, 16), _LAST_RETRY_USEC)
        return replace(
            self,
            lost_by_us=self.lost_by_us or not armed,
            look_at=now + gap,
            failures=self.failures + 1,
        )

    def _answer(self, seen: Seen) -> tuple[Decision, Reason]:
        if seen.whose is Whose.OURS:
            return Decision.KEEP, Reason.CURRENT
        if seen.kdump_busy:
            # Half-way through unload and load everything looks like a decision.
            return Decision.WAIT, Reason.AT_WORK
        if seen.whose is Whose.OURS_OTHER:
            return Decision.ADOPT, Reason.CHANGED
        if seen.owner is Owner.CONFIGURATION:
            return self._configured(seen)
        if seen.whose is Whose.NOTHING:
            return self._nothing(seen)
        return self._not_ours(seen)

    def _configured(self, seen: Seen) -> tuple[Decision, Reason]:
        unloaded = seen.whose is Whose.NOTHING
        if unloaded and self.lost_by_us:
            return Decision.ADOPT, Reason.FAILED_BEFORE
        if self.fresh:
            return Decision.ADOPT, Reason.CONFIGURED
        return Decision.STAY_OUT, Reason.UNLOADED if unloaded else Reason.BY_HAND

    def _nothing(self, seen: Seen) -> tuple[Decision, Reason]:
        if seen.unit is UnitState.STOPPED or self.kdump_stopped:
            return Decision.STAY_OUT, Reason.STOPPED
        if self.lost_by_us:
            return Decision.ADOPT, Reason.FAILED_BEFORE
        told = self.fresh or self.kdump_acted
        if seen.unit is UnitState.ACTIVE and told:
            return Decision.ADOPT, Reason.KDUMP_LOST
        return _STAYS_EMPTY.get(
            seen.unit,
            # kexec -p -u by hand: no file shows it.
            (Decision.STAY_OUT, Reason.STOPPED if told else Reason.UNLOADED),
        )

    def _not_ours(self, seen: Seen) -> tuple[Decision, Reason]:
        if seen.whose is Whose.TEST:
            return Decision.STAY_OUT, Reason.TESTED
        unsure = seen.whose in (Whose.LIKE_KDUMPS, Whose.UNKNOWN)
        active = seen.unit is UnitState.ACTIVE
        kdumps = seen.whose is Whose.KDUMPS or (unsure and active)
        if seen.whose is Whose.UNKNOWN and self.kdump_acted:
            kdumps = True
        if kdumps and (self.fresh or self.kdump_acted):
            return Decision.ADOPT, Reason.KDUMP_LOADED
        return Decision.STAY_OUT, Reason.BY_HAND if kdumps else Reason.FOREIGN


# By the state of kdump's service, where it says that nothing ought to be loaded, or not yet.
_STAYS_EMPTY = {
    UnitState.CHANGING: (Decision.WAIT, Reason.AT_WORK),
    UnitState.FAILED: (Decision.STAY_OUT, Reason.KDUMP_FAILED),
}
