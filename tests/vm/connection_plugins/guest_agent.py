"""Lets Ansible reach a guest that has no network, as ssh would: through a QEMU guest agent.

Ansible comes as root and finds a shell; the modules are what it puts there itself.
"""

from __future__ import annotations

from pathlib import Path

from ansible.plugins.connection import ConnectionBase

from tests.vm.rig.control import Control
from tests.vm.rig.guest_shell import GuestShell

DOCUMENTATION = """
name: guest_agent
short_description: Run modules through a QEMU guest agent
description: Commands and files go through an agent of their own in the guest.
author: kdumphpd maintainers
options:
  socket:
    description: Path of QEMU's end of the agent's channel.
    required: true
    vars: [{name: ansible_guest_agent_socket}]
  remote_user:
    description: Whom the agent runs as.
    default: root
"""

# pip, and dnf's first look at its cache, under emulation.
_COMMAND_SECONDS = 300


class Connection(ConnectionBase):  # type: ignore[misc]
    """One task's connection; QEMU serves one at a time."""

    transport = "guest_agent"
    has_pipelining = True

    def _connect(self) -> Connection:
        if not self._connected:
            self._agent = Control.agent(Path(self.get_option("socket")))
            self._shell_in_guest = GuestShell(self._agent)
            self._connected = True
        return self

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        self._connect()
        code, stdout, stderr = self._shell_in_guest.try_run(cmd, _COMMAND_SECONDS, in_data or b"")
        return code, stdout.encode(), stderr.encode()

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        self._connect()
        self._shell_in_guest.push(Path(in_path), out_path)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        self._connect()
        Path(out_path).write_text(self._shell_in_guest.read(in_path))

    def close(self) -> None:
        if self._connected:
            self._agent.close()
            self._connected = False
