"""The kinds of journal record, one table for the daemon, the catalog and ``status``.

A MESSAGE_ID never changes once released: filters and the catalog
(systemd/kdumphpd.catalog) know a record by it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Priority(enum.IntEnum):
    """Priorities of syslog(3), as the journal's PRIORITY field has them."""

    CRIT = 2
    ERR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


@dataclass(frozen=True)
class Record:
    """What all records of a kind have in common.

    Attributes:
        message_id: MESSAGE_ID, 32 hex digits.
        priority: what it has unless the record says otherwise.
        meaning: one sentence.
    """

    message_id: str
    priority: Priority
    meaning: str


class Kind(enum.Enum):
    """The kinds; KDUMPHPD_EVENT is the name in small letters."""

    STARTED = Record(
        "fd618d9191194150869ebb848a223651", Priority.INFO, "The daemon runs and has taken charge."
    )
    ADOPTED = Record(
        "8700ea7fce3e41f6b874e8930da8a36e",
        Priority.INFO,
        "The wanted image is kept, or was loaded in the place of the one kdump loaded.",
    )
    UPDATED = Record(
        "54d92c7e979243de882459a625528215",
        Priority.NOTICE,
        "The header now describes the machine after a change.",
    )
    UNCHANGED = Record(
        "104e6209ac86417bb499d04afab0d494",
        Priority.INFO,
        "A burst of uevents is over; the header was current all along.",
    )
    AUDITED = Record(
        "86c5d1bdab68493d9c6591c6f4d02f84",
        Priority.INFO,
        "What is loaded was read back and compared.",
    )
    REPAIRED = Record(
        "ff00ed2dae544574a4c4343e83fcbec6",
        Priority.WARNING,
        "What was loaded was stale or damaged, and has been mended.",
    )
    FALLBACK = Record(
        "298c6ff489c14ecfaec70865c97c4906",
        Priority.WARNING,
        "A backend failed or does not fit, the next one took over.",
    )
    DISARMED = Record(
        "5468002349f7417d917e436700e6e190",
        Priority.CRIT,
        "No crash kernel is loaded, and none could be.",
    )
    FOREIGN = Record(
        "4bcf131fe38c4ca1af231c4644fab639", Priority.WARNING, "Another program's image is loaded."
    )
    STOPPED = Record("b964c31030874e6db2806378b2fd13d5", Priority.NOTICE, "The daemon ends.")
    STATUS = Record(
        "06cef51981ae41599fc7126fe3f1374b",
        Priority.INFO,
        "The present state, asked for with SIGUSR1.",
    )

    @property
    def event(self) -> str:
        """The value of KDUMPHPD_EVENT."""
        return self.name.lower()

    @property
    def message_id(self) -> str:
        """The value of MESSAGE_ID."""
        return self.value.message_id

    @property
    def priority(self) -> Priority:
        """What a record of this kind has unless it says otherwise."""
        return self.value.priority
