"""Debian's real kdump-tools in a guest, unpacked and not installed: no initrd is made anew."""

from __future__ import annotations

from tests.vm.rig import CAPTURE_COMMAND_LINE, Machine

KDUMP_TOOLS = f"""\
USE_KDUMP=1
KDUMP_KERNEL=/var/lib/kdump/vmlinuz
KDUMP_INITRD=/var/lib/kdump/initrd.img
KDUMP_CMDLINE="{CAPTURE_COMMAND_LINE}"
KDUMP_CMDLINE_APPEND="irqpoll"
KDUMP_COREDIR="/var/crash"
"""


def unpack_kdump_tools(vm: Machine) -> None:
    """Put its files in their places; its service is not started."""
    vm.guest.run(
        "dpkg-deb -x /var/lib/rig/kdump-tools_*.deb /tmp/kdump && cd /tmp/kdump"
        " && cp -a etc usr var / && cp -a lib/. /usr/lib/ && systemctl daemon-reload"
        # What kdump-config would make anew, in a minute, if it were not there.
        " && cp /boot/capture.img /var/lib/kdump/initrd.img-$(uname -r)"
        " && cp /etc/kdump/sysctl.conf /var/lib/kdump/latest_sysctls-$(uname -r)"
    )
    vm.guest.write("/etc/default/kdump-tools", KDUMP_TOOLS)
