"""``source = "auto"``: find the host's kdump and take its image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdumphpd.distribution import kdump_tools, kdump_utils, verification
from kdumphpd.distribution.asked import KNOWN_KEXEC_OPTIONS, Asked, prepared_crypt_keys
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
        loaded: the files that it writes after it has loaded.
        asked: the files that decide what it would load, besides kernel and initrd.
        tells_command: whether it opens the lock first of all, whatever it is about to do,
            so that its command can be seen (`kdumphpd.distribution.kdumpctl`).
    """

    name: str
    unit: str
    restart: str
    lock: Path
    loaded: tuple[Path, ...]
    asked: tuple[Path, ...]
    tells_command: bool


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
            (),
            tuple(root.path(one) for one in kdump_utils.DECIDING_FILES),
            tells_command=True,
        )
    if kdump_tools.is_here(root):
        lock = root.path(str(kdump_tools.lock_path(root)))
        return Kdump(
            "kdump-tools",
            "kdump-tools.service",
            "kdump-config reload",
            lock,
            (command := root.path(str(kdump_tools.command_path(root))),),
            (command,),
            tells_command=False,
        )
    return None


def ask(root: Root, kdump: Kdump | None, syscall: str) -> ImageSpec:
    """The image that the host's kdump would load.

    Args:
        root: the host.
        kdump: its kdump.
        syscall: ``[image] syscall``.

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
        return spec(root, kdump, kdump_tools.ask(root), syscall)
    if not root.is_live:
        # It is shell code: what a recorded tree brings along must not run.
        raise ConfigError(
            f"{root.path(kdump_utils.LIBRARY)} can only be asked on its own host",
            'for a recorded tree set source = "explicit", kernel, initrd and command_line',
        )
    return spec(root, kdump, kdump_utils.ask(root), syscall)


def spec(root: Root, kdump: Kdump, asked: Asked, syscall: str) -> ImageSpec:
    """Put down what was asked as an `ImageSpec`; arguments as for `ask`."""
    arguments = asked.kexec_arguments
    verified_by = verification.verifier(root)
    only_kdump = _only_kdump(root, asked)
    origins = [
        ("kernel", asked.kernel_origin),
        ("initrd", asked.initrd_origin),
        ("command_line", asked.command_line_origin),
    ]
    if arguments:
        origins.append(("kexec_arguments", " ".join(arguments)))
    return ImageSpec(
        asked.kernel,
        asked.initrd,
        asked.command_line,
        origin=kdump.name,
        origins=tuple(origins),
        no_kexec_load=only_kdump or verification.no_kexec_load(syscall, arguments, verified_by),
        no_file_load=only_kdump,
        remark="" if only_kdump else verification.not_followed(syscall, arguments, verified_by),
    )


def _only_kdump(root: Root, asked: Asked) -> str:
    """Why only kdump's own command can load it; empty if we can."""
    keys = asked.crypt_devices or prepared_crypt_keys(root)
    if keys:
        # Without keys kexec_file_load(2) succeeds, and the dump target stays locked.
        return (
            f"the dump target is encrypted (LUKS {', '.join(keys)}) and only kdump's own"
            " command prepares its keys for the crash kernel"
        )
    unknown = [one for one in asked.kexec_arguments if one not in KNOWN_KEXEC_OPTIONS]
    if unknown:
        return f"only kdump's own command follows kexec's option {unknown[0]}"
    return ""
