"""RHEL's kdump-utils on a FakeHost: its library, its lock, its commands and its service.

::

    kdump = FakeKdumpUtils(host)       # installed, its service stopped, source = "auto"
    kdump.start(service)               # systemctl start kdump
    kdump.kdumpctl(service, "reload")  # by hand or by its hotplug rule
    kdump.breaks = True                # from here on its kexec fails, after it has unloaded

``service`` is the daemon's, which sees the lock as its inotify would; None while no daemon
runs. Line numbers are those of kdumpctl in kdump-utils v1.0.61.
"""

from __future__ import annotations

import shutil
from typing import Protocol

from kdumphpd.distribution.unit_state import UnitState
from kdumphpd.distribution.watch import Changed
from kdumphpd.machine.files import Root
from kdumphpd.service import Service
from tests.unit.fake_kdump import FakeKdump
from tests.unit.host_fixture import INITRD, KERNEL, FakeHost

LOCK = "/run/lock/kdump"
SYSCONFIG = "/etc/sysconfig/kdump"
LIBRARY = "/lib/kdump/kdump-lib.sh"
EARLY_INITRD = "/boot/initramfs-earlykdump"
OTHER_KERNEL = "/boot/vmlinuz-other"
LINE = "ro irqpoll nr_cpus=1"
_PID = "/proc/4711"

# By name, arguments and what they set; none of the real text.
_LIBRARY = f"""
echo asked >>"$COUNT"
prepare_kdump_bootinfo() {{
    KDUMP_KERNEL={KERNEL}
    KDUMP_INITRD={INITRD}
}}
prepare_cmdline() {{ echo "$1 $3"; }}
prepare_kexec_args() {{ echo "$1"; }}
"""


class LiveRoot(Root):
    """A tree that passes for the live host: its shell code is run."""

    @property
    def is_live(self) -> bool:
        return True


class HasRoot(Protocol):
    root: Root


class FakeKdumpUtils(FakeKdump):
    """See the module's docstring."""

    def __init__(self, host: FakeHost) -> None:
        self.line = LINE
        self.breaks = False
        if not host.kernel.refusals.get("kexec_file_load"):
            self.style = "kexec_file_load"
        super().__init__(host)

    def install(self) -> None:
        host = self.host
        host.root = host.kernel.root = LiveRoot(host.root.directory)
        self.count = host.root.path("/questions")
        host.write(LIBRARY, f"COUNT={self.count}\n{_LIBRARY}")
        host.write(LOCK, "")
        host.write(EARLY_INITRD, b"made earlier " * 500)
        other = bytearray(host.root.path(KERNEL).read_bytes())
        other[-1] ^= 0xFF
        host.write(OTHER_KERNEL, bytes(other))
        host.unit = UnitState.STOPPED
        self.configure(LINE)

    @property
    def questions(self) -> int:
        """How often its library was sourced by the product."""
        return self.count.read_text().count("asked") if self.count.exists() else 0

    def configure(self, line: str) -> Changed:
        """Edit sysconfig."""
        self.line = line
        path = self.host.write(
            SYSCONFIG,
            f'KDUMP_COMMANDLINE="{line}"\nKDUMP_COMMANDLINE_APPEND=""\nKEXEC_ARGS="-s"\n',
        )
        return Changed(frozenset({path}), lost=False)

    def damage_library(self) -> Changed:
        """prepare_cmdline fails from here on."""
        path = self.host.root.path(LIBRARY)
        path.write_text(path.read_text() + "prepare_cmdline() { return 1; }\n")
        return Changed(frozenset({path}), lost=False)

    # --- its service -------------------------------------------------------------------

    def start(self, service: Service | None) -> None:
        """``systemctl start kdump``."""
        if self.host.unit is UnitState.ACTIVE:
            return
        self.host.unit = UnitState.CHANGING
        self.kdumpctl(service, "start")
        self.host.unit = UnitState.ACTIVE if self.host.kernel.loaded else UnitState.FAILED

    def stop(self, service: Service | None) -> None:
        """``systemctl stop kdump``; it runs ExecStop= only if it is active."""
        if self.host.unit is UnitState.ACTIVE:
            self.host.unit = UnitState.CHANGING
            self.kdumpctl(service, "stop")
        self.host.unit = UnitState.STOPPED

    # --- kdumpctl ----------------------------------------------------------------------

    def kdumpctl(
        self, service: Service | None, command: str, *, seen: bool = True, xtrace: bool = False
    ) -> None:
        """Run one command, as line 133 on has it: lock, act, exit.

        Args:
            service: the daemon's.
            command: the first argument.
            seen: whether the daemon gets to run before it has ended.
            xtrace: under ``bash -x``, which adds rd.debug to the command line.
        """
        words = ["/bin/bash", *(["-x"] if xtrace else []), "/usr/bin/kdumpctl", command]
        self.host.write(f"{_PID}/cmdline", "\0".join([*words, ""]))
        self._tell(service, Changed(frozenset(), lost=False, opened=self._lock()), seen)
        self._run(command, self.line + (" rd.debug" if xtrace else ""))
        shutil.rmtree(self.host.root.path(_PID))
        self._tell(service, Changed(self._lock(), lost=False), True)

    def _run(self, command: str, line: str) -> None:
        kernel = self.host.kernel
        if command == "stop":  # stop_kdump, line 1407
            kernel.unload()
        elif command == "start" and not kernel.loaded:  # line 1236: "already running"
            self._load(line)
        elif command in ("reload", "restart"):  # stop_kdump comes first, line 1376
            kernel.unload()
            self._load(line)
        elif command == "test":  # set_kdump_test_id, line 2045
            kernel.unload()
            self._load(f"{line} kdump_test_id=1700000000-1")

    def _load(self, line: str) -> None:
        if not self.breaks:
            self.by_hand(line)

    def early(self) -> None:
        """Early kdump (dracut's 99earlykdump): another initrd, before any service."""
        self.by_hand(self.line, EARLY_INITRD)

    def _lock(self) -> frozenset:  # type: ignore[type-arg]
        return frozenset({self.host.root.path(LOCK)})

    def _tell(self, service: Service | None, changed: Changed, seen: bool) -> None:
        if service is not None:
            self.host.hints.say(changed)
            if seen:
                service.files_changed()
