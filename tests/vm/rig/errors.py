"""What a test sees when the virtual machine, not the product, went wrong."""

from __future__ import annotations


class RigError(AssertionError):
    """A guest could not be built, booted, driven or dumped.

    An AssertionError, so that a machine which dies or hangs counts as a failed
    check and never as a skipped or broken one.
    """


class CommandFailedError(RigError):
    """A command in the guest ended with a non-zero exit code."""

    def __init__(self, command: str, exit_code: int, stdout: str, stderr: str) -> None:
        super().__init__(
            f"exit code {exit_code} in the guest: {command}\n"
            f"--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr
