"""The unit tests with the Pythons and libraries of other hosts; ``python -m tests.pythons``.

Each set is a Debian release's Python, its pyudev and systemd-python, and chosen releases of
the libraries from PyPI, in a tree of its own below ``build/pythons``, entered with chroot.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.vm.rig import BULLSEYE, SID, TRIXIE, Guest
from tests.vm.rig.guest_image import add_wheels, bootstrap
from tests.vm.rig.progress import log, step

TREE = Path(__file__).parents[1]
_BUNDLED = TREE / "packaging/rpm/bundled.txt"

#: What the tests call, the purgatory's compiler among it; not what only VMs need.
_PACKAGES = ("binutils", "file", "gcc", "libc6-dev", "python3-dev", "util-linux")
_TOOLS = (
    *("build", "drgn", "hypothesis", "installer", "meson", "meson-python", "ninja"),
    *("pyelftools", "pytest", "pytest-timeout", "qemu.qmp", "unicorn"),
    # Before Python 3.11 pytest needs these.
    *("exceptiongroup", "tomli", "typing-extensions"),
)


@dataclass(frozen=True)
class Set:
    """One Python and what it imports.

    Attributes:
        name: for ``--only``.
        guest: the release whose Python it is.
        wheels: requirements for what does not come from the release.
    """

    name: str
    guest: Guest
    wheels: tuple[str, ...]


def bundled(text: str) -> tuple[str, ...]:
    """The pinned requirements in ``text``, pip's format with hashes."""
    lines = (line.split()[0] for line in text.splitlines() if "==" in line)
    return tuple(line for line in lines if not line.startswith("#"))


def sets() -> tuple[Set, ...]:
    """The oldest that pyproject.toml allows, what the EL9 package bundles, and the newest."""
    # The build backend of the package's build is not what is tested.
    private = _BUNDLED.read_text(encoding="ascii").partition("# For the build only")[0]
    oldest = ("pydantic==2.0", "structlog==21.2", "tomli==1.1")
    newest = ("pydantic>=2", "structlog>=21.2")
    return (
        Set("3.9-oldest", BULLSEYE, oldest),
        Set("3.9-bundled", BULLSEYE, bundled(private)),
        Set("3.13-newest", TRIXIE, newest),
        Set("3.14-newest", SID, newest),
    )


def main(arguments: Sequence[str]) -> int:
    """Run each set's tests; 1 if some fail."""
    parser = argparse.ArgumentParser(prog="python -m tests.pythons", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="sets with TEXT in their name")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, behind --")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%X")
    chosen = [one for one in sets() if options.only in one.name]
    failed = [one.name for one in chosen if not _passes(one, options.pytest)]
    log.info("%d of %d sets passed", len(chosen) - len(failed), len(chosen))
    for name in failed:
        log.error("failed: %s", name)
    return 1 if failed or not chosen else 0


def _passes(one: Set, arguments: Sequence[str]) -> bool:
    root = TREE / "build/pythons" / one.name
    with step(f"{one.name}: tree"):
        _build(one, root)
    environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    # A mount namespace of its own: what is mounted goes with the last process.
    command = ["unshare", "--mount", "--fork", "--pid", "--kill-child", "sh", "-c", _ENTER]
    with step(f"{one.name}: unit tests"):
        done = subprocess.run([*command, "sh", str(root), *arguments], env=environment, check=False)
    if done.returncode == 0:
        shutil.rmtree(root)
    return done.returncode == 0


# Building packages is the development machine's business, and journald wants no chroot.
_ENTER = """\
root=$1; shift
# A test mounts, for which / has to be a mount point.
mount --bind "$root" "$root" && mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" &&
exec chroot "$root" sh -c 'cd /src && exec python3 -m pytest -q tests/unit \
    --ignore tests/unit/test_package.py --ignore tests/unit/test_packaging.py \
    --deselect tests/unit/test_journal.py::test_journald_stores_the_record "$@"' sh "$@"
"""


def _build(one: Set, root: Path) -> None:
    """A fresh tree with the Python, the libraries, the tools and a copy of this source."""
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    packages = (*one.guest.packages, *_PACKAGES)
    guest = replace(
        one.guest, kernel_packages=(), archives=(), packages=packages, wheels=(*one.wheels, *_TOOLS)
    )
    bootstrap(guest, root)
    add_wheels(guest, root, root / "wheels")
    _adapt_scripts(root, root / guest.site_packages.lstrip("/") / "bin")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=TREE, check=True, stdout=subprocess.PIPE
    ).stdout
    for name in filter(None, os.fsdecode(listed).split("\0")):
        target = root / "src" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TREE / name, target)


def _adapt_scripts(root: Path, directory: Path) -> None:
    """Have the tree's own Python run what pip wrote for the one that pip runs in."""
    for script in filter(Path.is_file, directory.iterdir()):
        first, newline, rest = script.read_bytes().partition(b"\n")
        if first.startswith(b"#!"):
            script.write_bytes(b"#!/usr/bin/python3" + newline + rest)
        (root / "usr/local/bin" / script.name).symlink_to(f"/{script.relative_to(root)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
