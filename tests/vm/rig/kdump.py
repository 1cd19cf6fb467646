"""kdump as on RHEL and Fedora, laid over a guest: its stand-in, or the real scripts."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from . import initramfs
from .errors import RigError
from .guest_image import GuestImage
from .overlay import Overlay

STAND_IN = Path(__file__).parents[1] / "stand_in"

EARLY_UNIT = """\
[Unit]
Description=What the initramfs does with early kdump
DefaultDependencies=no
Before=kdump.service basic.target

[Service]
Type=oneshot
ExecStart=/bin/bash /usr/lib/kdump/early-kdump.sh
"""

_STAND_IN_PLACES = {
    "kdumpctl": "/usr/bin/kdumpctl",
    "mkdumprd": "/usr/sbin/mkdumprd",
    "dracut-functions.sh": "/usr/lib/dracut/dracut-functions.sh",
    "kdump-lib.sh": "/usr/lib/kdump/kdump-lib.sh",
    "kdump-logger.sh": "/usr/lib/kdump/kdump-logger.sh",
    "early-kdump.sh": "/usr/lib/kdump/early-kdump.sh",
    "kdump-udev-throttler": "/usr/lib/udev/kdump-udev-throttler",
    "98-kexec.rules": "/usr/lib/udev/rules.d/98-kexec.rules",
    "kdump.service": "/usr/lib/systemd/system/kdump.service",
    "sysconfig": "/etc/sysconfig/kdump",
    "kdump.conf": "/etc/kdump.conf",
}

# kdump-utils' own Makefile says the same (install:), kexec-tools.spec of EL 8 and 9 too.
_REAL_PLACES = {
    "kdumpctl": "/usr/bin/kdumpctl",
    "mkdumprd": "/usr/sbin/mkdumprd",
    "kdump-lib.sh": "/usr/lib/kdump/kdump-lib.sh",
    "kdump-lib-initramfs.sh": "/usr/lib/kdump/kdump-lib-initramfs.sh",
    "kdump-logger.sh": "/usr/lib/kdump/kdump-logger.sh",
    "kdump-udev-throttler": "/usr/lib/udev/kdump-udev-throttler",
    "98-kexec.rules": "/usr/lib/udev/rules.d/98-kexec.rules",
    "kdump.service": "/usr/lib/systemd/system/kdump.service",
    "kdump-dep-generator.sh": "/usr/lib/systemd/system-generators/kdump-dep-generator.sh",
}
_EXECUTABLE = ("kdumpctl", "mkdumprd", "kdump-udev-throttler", "kdump-dep-generator.sh")
_MODULES = "/usr/lib/dracut/modules.d"


def kernel_release(kernel: Path) -> str:
    """What ``uname -r`` says of a bzImage (kernel_version, Documentation/arch/x86/boot.rst)."""
    data = kernel.read_bytes()
    offset = int.from_bytes(data[0x20E:0x210], "little") + 0x200
    return data[offset : offset + 256].split(b"\0")[0].split(b" ")[0].decode()


def add_kdump(overlay: Overlay, image: GuestImage) -> None:
    """Install the stand-in for kdump-utils, and enable its unit.

    Args:
        overlay: gets the files.
        image: where the overlay is going to lie.
    """
    for name, place in _STAND_IN_PLACES.items():
        overlay.copy(STAND_IN / name, place)
    _add_host(overlay, image)


def add_real_kdump(overlay: Overlay, image: GuestImage, source: Path) -> None:
    """Install the real scripts as their package would, and enable their unit.

    Under emulation dracut takes minutes for an initrd, so the rig's is there already.

    Args:
        overlay: gets the files.
        image: where the overlay is going to lie.
        source: a checkout of kdump-utils, or the SOURCES of EL's kexec-tools.

    Raises:
        RigError: ``source`` is neither.
    """
    if not (source / "kdumpctl").exists():
        raise RigError(f"{source} has no kdumpctl: not a checkout of kdump-utils or kexec-tools")
    for name, place in _REAL_PLACES.items():
        mode = 0o755 if name in _EXECUTABLE else 0o644
        overlay.write(place, (source / name).read_bytes(), mode)
    configuration = _generated(source / "gen-kdump-conf.sh")
    overlay.write("/etc/kdump.conf", f"{configuration}\nforce_no_rebuild 1\n")
    overlay.write("/etc/sysconfig/kdump", _sysconfig(source))
    _add_dracut_modules(overlay, source)
    _add_host(overlay, image)
    overlay.write(
        f"/boot/initramfs-{kernel_release(image.kernel)}kdump.img", marked(image, "kdump")
    )
    overlay.write("/usr/lib/kdump/early-kdump.sh", _early(source))


def marked(image: GuestImage, mark: str) -> bytes:
    """The rig's capture initramfs with ``mark`` in it, which it says as it starts."""
    with tempfile.TemporaryDirectory() as scratch:
        tree, archive = Path(scratch, "tree"), Path(scratch, "archive")
        tree.mkdir()
        (tree / "mark").write_text(f"{mark}\n")
        initramfs.pack(tree, archive)
        return image.initramfs.read_bytes() + archive.read_bytes()


def _add_host(overlay: Overlay, image: GuestImage) -> None:
    release = kernel_release(image.kernel)
    # The system's own initramfs: kdump names its initrd after it, and does not read it.
    overlay.write(f"/boot/initramfs-{release}.img", "")
    overlay.write("/usr/lib/systemd/system/early-kdump.service", EARLY_UNIT)
    overlay.enable("kdump.service")


def _generated(script: Path) -> str:
    done = subprocess.run(
        ["bash", str(script), "x86_64"], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode != 0:
        raise RigError(f"{script}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def _sysconfig(source: Path) -> str:
    generator = source / "gen-kdump-sysconfig.sh"
    if generator.exists():
        return _generated(generator)
    return (source / "kdump.sysconfig.x86_64").read_text()


def _add_dracut_modules(overlay: Overlay, source: Path) -> None:
    """Both modules; EL's kexec-tools has their files as dracut-NAME beside all others."""
    for file in sorted((source / "dracut").glob("99*kdump*/*")):
        _add_module_file(overlay, file, file.parent.name, file.name)
    for file in sorted(source.glob("dracut-*")):
        name = file.name[len("dracut-") :]
        if name.startswith("fadump-"):
            continue
        early = name.startswith("early-kdump-module-")
        name = name[len("early-kdump-") :] if early else name
        module = "99earlykdump" if early or name == "early-kdump.sh" else "99kdumpbase"
        _add_module_file(overlay, file, module, name)


def _add_module_file(overlay: Overlay, file: Path, module: str, name: str) -> None:
    mode = 0o644 if name.endswith((".service", ".target")) else 0o755
    overlay.write(f"{_MODULES}/{module}/{name}", file.read_bytes(), mode)


def _early(source: Path) -> str:
    """early-kdump.sh, to be run in the running system: it names an initramfs' files."""
    named = (source / "dracut/99earlykdump/early-kdump.sh", source / "dracut-early-kdump.sh")
    (file,) = (one for one in named if one.exists())
    text = file.read_text()
    for name in ("kdump-lib.sh", "kdump-logger.sh"):
        text = text.replace(f". /lib/{name}", f". /lib/kdump/{name}")
    return text.replace(". /lib/dracut-lib.sh", ". /lib/dracut/modules.d/99base/dracut-lib.sh")
