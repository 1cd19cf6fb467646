"""Physical memory of the guest from outside, through QEMU's gdbstub.

The remote serial protocol: https://sourceware.org/gdb/current/onlinedocs/gdb.html/Remote-Protocol.html
``Qqemu.PhyMemMode`` is QEMU's own packet (docs/system/gdb.rst).
"""

from __future__ import annotations

import socket
from pathlib import Path
from types import TracebackType

from .errors import RigError

_CHUNK = 1024  # bytes in one packet: below the stub's buffer of 4096 characters


class PhysicalMemory:
    """A debugger's session: the guest stands still from ``with`` to its end."""

    def __init__(self, stub: Path, timeout: float = 30) -> None:
        self._stub = stub
        self._timeout = timeout
        self._received = b""

    def __enter__(self) -> PhysicalMemory:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(self._timeout)
        self._socket.connect(str(self._stub))
        self._expect("OK", "Qqemu.PhyMemMode:1")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._expect("OK", "Qqemu.PhyMemMode:0")
                self._expect("OK", "D")  # detach: the guest runs on
        finally:
            self._socket.close()

    def read(self, address: int, length: int) -> bytes:
        """Read ``length`` bytes at physical ``address``."""
        parts = []
        for offset in range(0, length, _CHUNK):
            size = min(_CHUNK, length - offset)
            answer = self._ask(f"m{address + offset:x},{size:x}")
            try:
                parts.append(bytes.fromhex(answer))
            except ValueError:
                raise RigError(f"gdbstub: read at {address + offset:#x}: {answer}") from None
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Write ``data`` at physical ``address``."""
        for offset in range(0, len(data), _CHUNK):
            chunk = data[offset : offset + _CHUNK]
            self._expect("OK", f"M{address + offset:x},{len(chunk):x}:{chunk.hex()}")

    def flip(self, address: int) -> None:
        """Invert every bit of the byte at physical ``address``."""
        self.write(address, bytes([self.read(address, 1)[0] ^ 0xFF]))

    def _expect(self, wanted: str, packet: str) -> None:
        answer = self._ask(packet)
        if answer != wanted:
            raise RigError(f"gdbstub: {packet[:60]}: answered {answer!r}")

    def _ask(self, packet: str) -> str:
        """Send a packet, acknowledge and return the answer that follows it."""
        data = packet.encode()
        self._socket.sendall(b"$%s#%02x" % (data, sum(data) & 0xFF))
        while True:
            answer = self._packet()
            if answer[:1] not in (b"T", b"S"):  # the stop reply to our connecting
                return answer.decode()

    def _packet(self) -> bytes:
        while b"$" not in self._received or len(self._after_hash()) < 2:
            more = self._socket.recv(8192)
            if not more:
                raise RigError("gdbstub: connection closed")
            self._received += more
        _, _, rest = self._received.partition(b"$")
        body, _, rest = rest.partition(b"#")
        self._received = rest[2:]
        self._socket.sendall(b"+")
        return body

    def _after_hash(self) -> bytes:
        return self._received.partition(b"$")[2].partition(b"#")[2]
