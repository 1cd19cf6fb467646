"""Builds a guest's disk, kernel and initramfs, or reuses the cached ones."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import initramfs
from .errors import RigError
from .guests import PACKAGES, Guest
from .progress import log, step

CACHE = Path("build/vm")

_HERE = Path(__file__).parent
_FILES = _HERE / "guest"
_CPU_RULES = "40-online-cpu.rules"

# Everything that a test never needs: documentation, and the kernel modules of
# hardware and networks which the guest does not have. dpkg lets "*" match "/".
_LEFT_OUT = (
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/zoneinfo/*",
    "path-exclude=/etc/kernel/postinst.d/initramfs-tools",
    "path-exclude=*/modules/*/kernel/drivers/*",
    "path-include=*/modules/*/kernel/drivers/acpi/*",
    "path-include=*/modules/*/kernel/drivers/block/virtio_blk*",
    "path-include=*/modules/*/kernel/drivers/char/*",
    "path-include=*/modules/*/kernel/drivers/dax/*",
    "path-include=*/modules/*/kernel/drivers/firmware/*",
    "path-include=*/modules/*/kernel/drivers/virtio/*",
    "path-exclude=*/modules/*/kernel/fs/*",
    "path-include=*/modules/*/kernel/fs/9p/*",
    "path-include=*/modules/*/kernel/fs/ext4/*",
    "path-include=*/modules/*/kernel/fs/fscache/*",
    "path-include=*/modules/*/kernel/fs/jbd2/*",
    "path-include=*/modules/*/kernel/fs/mbcache*",
    "path-include=*/modules/*/kernel/fs/netfs/*",
    "path-exclude=*/modules/*/kernel/net/*",
    "path-include=*/modules/*/kernel/net/9p/*",
    "path-exclude=*/modules/*/kernel/sound/*",
)

# What a suite does whose base system has /bin, /sbin and /lib as links into /usr.
_MERGE_USR = (
    'for d in bin sbin lib lib32 lib64 libx32; do ln -s usr/$d "$1/$d"; mkdir -p "$1/usr/$d"; done'
)

# Debian's own apt fetches them, as it does the packages.
_FETCH = (
    'mkdir "$1/var/lib/rig"; cd "$1/var/lib/rig";'
    ' APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get download -q {}'
)

# setfiles(8) reaches files through /proc/self/fd.
_SETFILES = (
    'mount -t proc proc "$1/proc";'
    ' chroot "$1" sh -c "setfiles /etc/selinux/*/contexts/files/file_contexts /"'
)

# Units that only cost time here; kexec-tools' own would unload or load behind us.
_MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty-static.service",
    "getty@tty1.service",
    "hwclock.service",
    "kexec-load.service",
    "kexec.service",
    "kmod.service",
    "remote-fs.target",
    "serial-getty@ttyS0.service",
    "systemd-binfmt.service",
    "systemd-logind.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-utmp.service",
)


@dataclass(frozen=True)
class GuestImage:
    """A built guest: ``directory`` holds its disk, kernel and initramfs."""

    guest: Guest
    directory: Path

    @property
    def disk(self) -> Path:
        """The root file system, ext4, to be attached with ``snapshot=on``."""
        return self.directory / "disk.ext4"

    @property
    def kernel(self) -> Path:
        """The bzImage; in the guest it is /boot/vmlinuz."""
        return self.directory / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        """Boots the disk, or captures; in the guest it is /boot/capture.img."""
        return self.directory / "initramfs.img"


def build_or_reuse(guest: Guest, cache: Path = CACHE) -> GuestImage:
    """Return the image of ``guest``, built only if nothing that makes it has changed."""
    image = GuestImage(guest, (cache / f"{guest.name}-{_key(guest)}").resolve())
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{guest.name}.lock"):
        if image.directory.exists():
            log.info("guest %s: reusing %s", guest.name, image.directory.name)
            return image
        if os.geteuid() != 0:
            raise RigError("building a guest needs root: run as root, or as root once")
        for stale in cache.glob(f"{guest.name}-*"):
            shutil.rmtree(stale)
        building = image.directory.with_name(image.directory.name + ".new")
        building.mkdir()
        with step(f"guest {guest.name}: building"):
            _build(guest, building)
        building.rename(image.directory)
    return image


def _key(guest: Guest) -> str:
    """Digest of all that an image is made of, the code that makes it included."""
    digest = hashlib.sha256(repr((guest, PACKAGES)).encode())
    sources = [Path(__file__), Path(initramfs.__file__), *sorted(_FILES.iterdir())]
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(guest: Guest, directory: Path) -> None:
    root = directory / "root"
    image = GuestImage(guest, directory)
    with step("packages (mmdebstrap)"):
        bootstrap(guest, root)
    with step("Python packages (pip)"):
        add_wheels(guest, root, directory / "wheels")
    _configure(root)
    shutil.copy(root / "boot/vmlinuz", image.kernel)
    with step("initramfs"):
        initramfs.build(root, _FILES / "init", image.initramfs, directory / "initramfs")
    shutil.copy(image.initramfs, root / "boot/capture.img")
    if (root / "usr/sbin/setfiles").exists():
        with step("labels (setfiles)"):
            _label(root)
    with step("disk (mke2fs)"):
        _make_disk(root, image.disk)
    shutil.rmtree(root)
    shutil.rmtree(directory / "initramfs")


def bootstrap(guest: Guest, root: Path) -> None:
    """Install the guest's packages, from the suite, in the directory ``root``."""
    include = ",".join((*PACKAGES, *guest.packages, *guest.kernel_packages))
    command = ["mmdebstrap", "--variant=minbase", "--format=directory", "--quiet"]
    command += ["--architectures=amd64", f"--include={include}"]
    command += [f"--setup-hook={_MERGE_USR}"] if guest.merge_usr else []
    command += [f"--dpkgopt={option}" for option in _LEFT_OUT]
    if guest.archives:
        command += [f"--customize-hook={_FETCH.format(' '.join(guest.archives))}"]
    sources = _apt_sources(guest)
    # A mirror's copy of sid may be older than its Release file allows; this machine's
    # configuration says whether that matters.
    if sources and not _apt_checks_age():
        command += ['--aptopt=Acquire::Check-Valid-Until "false"']
    # Without sources of its own mmdebstrap takes its default for the suite.
    command += [guest.suite, str(root), *(["-"] if sources else [])]
    _run(command, stdin="\n".join(sources), timeout=1800)


def _apt_sources(guest: Guest) -> list[str]:
    """Apt lines for ``guest`` from the mirrors that this machine itself uses."""
    if shutil.which("apt-get") is None:
        return []
    listed = _run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE)",
            "Created-By: Packages",
            "Origin: Debian",
            "Component: main",
        ],
        timeout=60,
    )
    archive = security = ""
    for line in listed.splitlines():
        uri, release = line.split()
        if release.endswith("-security"):
            security = uri
        elif "-" not in release:
            archive = uri
    if not archive:
        return []
    lines = [f"deb {archive} {guest.suite}{pocket} main" for pocket in guest.pockets]
    return lines + (
        [f"deb {security} {guest.suite}-security main"] if security and guest.security else []
    )


def _apt_checks_age() -> bool:
    name = "Acquire::Check-Valid-Until"
    return "false" not in _run(["apt-config", "shell", "VALUE", f"{name}/b"], timeout=60)


def add_wheels(guest: Guest, root: Path, wheels: Path) -> None:
    """Install from PyPI what the suite lacks, for the guest's own Python.

    In two steps: "pip install" for another Python takes releases that demand a later
    one, "pip download" does not.
    """
    pip = [sys.executable, "-m", "pip"]
    foreign = ["--only-binary=:all:", "--implementation=cp", f"--python-version={guest.python}"]
    foreign += ["--platform=manylinux2014_x86_64", "--platform=manylinux_2_17_x86_64"]
    _run([*pip, "download", "--quiet", *foreign, "-d", str(wheels), *guest.wheels], timeout=600)
    install = [*pip, "install", "--quiet", "--no-compile", "--no-index", "--no-deps", *foreign]
    found = [str(path) for path in sorted(wheels.glob("*.whl"))]
    _run([*install, "--target", f"{root}{guest.site_packages}", *found], timeout=600)
    shutil.rmtree(wheels)
    # By the guest's own Python. Uncompiled, they cost each start of a program seconds.
    compiling = ["chroot", str(root), "python3", "-m", "compileall", "-q", guest.site_packages]
    _run(compiling, timeout=300)


def _configure(root: Path) -> None:
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    (root / "boot/vmlinuz").symlink_to(kernel.name)
    for old in (root / "boot").glob("initrd.img-*"):
        old.unlink()
    (root / "etc/fstab").write_text("")  # guest/init mounts the only file system
    (root / "etc/modprobe.d/rig.conf").write_text("blacklist kvm_amd\nblacklist kvm_intel\n")
    (root / "etc/hostname").write_text("guest\n")
    (root / "etc/machine-id").write_text("6b64756d706870642d76696d2d726967\n")
    units = root / "etc/systemd/system"
    for name in _MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (units / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    journald = root / "etc/systemd/journald.conf.d"
    journald.mkdir(exist_ok=True)
    shutil.copy(_FILES / "journald.conf", journald / "rig.conf")
    shutil.copy(_FILES / _CPU_RULES, root / "etc/udev/rules.d" / _CPU_RULES)
    hold_pattern = root / "usr/local/bin/hold-pattern"
    shutil.copy(_FILES / "hold-pattern", hold_pattern)
    hold_pattern.chmod(0o755)
    # systemd would otherwise take this for a first boot, and rebuild its caches.
    for stamp in ("etc/.updated", "var/.updated"):
        (root / stamp).touch()


def _label(root: Path) -> None:
    """Give each file the label that the guest's SELinux policy has for it; mke2fs keeps them."""
    _run(["unshare", "--mount", "sh", "-ec", _SETFILES, "sh", str(root)], timeout=300)


def _make_disk(root: Path, disk: Path) -> None:
    used = int(_run(["du", "-s", "-m", str(root)], timeout=120).split()[0])
    command = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0"]
    _run([*command, "-d", str(root), str(disk), f"{used * 5 // 4 + 256}M"], timeout=600)


def _run(command: list[str], *, stdin: str = "", timeout: float) -> str:
    """Run ``command``; its output is part of the error if it fails."""
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        raise RigError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
