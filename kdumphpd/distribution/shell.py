"""One bash that asks a distribution's shell library, kept on a short leash.

The library may print what it likes, leave children behind or hang: the answer
goes to a descriptor of its own, and the whole process group ends with the
time limit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BASH = "/bin/bash"

# No variable of the daemon's environment reaches the library: sysconfig's
# values must be the only ones, as they are when systemd starts kdumpctl.
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/"}

# An answer is a few KiB. The limit is also the largest file that the library
# may write (RLIMIT_FSIZE), so that one that prints for ever ends by itself.
_MAX_BYTES = 1 << 20
_TAIL_BYTES = 4096


@dataclass(frozen=True)
class Reply:
    """What came of a script.

    Attributes:
        values: what it answered, by name.
        messages: the end of what it printed to standard output and error.
        status: its exit status; negative for the signal that ended it.
        timed_out: whether it was ended for taking too long.
    """

    values: dict[str, str]
    messages: str
    status: int
    timed_out: bool

    @property
    def last_message(self) -> str:
        """The last line that it printed, empty if it printed none."""
        lines = [line.strip() for line in self.messages.splitlines() if line.strip()]
        return "".join(char if char.isprintable() else "?" for char in lines[-1]) if lines else ""


def run(script: str, arguments: Sequence[str], limit_seconds: float) -> Reply:
    """Run ``script`` in bash.

    Args:
        script: the text. ``$1`` is the number of the descriptor for the answer,
            which is ``name=value`` strings, each ended by a zero byte.
        arguments: ``$2`` and on.
        limit_seconds: how long it may take.

    Raises:
        OSError: bash cannot be started.
    """
    # Files and not pipes: a child that outlives the script and holds the
    # descriptor cannot keep us waiting for an end of file.
    with _memory("answer") as answer, _memory("messages") as messages:
        process = subprocess.Popen(
            [BASH, "--norc", "--noprofile", "-c", _LIMIT + script, "bash", str(answer), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            pass_fds=(answer,),
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        timed_out = False
        try:
            process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            # What it left in the background goes too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        size = os.fstat(messages).st_size
        tail = os.pread(messages, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        values = parse_answer(os.pread(answer, _MAX_BYTES, 0))
    return Reply(values, tail.decode("utf-8", "replace"), process.returncode, timed_out)


_LIMIT = f"ulimit -f {_MAX_BYTES >> 10}\n"


def parse_answer(data: bytes) -> dict[str, str]:
    """Take ``name=value`` strings apart; what is not ended by a zero byte does not count."""
    values = {}
    for record in data.split(b"\0")[:-1]:
        name, separator, value = record.partition(b"=")
        if separator:
            values[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return values


@contextlib.contextmanager
def _memory(name: str) -> Iterator[int]:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
