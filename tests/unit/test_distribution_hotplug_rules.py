"""What the service does with the hotplug rules, on a tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdumphpd.distribution import udev_rules
from kdumphpd.distribution.hotplug_rules import LiveHotplugRules
from kdumphpd.machine.files import Root

NAME = "98-kexec.rules"


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each reload of udevd that was asked for."""
    asked: list[str] = []

    def reload() -> str:
        asked.append("reload")
        return ""

    monkeypatch.setattr(udev_rules, "reload_live_rules", reload)
    return asked


@pytest.fixture
def root(tmp_path: Path) -> Root:
    vendor = tmp_path / "usr/lib/udev/rules.d"
    vendor.mkdir(parents=True)
    (vendor / NAME).write_text('SUBSYSTEM=="cpu", RUN+="/bin/reload"\n')
    return Root(tmp_path)


def test_taken_over_once_and_given_back(root: Root, reloads: list[str]) -> None:
    rules, shadow = LiveHotplugRules(root), root.path(f"/run/udev/rules.d/{NAME}")
    for _ in range(3):
        assert rules.take_over() == ""
    assert udev_rules.is_ours(shadow)
    assert len(reloads) == 1
    for _ in range(2):
        assert rules.give_back() == ""
    assert not shadow.exists()
    assert len(reloads) == 2


def test_an_administrators_rule_is_a_problem_that_is_named(root: Root, reloads: list[str]) -> None:
    admin = root.path(f"/etc/udev/rules.d/{NAME}")
    admin.parent.mkdir(parents=True)
    admin.write_text("")
    assert f"/etc/udev/rules.d/{NAME}" in LiveHotplugRules(root).take_over()


def test_what_cannot_be_written_is_said_and_no_exception(root: Root, reloads: list[str]) -> None:
    root.path("/run").mkdir()
    root.path("/run/udev").write_text("not a directory")
    assert "/run/udev" in LiveHotplugRules(root).take_over()
    assert LiveHotplugRules(root).give_back() == ""
    assert reloads == []
