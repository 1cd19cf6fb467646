"""Commands and files in the guest, through the QEMU guest agent."""

from __future__ import annotations

import base64
import shlex
import time
from pathlib import Path

from .control import Control
from .errors import CommandFailedError, RigError

_POLL_SECONDS = 0.1


class GuestShell:
    """Runs shell commands as root in the guest."""

    def __init__(self, agent: Control) -> None:
        self._agent = agent

    def wait_until_up(self, timeout: float) -> None:
        """Wait for the agent's first answer."""
        self._agent.execute("guest-ping", timeout=timeout)

    def run(self, command: str, timeout: float = 60) -> str:
        """Run ``command`` with /bin/sh and return what it wrote to stdout.

        Raises:
            CommandFailedError: its exit code is not 0.
            RigError: it takes more than ``timeout`` seconds, or was killed.
        """
        exit_code, stdout, stderr = self.try_run(command, timeout)
        if exit_code != 0:
            raise CommandFailedError(command, exit_code, stdout, stderr)
        return stdout

    def try_run(
        self, command: str, timeout: float = 60, stdin: bytes = b""
    ) -> tuple[int, str, str]:
        """Run ``command`` and return its exit code, stdout and stderr."""
        deadline = time.monotonic() + timeout
        process = self.start(command, stdin)
        while True:
            status = self._agent.execute("guest-exec-status", {"pid": process})
            if status["exited"]:
                break
            if time.monotonic() > deadline:
                raise RigError(f"still running after {timeout:.0f} s in the guest: {command}")
            time.sleep(_POLL_SECONDS)
        if "exitcode" not in status:
            raise RigError(f"killed by signal {status.get('signal')} in the guest: {command}")
        return status["exitcode"], _text(status, "out-data"), _text(status, "err-data")

    def start(self, command: str, stdin: bytes = b"") -> int:
        """Start ``command`` and return its process id without waiting for it."""
        arguments = {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        return int(self._agent.execute("guest-exec", arguments)["pid"])

    def read(self, path: str) -> str:
        """Contents of a text file in the guest, /proc and /sys included."""
        return self.run(f"cat {shlex.quote(path)}")

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file in the guest; its directory must exist."""
        data = content.encode() if isinstance(content, str) else content
        handle = self._agent.execute("guest-file-open", {"path": path, "mode": "w"})
        try:
            for offset in range(0, len(data), 1 << 20):
                chunk = base64.b64encode(data[offset : offset + (1 << 20)]).decode()
                self._agent.execute("guest-file-write", {"handle": handle, "buf-b64": chunk})
        finally:
            self._agent.execute("guest-file-close", {"handle": handle})
        self.run(f"chmod {mode:o} {shlex.quote(path)}")

    def push(self, source: Path, path: str) -> None:
        """Copy a file of the host into the guest, keeping its mode."""
        self.write(path, source.read_bytes(), source.stat().st_mode & 0o777)

    def wait_until(self, command: str, timeout: float) -> str:
        """Run ``command`` again and again until its exit code is 0; return its stdout."""
        deadline = time.monotonic() + timeout
        while True:
            exit_code, stdout, stderr = self.try_run(command)
            if exit_code == 0:
                return stdout
            if time.monotonic() > deadline:
                raise RigError(
                    f"not true in the guest within {timeout:.0f} s: {command}\n{stdout}{stderr}"
                )
            time.sleep(_POLL_SECONDS)

    def wait_for_unit(self, unit: str, timeout: float = 60) -> None:
        """Wait until systemd calls ``unit`` active; a failed unit fails with its journal."""
        try:
            self.wait_until(f"systemctl is-active --quiet {shlex.quote(unit)}", timeout)
        except RigError as error:
            journal = self.try_run(f"journalctl --no-pager -o short-monotonic -n 50 -u {unit}")[1]
            raise RigError(f"{error}\n--- journal of {unit}\n{journal}") from error


def _text(status: dict[str, str], key: str) -> str:
    return base64.b64decode(status.get(key, "")).decode("utf-8", "replace")
