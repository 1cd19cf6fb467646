"""User memory with a known content, to be looked for in the vmcore."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .errors import RigError
from .guest_shell import GuestShell
from .machine import Dimm
from .progress import step

_OUTPUT = "/run/pattern.json"
_UNIT = "hold-pattern.service"


@dataclass(frozen=True)
class Pattern:
    """A process in the guest that holds ``content`` at the start of some pages."""

    guest: GuestShell
    content: bytes

    def addresses(self) -> list[int]:
        """Physical addresses of the pages, as they are now."""
        self.guest.run(f"rm {_OUTPUT} && systemctl kill --signal=SIGUSR1 {_UNIT}")
        self.guest.wait_until(f"test -e {_OUTPUT}", 30)
        return [int(address) for address in json.loads(self.guest.read(_OUTPUT))]


def hold_pattern(guest: GuestShell, dimm: Dimm, content: bytes, pages: int = 16) -> Pattern:
    """Have user memory hold ``content`` in ``pages`` pages of ``dimm`` until the crash."""
    arguments = f"{dimm.start:x} {dimm.end:x} {pages} {content.hex()} {_OUTPUT}"
    with step(f"pattern into {dimm.name}"):
        guest.run(
            f"systemd-run --quiet --unit={_UNIT} --service-type=notify "
            f"-p LimitMEMLOCK=infinity /usr/local/bin/hold-pattern {arguments}",
            timeout=120,
        )
        pattern = Pattern(guest, content)
        outside = [a for a in pattern.addresses() if not dimm.start <= a <= dimm.end]
        if outside:
            raise RigError(f"pages with the pattern have left {dimm.name}: {outside}")
    return pattern
