"""Initramfs archives: the one that boots and captures, and a test's overlay."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from pathlib import Path

from .errors import RigError

# Modules of the two paths through guest/init, loaded in this order. ext4 asks the
# crypto API for crc32c by name, so modules.dep does not know that dependency.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
CAPTURE_MODULES = ("virtio_pci", "9pnet_virtio", "9p")

_MODULE_NAME = re.compile(r"/([^/]+?)\.ko(?:\.\w+)?$")


def pack(tree: Path, archive: Path) -> None:
    """Write ``tree`` as an uncompressed newc archive, everything owned by root."""
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    with archive.open("wb") as out:
        subprocess.run(
            ["cpio", "--quiet", "--null", "-o", "-H", "newc", "-R", "+0:+0"],
            cwd=tree,
            input=b"".join(name.encode() + b"\0" for name in names),
            stdout=out,
            check=True,
            timeout=120,
        )


def build(root: Path, init: Path, archive: Path, work: Path) -> None:
    """Make the initramfs of the system in ``root``.

    Args:
        root: root directory of the guest, with one kernel's modules.
        init: the first process, a busybox script.
        archive: file to write.
        work: empty directory to assemble the tree in.
    """
    for name in ("bin", "dev", "proc", "sys", "root", "tmp", "modules"):
        (work / name).mkdir(parents=True)
    shutil.copy(init, work / "init")
    (work / "init").chmod(0o755)
    _add_busybox(root, work)
    _add_program(root, "usr/bin/makedumpfile", work)
    for list_name, wanted in (
        ("boot.list", BOOT_MODULES),
        ("capture.list", CAPTURE_MODULES),
    ):
        _add_modules(root, wanted, work / "modules", list_name)
    pack(work, archive)


def _add_busybox(root: Path, work: Path) -> None:
    busybox = work / "bin/busybox"
    shutil.copy(root / "usr/bin/busybox", busybox)
    applets = subprocess.run(
        [busybox, "--list"], capture_output=True, text=True, check=True, timeout=30
    ).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (work / "bin" / applet).symlink_to("busybox")


def _add_program(root: Path, program: str, work: Path) -> None:
    """Copy ``program`` and the libraries that the guest's own loader finds for it."""
    loader = root / "usr/lib64/ld-linux-x86-64.so.2"
    if not loader.exists():
        loader = root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    libraries = root / "usr/lib/x86_64-linux-gnu"
    listed = subprocess.run(
        [loader, "--list", "--library-path", libraries, root / program],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    for directory in ("lib64", "usr/bin", "usr/lib/x86_64-linux-gnu"):
        (work / directory).mkdir(parents=True, exist_ok=True)
    shutil.copy(loader, work / "lib64/ld-linux-x86-64.so.2")
    shutil.copy(root / program, work / "usr/bin")
    for path in re.findall(r"=> (\S+)", listed):
        if "ld-linux" not in path:
            shutil.copy(path, work / "usr/lib/x86_64-linux-gnu")


def _add_modules(root: Path, wanted: tuple[str, ...], into: Path, list_name: str) -> None:
    """Copy ``wanted`` with what they depend on; list them in the order to insert them."""
    (directory,) = (root / "usr/lib/modules").iterdir()
    dependencies = _dependencies((directory / "modules.dep").read_text())
    built_in = {_name(line) for line in (directory / "modules.builtin").read_text().splitlines()}
    order: list[str] = []
    for name in wanted:
        if name not in dependencies:
            if name not in built_in and name != "crc32c_generic":
                raise RigError(f"the guest's kernel has no module {name}")
            continue
        for path in dependencies[name]:
            file = f"{_name(path)}.ko"
            if file not in order:
                order.append(file)
                (into / file).write_bytes(_uncompressed(directory / path))
    (into / list_name).write_text("".join(f"{file}\n" for file in order))


def _dependencies(modules_dep: str) -> dict[str, list[str]]:
    """Map a module's name to the paths to insert, dependencies first (depmod(8))."""
    found = {}
    for line in modules_dep.splitlines():
        path, _, needs = line.partition(":")
        found[_name(path)] = [*reversed(needs.split()), path]
    return found


def _name(path: str) -> str:
    match = _MODULE_NAME.search("/" + path)
    if match is None:
        raise RigError(f"not a module's path: {path!r}")
    return match.group(1)


def _uncompressed(module: Path) -> bytes:
    if module.suffix == ".zst":
        return subprocess.run(
            ["zstd", "--decompress", "--stdout", module],
            capture_output=True,
            check=True,
            timeout=30,
        ).stdout
    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data
