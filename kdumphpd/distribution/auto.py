"""``source = "auto"``: find the host's kdump and take its image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdumphpd.distribution import kdump_tools, kdump_utils
from kdumphpd.distribution.asked import Asked, prepared_crypt_keys
from kdumphpd.errors import ConfigError
from kdumphpd.image.source import ImageSpec
from kdumphpd.machine.files import Root

_RUN_LOCK = "/run/lock"
_OLD_LOCK = "/var/lock"


@dataclass(frozen=True)
class Kdump:
    """The kdump that a distribution brings.

    Attributes:
        name: its package.
        unit: its service.
        restart: the command that loads its image again.
        lock: the file that it locks while it acts; it is taken around each of our loads.
        loaded: the files that it closes after writing whenever it has acted.
        asked: the files that decide what it would load, besides kernel and initrd.
    """

    name: str
    unit: str
    restart: str
    lock: Path
    loaded: tuple[Path, ...]
    asked: tuple[Path, ...]


def find(root: Root) -> Kdump | None:
    """The kdump of the host under ``root``; None if there is none that we know.

    Raises:
        ConfigError: its configuration cannot be read.
    """
    if kdump_utils.is_here(root):
        # kdumpctl (single_instance_lock): /run/lock/kdump, before 2022 /var/lock/kdump,
        # which systemd's tmpfiles make the same file.
        directory = _RUN_LOCK if root.path(_RUN_LOCK).is_dir() else _OLD_LOCK
        lock = root.path(f"{directory}/kdump")
        return Kdump(
            "kdump-utils",
            "kdump.service",
            "kdumpctl restart",
            lock,
            (lock,),
            (root.path(kdump_utils.SYSCONFIG),),
        )
    if kdump_tools.is_here(root):
        lock = root.path(str(kdump_tools.lock_path(root)))
        return Kdump(
            "kdump-tools",
            "kdump-tools.service",
            "kdump-config reload",
            lock,
            (root.path(str(kdump_tools.command_path(root))), lock),
            (),
        )
    return None


def ask(root: Root, kdump: Kdump | None) -> ImageSpec:
    """The image that the host's kdump would load.

    Raises:
        KdumphpdError: there is no kdump here, or it cannot say.
    """
    if kdump is None:
        raise ConfigError(
            "the kdump of this host is none that kdumphpd can ask"
            f" (no {root.path(kdump_utils.LIBRARY)}, no {root.path(kdump_tools.TOOL)})",
            'set source = "explicit", kernel, initrd and command_line in [image]',
        )
    if kdump.name == "kdump-tools":
        return spec(root, kdump, kdump_tools.ask(root))
    if not root.is_live:
        # It is shell code: what a recorded tree brings along must not run.
        raise ConfigError(
            f"{root.path(kdump_utils.LIBRARY)} can only be asked on its own host",
            'for a recorded tree set source = "explicit", kernel, initrd and command_line',
        )
    return spec(root, kdump, kdump_utils.ask(root))


def spec(root: Root, kdump: Kdump, asked: Asked) -> ImageSpec:
    """Put down what was asked as an `ImageSpec` that says where each value comes from."""
    origins = [
        ("kernel", asked.kernel_origin),
        ("initrd", asked.initrd_origin),
        ("command_line", asked.command_line_origin),
    ]
    if asked.kexec_arguments:
        origins.append(("kexec_arguments", f"{' '.join(asked.kexec_arguments)} (not followed)"))
    keys = asked.crypt_devices or prepared_crypt_keys(root)
    reason = ""
    if keys:
        reason = (
            f"the dump target is encrypted (LUKS {', '.join(keys)}) and only kexec_file_load"
            " hands its keys to the crash kernel"
        )
    return ImageSpec(
        asked.kernel,
        asked.initrd,
        asked.command_line,
        origin=kdump.name,
        origins=tuple(origins),
        needs_file_load=reason,
    )
