"""The product's journal records in the guest, as monitoring would read them."""

from __future__ import annotations

import json
import time
from typing import Any

from .errors import RigError
from .guest_shell import GuestShell

_POLL_SECONDS = 0.5


class Journal:
    """Records of ``kdumphpd`` since the guest booted."""

    def __init__(self, guest: GuestShell) -> None:
        self._guest = guest

    def records(self, *events: str) -> list[dict[str, Any]]:
        """Records of the given kinds (KDUMPHPD_EVENT), or of all, oldest first."""
        lines = self._guest.run("journalctl -b -o json SYSLOG_IDENTIFIER=kdumphpd").splitlines()
        records = [json.loads(line) for line in lines]
        return [
            record
            for record in records
            if "KDUMPHPD_EVENT" in record and (not events or record["KDUMPHPD_EVENT"] in events)
        ]

    def numbers(self, field: str, *events: str) -> list[int]:
        """The values of one field in records that have it."""
        return [int(one[field]) for one in self.records(*events) if field in one]

    def wait_for(self, count: int, *events: str, timeout: float = 60) -> list[dict[str, Any]]:
        """Wait until there are ``count`` records of the given kinds, and return them."""
        deadline = time.monotonic() + timeout
        while True:
            records = self.records(*events)
            if len(records) >= count:
                return records
            if time.monotonic() > deadline:
                raise RigError(
                    f"{len(records)} records {events} after {timeout:.0f} s, wanted {count}:\n"
                    + self.text()
                )
            time.sleep(_POLL_SECONDS)

    def text(self) -> str:
        """The unit's journal as an operator sees it."""
        return self._guest.run("journalctl -b -u kdumphpd --no-pager -o short-monotonic")
