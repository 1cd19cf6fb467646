"""When the host's kdump has acted: files that change, whoever changes them.

What was weighed:

* **D-Bus** (kdump.service's ActiveState) sees ``systemctl restart kdump``, but not
  ``kdumpctl reload`` by hand, which is what administrators and kdump's own udev
  rule run. It needs a bus, a library that RHEL ships for the system's Python
  (python3-dasbus pulls in GLib and its loop), and tells nothing that the kernel's
  ``kexec_crash_loaded`` does not.
* **A drop-in for kdump.service** (ExecStartPost=, ExecReload=) is blind to
  kdumpctl by hand for the same reason, and changes the vendor's unit.
* **inotify on kdumpctl's lock**: each kdumpctl, whoever starts it, opens
  the lock file for writing, holds it until it exits, and so closes it last of all:
  IN_CLOSE_WRITE, when its work is done and the lock is free. A kdumpctl that is
  killed closes it too. IN_OPEN comes before its work: then its command can be seen
  (`kdumphpd.distribution.kdumpctl`). kdump-tools has no such lock, but writes its kexec
  command down after each load.

So it is inotify: no bus, no library, no change to another package's unit, one
more descriptor in the loop. It is a hint and no more: what is loaded is always read
back. What no file shows (``kdumpctl stop`` does: it takes the lock;
``kdump-config unload`` does not) the periodic audit finds.

Directories are watched and names picked out: files get replaced by rename, and
may not be there yet. Nor may the directory (kdump-config makes /var/crash): then the
nearest one above it that is there is watched for its making.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kdumphpd.distribution import inotify
from kdumphpd.distribution.inotify import Event, Inotify
from kdumphpd.distribution.stamps import Stamp, stamp

_MASK = inotify.IN_CLOSE_WRITE | inotify.IN_MOVED_TO | inotify.IN_CREATE | inotify.IN_ONLYDIR
#: Of 64 KiB, so some ten thousand events: uevents are looked at between two drains, whatever
#: others do in a directory that is everybody's (/var/crash).
_MAX_READS = 4
_MAX_TRIES = 4


@dataclass(frozen=True)
class Changed:
    """What changed since the last time.

    Attributes:
        paths: of those asked for.
        opened: of those whose opening was asked for.
        lost: a directory went away, or was made: anything in it may have changed.
    """

    paths: frozenset[Path]
    lost: bool
    opened: frozenset[Path] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.paths) or self.lost


class FileWatch:
    """Watches files by their directories, on one descriptor.

    Raises:
        OSError: there is no inotify instance to be had (fs.inotify.max_user_instances).
    """

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self._inotify = Inotify()
        # One inode has one watch, whatever names it goes by (/var/lock is /run/lock).
        self._directories: dict[int, set[Path]] = {}
        # By the name to look for: which of the asked-for paths it stands for.
        self._names: dict[Path, set[Path]] = {}
        # What would be the next step towards a directory that is not there.
        self._awaited: set[Path] = set()
        self._known: set[str] = set()
        self._paths: frozenset[Path] = frozenset()
        self._opening: frozenset[Path] = frozenset()
        self._missing: tuple[Path, ...] = ()
        # As they were before the events were read of which none was left.
        self._stamps: dict[Path, Stamp] = {}
        self.watch(paths)

    @property
    def missing(self) -> tuple[Path, ...]:
        """Asked-for paths whose directory cannot be watched, as of the last `watch`."""
        return self._missing

    def watch(self, paths: Iterable[Path], opening: Iterable[Path] = ()) -> None:
        """Watch ``paths`` from here on, and what they link to now; the old ones no longer.

        Args:
            paths: the files.
            opening: those among them of which each opening is told too.
        """
        self._paths, self._opening = frozenset(paths), frozenset(opening)
        known, self._stamps = self._stamps, self._stamps_now()
        self._stamps |= {path: known[path] for path in self._paths & known.keys()}
        # Again for a directory that was made between the two calls.
        for _ in range(_MAX_TRIES):
            self._watch_paths()
            if not any(map(os.path.isdir, self._awaited)):
                return

    def _watch_paths(self) -> None:
        names: dict[Path, set[Path]] = {}
        for path in self._paths:
            for name in {path, Path(os.path.realpath(path))}:
                names.setdefault(name, set()).add(path)
        added: dict[int, set[Path]] = {}
        awaited: set[Path] = set()
        missing: list[Path] = []
        for directory in sorted({name.parent for name in names}):
            named = (paths for name, paths in names.items() if name.parent == directory)
            told = any(not paths.isdisjoint(self._opening) for paths in named)
            # One directory may go by two names: neither takes bits of the other away.
            mask = _MASK | inotify.IN_MASK_ADD | (inotify.IN_OPEN if told else 0)
            try:
                added.setdefault(self._inotify.add(str(directory), mask), set()).add(directory)
            except OSError:
                below = (name for name in names if name.parent == directory)
                missing += [path for name in below for path in names[name]]
                self._await(directory, added, awaited)
        for wd in set(self._directories) - set(added):
            self._forget(wd)
        self._directories, self._names, self._awaited = added, names, awaited
        self._known = {path.name for path in (*names, *awaited)}
        self._missing = tuple(sorted(set(missing)))

    def fileno(self) -> int:
        """Descriptor to select on for reading."""
        return self._inotify.fileno()

    def drain(self) -> Changed:
        """Take what is waiting, without blocking."""
        paths: set[Path] = set()
        opened: set[Path] = set()
        lost = overflow = False
        before, now = self._stamps, self._stamps_now()
        for _ in range(_MAX_READS):
            events = self._inotify.read()
            if not events:
                self._stamps = now
                break
            for event in events:
                # Not Path, for each of the many names that nobody asked for.
                if event.name and event.name not in self._known:
                    continue
                overflow |= bool(event.mask & inotify.IN_Q_OVERFLOW)
                lost |= self._is_loss(event)
                if event.mask & inotify.IN_OPEN:
                    opened |= self._asked_for(event) & self._opening
                else:
                    paths |= self._asked_for(event)
        if overflow:
            # Whoever can make files in the directory (/var/crash) can make so many of them:
            # that is not kdump's doing. A lock that was closed and not written is missed.
            after = self._stamps_now()
            paths |= {path for path in self._paths if after[path] != before[path]}
        if lost or overflow:
            awaited = self._awaited
            self.watch(self._paths, self._opening)
            lost |= self._awaited != awaited
        return Changed(frozenset(paths), lost, frozenset(opened))

    def close(self) -> None:
        """Give up the descriptor."""
        self._inotify.close()

    def _is_loss(self, event: Event) -> bool:
        if event.mask & inotify.IN_IGNORED:
            # The kernel took the watch away with its directory; ours to forget.
            return self._directories.pop(event.wd, None) is not None
        # A directory that was awaited is there: so may the files in it be.
        named = {directory / event.name for directory in self._directories.get(event.wd, ())}
        return not named.isdisjoint(self._awaited)

    def _stamps_now(self) -> dict[Path, Stamp]:
        return {path: stamp((path,)) for path in self._paths}

    def _await(self, directory: Path, added: dict[int, set[Path]], awaited: set[Path]) -> None:
        """Watch the nearest directory above ``directory`` that is there."""
        for step in (directory, *directory.parents):
            try:
                wd = self._inotify.add(str(step.parent), _MASK)
            except OSError:
                continue
            added.setdefault(wd, set()).add(step.parent)
            awaited.add(step)
            return

    def _asked_for(self, event: Event) -> set[Path]:
        found: set[Path] = set()
        for directory in self._directories.get(event.wd, ()):
            path = directory / event.name
            # What is made now is still to be written, which ends with
            # IN_CLOSE_WRITE; a link is complete at once.
            if not event.mask & inotify.IN_CREATE or os.path.islink(path):
                found |= self._names.get(path, set())
        return found

    def _forget(self, wd: int) -> None:
        try:
            self._inotify.remove(wd)
        except OSError:
            # Its directory is gone, and the watch with it.
            return
