"""What a test brings along: files laid over the guest's disk as it boots."""

from __future__ import annotations

from pathlib import Path

from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile

from .guests import Guest


class Overlay:
    """A tree of files, by their absolute path in the guest.

    Use /usr/lib and /usr/bin, never /lib and /bin: those are symlinks in the guest.
    """

    def __init__(self, tree: Path) -> None:
        """Collect the files under ``tree``, a directory of its own."""
        self.tree = tree
        tree.mkdir(parents=True, exist_ok=True)

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Add a file."""
        file = self._place(path)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)

    def copy(self, source: Path, path: str) -> None:
        """Add a copy of a file of the host, with its mode."""
        self.write(path, source.read_bytes(), source.stat().st_mode & 0o777)

    def enable(self, unit: str, target: str = "multi-user.target") -> None:
        """Have ``unit`` started at boot, as ``systemctl enable`` would."""
        wants = self._place(f"/etc/systemd/system/{target}.wants/{unit}")
        wants.symlink_to(f"/usr/lib/systemd/system/{unit}")

    def install_wheel(self, wheel: Path, guest: Guest) -> None:
        """Install ``wheel`` for the guest's Python, its scripts in /usr/bin."""
        scheme = {
            "purelib": guest.site_packages,
            "platlib": guest.site_packages,
            "headers": "/usr/include",
            "scripts": "/usr/bin",
            "data": "/usr",
        }
        destination = SchemeDictionaryDestination(
            scheme, interpreter="/usr/bin/python3", script_kind="posix", destdir=str(self.tree)
        )
        with WheelFile.open(wheel) as source:
            install(source, destination, additional_metadata={})

    def _place(self, path: str) -> Path:
        file = self.tree / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        return file
