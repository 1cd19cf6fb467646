"""What the service says of its work: records, each once, and one line of status."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace

from kdumphpd.audit.audit import Audit
from kdumphpd.audit.compare import Verdict
from kdumphpd.load.choice import Choice, News
from kdumphpd.load.keeper import Look, Mended
from kdumphpd.report.fields import Details, duration_text
from kdumphpd.report.journal import OnceUntilChanged, Reporter
from kdumphpd.report.records import Kind, Priority
from kdumphpd.report.summary import audit_details, complete, look_details, verdict_text


class Account:
    """Gives records the details that all of them have, and leaves out what was said before.

    Args:
        reporter: takes the records.
        uevents: how many uevents led here.
    """

    def __init__(self, reporter: Reporter, uevents: Callable[[], int]) -> None:
        self._reporter = reporter
        self._uevents = uevents
        self._trouble = OnceUntilChanged()
        self._audited = OnceUntilChanged()
        self._around: dict[str, OnceUntilChanged] = {}
        self._generation = 0
        self.choice = Choice()
        self.status = "starting"

    def record(
        self, kind: Kind, text: str, details: Details, priority: Priority | None = None
    ) -> None:
        """Make one record."""
        details = replace(details, generation=self._generation, uevents=self._uevents())
        self._reporter.record(kind, text, priority=priority, **vars(details))

    def current(self, look: Look) -> None:
        """Nothing is the matter."""
        self._trouble.over()
        self.status = complete(look)

    def loaded(
        self, kind: Kind, what: str, look: Look, mended: Mended, first_uevent: int | None
    ) -> None:
        """A load succeeded.

        Args:
            kind: of the record.
            what: it was done for.
            look: what it answered.
            mended: the load, and what was tried before it.
            first_uevent: when the first uevent that led to it came, if one did.
        """
        loaded = mended.loaded
        assert loaded is not None
        details = replace(look_details(look), armed=True, backend=loaded.backend)
        if mended.failures:
            self.record(Kind.FALLBACK, "; ".join(mended.failures), details)
        self.note_choice(self.choice.loaded(mended), look)
        self._trouble.over()
        self._generation += 1
        said = f"{loaded.backend} load, not armed for {duration_text(loaded.unarmed_usec)}"
        if loaded.kept:
            said = "kdump's own image is complete and stays"
        self.record(
            kind,
            "; ".join(filter(None, (what, said, loaded.problem))),
            replace(
                details,
                unarmed_usec=loaded.unarmed_usec,
                latency_usec=None
                if first_uevent is None
                else max(0, loaded.live_at - first_uevent),
                verdict=None if loaded.problem else _verdict(look).value,
            ),
        )
        self.status = loaded.problem or complete(look)

    def complain(self, problem: str, verdict: Verdict) -> None:
        """Record what could not be mended: once, until something else is the matter."""
        unloaded, unknown = verdict is Verdict.UNLOADED, verdict is Verdict.UNKNOWN
        self.status = f"{verdict.value}: {problem}"
        if not self._trouble.is_new((verdict, problem)):
            return
        self.record(
            Kind.DISARMED if unloaded else Kind.FALLBACK,
            f"{'NO CRASH KERNEL IS LOADED: ' if unloaded else ''}{problem}; trying again",
            Details(armed=None if unknown else not unloaded, verdict=verdict.value),
            Priority.ERR if unknown else Priority.CRIT,
        )

    def complain_of_us(self, error: Exception) -> None:
        """Record an error of our own making, with its place in the source."""
        *_, last = traceback.extract_tb(error.__traceback__) or [None]
        where = f" at {last.filename}:{last.lineno}" if last else ""
        text = f"an error in kdumphpd itself, please report it: {error!r}{where}"
        self.status = text
        if self._trouble.is_new(text):
            self.record(Kind.FALLBACK, f"{text}; trying again", Details(), Priority.CRIT)

    def stays_out(self, kind: Kind, text: str, look: Look, priority: Priority) -> None:
        """What is loaded, or not, is somebody's decision, and respected: said once."""
        self.status = text
        if self._trouble.is_new((kind, priority)):
            self.record(kind, text, look_details(look), priority)

    def trouble(self, name: str, text: str) -> None:
        """Warn of something around the image, once until it is over.

        Args:
            name: of the matter.
            text: what is wrong with it; empty if nothing is.
        """
        said = self._around.setdefault(name, OnceUntilChanged())
        if not text:
            said.over()
        elif said.is_new(text):
            self.record(Kind.STATUS, text, Details(), Priority.WARNING)

    def audited(
        self, kind: Kind, text: str, found: Audit, *, blind: bool, updates: int = 0
    ) -> None:
        """Record an audit; one of the daemon's own only if it says something new.

        Args:
            kind: of the record.
            text: what it says.
            found: the audit.
            blind: that nothing can be read is known already.
            updates: made since the last one; after an update the verdict is always said.
        """
        self.status = verdict_text(found)
        known = blind and found.verdict is Verdict.UNKNOWN
        repeated = known or not self._audited.is_new(text)
        if kind is Kind.AUDITED and repeated and not updates:
            return
        priority = None if found.verdict is Verdict.COMPLETE else Priority.WARNING
        self.record(kind, text, audit_details(found), priority)

    def note_choice(self, news: News | None, look: Look) -> None:
        """Record which way of loading is taken and why, when that is news."""
        if news is not None:
            quiet = news.as_it_ought or news.backend in (None, "kernel", "full", "delta")
            priority = Priority.INFO if quiet else None
            details = replace(look_details(look), backend=news.backend)
            self.record(Kind.FALLBACK, news.text, details, priority)

    def begin_anew(self) -> None:
        """With another configuration every trouble is news."""
        self._trouble = OnceUntilChanged()


def _verdict(look: Look) -> Verdict:
    """What a load of what was looked at comes to: a CPU without notes is not in it yet."""
    return Verdict.STALE if look.machine.missing_notes else Verdict.COMPLETE
