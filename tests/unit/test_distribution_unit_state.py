"""What systemctl says, from a stand-in on the path."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdumphpd.distribution.unit_state import is_running


@pytest.mark.parametrize(
    ("said", "running"),
    [
        ("echo active", True),
        ("echo activating; exit 3", True),
        ("echo inactive; exit 3", False),
        ("echo failed; exit 3", False),
        ("echo unknown; exit 4", None),
        ("exit 1", None),
    ],
)
def test_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, running: bool | None
) -> None:
    tool = tmp_path / "systemctl"
    tool.write_text(f'#!/bin/sh\n[ "$*" = "is-active kdump.service" ] || exit 9\n{said}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert is_running("kdump.service") is running


def test_without_systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert is_running("kdump.service") is None
