"""Whose image is loaded, and what follows: keep it, load ours in its place, or stay out.

kdump owns *what* is loaded, we own that it is current. So:

* Nothing loaded: kdump is stopped, or has not started. Not ours to change, unless
  it was our own load that failed and left nothing.
* Our image: keep it; if kdump would load something else by now (a changed
  sysconfig, a rebuilt initrd, another kernel), load that.
* An image that kdump loaded: load ours in its place, with the same kernel, initrd and
  command line.
* An image that an administrator loaded with kexec: say so, and leave it alone until
  kdump acts again.

How kdump's image is told from an administrator's: by two things, both needed.

1. *It is made of what kdump would load*: its command line and initrd, read back from
   the segments that the kernel has armed (`kdumphpd.distribution.armed`). Then
   taking it over changes nothing about what would boot.
2. *kdump acted since we last looked* (`kdumphpd.distribution.watch`). An image that
   turns up while kdump did nothing is somebody's deliberate doing, whatever
   it is made of. At our start nobody has watched: the first alone decides.

Where the kernel does not show what is armed (1 unknown), the second alone decides,
and at the start whether kdump's service is running.

With ``source = "explicit"`` the configuration owns the image: at the start and
when it is read again its image is loaded whatever is there; in between whoever
loads or unloads something is respected.

Everything here is pure.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

#: An editor's several writes are one change; kdump's own end is never waited for.
SETTLE_USEC = 1_000_000
#: kdump's end is a hint, but a hint can get lost.
_WAIT_USEC = 5_000_000
_FIRST_RETRY_USEC = 1_000_000
_LAST_RETRY_USEC = 300_000_000


class Loaded(enum.Enum):
    """What a look finds."""

    OURS = "ours"  # our image, made of what is wanted
    OURS_OTHER = "ours, of other parts"  # our image, but something else is wanted by now
    KDUMPS = "kdump's"  # not ours, made of what kdump would load
    OTHER = "another"  # not ours, made of something else
    UNTOLD = "unknown"  # not ours, and the kernel does not show what it is made of
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
    STOPPED = "nothing is loaded: kdump is stopped"
    UNLOADED = "another program unloaded the crash image"
    FOREIGN = "the loaded image is neither ours nor what kdump would load"
    BY_HAND = "an image was loaded without kdump"
    AT_WORK = "kdump is at work"


@dataclass(frozen=True)
class Seen:
    """One look.

    Attributes:
        loaded: what is loaded.
        owner: who says what is.
        kdump_busy: somebody holds kdump's lock.
        kdump_running: whether its service is active; None if that is not known.
    """

    loaded: Loaded
    owner: Owner
    kdump_busy: bool = False
    kdump_running: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """The decision, why, and whether it has not been said already."""

    decision: Decision
    reason: Reason
    news: bool


@dataclass(frozen=True)
class Adoption:
    """What is remembered between two looks; times in microseconds.

    Attributes:
        fresh: no look yet since the start or since the configuration was read.
        kdump_acted: kdump acted since the latest look that decided something.
        lost_by_us: our own load failed and left nothing loaded.
        look_at: when the next look is due; None if only a hint makes it so.
        failures: of adoption in a row.
        said: the latest reason.
    """

    fresh: bool = True
    kdump_acted: bool = False
    lost_by_us: bool = False
    look_at: int | None = None
    failures: int = 0
    said: Reason | None = None

    def acted(self, now: int) -> Adoption:
        """Kdump has acted and is through: look at once."""
        return replace(self, kdump_acted=True, look_at=now, failures=0)

    def files_changed(self, now: int) -> Adoption:
        """A file that decides what is to be loaded changed: look when it has settled."""
        due = now + SETTLE_USEC
        return replace(
            self, look_at=due if self.look_at is None else min(self.look_at, due), failures=0
        )

    def asked(self, now: int) -> Adoption:
        """The configuration was read again (SIGHUP): as after a start."""
        return replace(self, fresh=True, look_at=now, failures=0, said=None)

    def due(self, now: int) -> bool:
        """Whether a look is due."""
        return self.look_at is not None and self.look_at <= now

    def decide(self, seen: Seen) -> Verdict:
        """What to do about what was seen."""
        decision, reason = self._answer(seen)
        return Verdict(decision, reason, reason is not self.said)

    def decided(self, now: int, verdict: Verdict) -> Adoption:
        """Note a decision that was carried out; for a load that failed see `failed`."""
        if verdict.decision is Decision.WAIT:
            return replace(self, look_at=now + _WAIT_USEC)
        return replace(
            self,
            fresh=False,
            kdump_acted=False,
            lost_by_us=False,
            look_at=None,
            failures=0,
            said=verdict.reason,
        )

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
        if seen.loaded is Loaded.OURS:
            return Decision.KEEP, Reason.CURRENT
        if seen.kdump_busy:
            # Half-way through unload and load everything looks like a verdict.
            return Decision.WAIT, Reason.AT_WORK
        if seen.loaded is Loaded.OURS_OTHER:
            return Decision.ADOPT, Reason.CHANGED
        if seen.loaded is Loaded.NOTHING:
            return self._nothing(seen)
        if seen.owner is Owner.CONFIGURATION:
            return self._configured(Reason.BY_HAND)
        return self._foreign(seen)

    def _nothing(self, seen: Seen) -> tuple[Decision, Reason]:
        stopped = seen.owner is Owner.KDUMP and seen.kdump_running is False
        if self.lost_by_us and not stopped:
            return Decision.ADOPT, Reason.FAILED_BEFORE
        if seen.owner is Owner.CONFIGURATION:
            return self._configured(Reason.UNLOADED)
        return Decision.STAY_OUT, Reason.STOPPED

    def _configured(self, otherwise: Reason) -> tuple[Decision, Reason]:
        if self.fresh:
            return Decision.ADOPT, Reason.CONFIGURED
        return Decision.STAY_OUT, otherwise

    def _foreign(self, seen: Seen) -> tuple[Decision, Reason]:
        if seen.loaded is Loaded.OTHER:
            return Decision.STAY_OUT, Reason.FOREIGN
        if self.kdump_acted:
            return Decision.ADOPT, Reason.KDUMP_LOADED
        if self.fresh and (seen.loaded is Loaded.KDUMPS or seen.kdump_running):
            return Decision.ADOPT, Reason.KDUMP_LOADED
        return Decision.STAY_OUT, Reason.FOREIGN if self.fresh else Reason.BY_HAND
