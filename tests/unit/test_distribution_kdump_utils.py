"""Asking kdump-utils' library: a stand-in for it, and everything it can do wrong."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd import processes
from kdumphpd.distribution import auto, kdump_utils, shell
from kdumphpd.distribution.asked import Asked
from kdumphpd.errors import BusyError, ConfigError, InputError, KdumphpdError
from kdumphpd.machine.files import Root

# The functions of kdump-lib.sh by name, result and side effect; none of its text.
LIBRARY = """
prepare_kdump_bootinfo()
{
    KDUMP_KERNELVER=${KDUMP_KERNELVER:-6.1.0-running}
    KDUMP_KERNEL=/boot/$KDUMP_IMG-$KDUMP_KERNELVER
    [ -e "$ROOT$KDUMP_KERNEL" ] || { echo "no kernel for $KDUMP_KERNELVER" >&2; return 1; }
    KDUMP_INITRD=/boot/initramfs-${KDUMP_KERNELVER}kdump.img
}
prepare_cmdline()
{
    local line=${1:-"ro quiet crashkernel=1G console=ttyS0"} word
    for word in $line; do
        case " $2 crashkernel=1G " in *" $word "*) ;; *) printf '%s ' "$word" ;; esac
    done
    echo "$3"
}
prepare_kexec_args() { echo "$1"; }
is_fadump_capable() { return 1; }
"""
SYSCONFIG = """
KDUMP_KERNELVER=""
KDUMP_COMMANDLINE_REMOVE="quiet"
KDUMP_COMMANDLINE_APPEND="irqpoll nr_cpus=1"
KEXEC_ARGS="-s"
KDUMP_IMG="vmlinuz"
"""


class Tree:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = Root(directory)
        self.write("/boot/vmlinuz-6.1.0-running", "kernel")
        self.write("/boot/initramfs-6.1.0-runningkdump.img", "initrd")
        self.library(LIBRARY)
        self.sysconfig(SYSCONFIG)

    def write(self, name: str, text: str) -> Path:
        path = self.root.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def library(self, text: str) -> None:
        self.write(kdump_utils.LIBRARY, f"ROOT={self.directory}\n{text}")

    def sysconfig(self, text: str) -> None:
        self.write(kdump_utils.SYSCONFIG, text)

    def ask(self, limit: float = 20) -> Asked:
        return kdump_utils.ask(self.root, limit)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_takes_what_the_library_says(tree: Tree) -> None:
    asked = tree.ask()
    assert asked.kernel == tree.directory / "boot/vmlinuz-6.1.0-running"
    assert asked.initrd == tree.directory / "boot/initramfs-6.1.0-runningkdump.img"
    assert asked.command_line == "ro console=ttyS0 irqpoll nr_cpus=1"
    assert asked.kexec_arguments == ("-s",)
    assert "running kernel" in asked.kernel_origin
    assert "/proc/cmdline" in asked.command_line_origin
    assert asked.crypt_devices == ()


def test_says_what_sysconfig_set(tree: Tree) -> None:
    tree.write("/boot/vmlinuz-5.0", "kernel")
    tree.write("/boot/initramfs-5.0kdump.img", "initrd")
    tree.sysconfig(SYSCONFIG + 'KDUMP_KERNELVER="5.0"\nKDUMP_COMMANDLINE="root=/dev/x quiet"\n')
    asked = tree.ask()
    assert asked.kernel.name == "vmlinuz-5.0"
    assert asked.command_line == "root=/dev/x irqpoll nr_cpus=1"
    assert "KDUMP_KERNELVER" in asked.kernel_origin
    assert "KDUMP_COMMANDLINE in" in asked.command_line_origin


def test_sysconfig_may_be_missing(tree: Tree) -> None:
    tree.root.path(kdump_utils.SYSCONFIG).unlink()
    tree.library("KDUMP_IMG=vmlinuz\n" + LIBRARY)
    assert tree.ask().command_line == "ro quiet console=ttyS0"


def test_noise_on_stdout_does_not_matter(tree: Tree) -> None:
    noisy = LIBRARY.replace(
        "prepare_kdump_bootinfo()\n{", "prepare_kdump_bootinfo()\n{ echo noise;"
    )
    tree.library("echo kernel=/etc/passwd\n" + noisy + "printf 'step=done\\0'\n")
    assert tree.ask().command_line == "ro console=ttyS0 irqpoll nr_cpus=1"


def test_environment_of_the_daemon_does_not_reach_it(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDUMP_KERNELVER", "0.1")
    monkeypatch.setenv("BASH_ENV", "/nonexistent")
    monkeypatch.setenv("KDUMP_COMMANDLINE_APPEND", "init=/bin/sh")
    tree.sysconfig('KDUMP_IMG="vmlinuz"')
    assert tree.ask().command_line == "ro quiet console=ttyS0"


@pytest.mark.parametrize(
    ("sysconfig", "library", "words"),
    [
        ('KDUMP_IMG="vmlinuz\n', LIBRARY, ("etc/sysconfig/kdump has a syntax error", "bash -n")),
        (SYSCONFIG + "exit 3\n", LIBRARY, ("etc/sysconfig/kdump ends the shell",)),
        (SYSCONFIG, "", ("kdump-lib.sh has no function prepare_kdump_bootinfo", "update")),
        (
            SYSCONFIG,
            LIBRARY.replace("prepare_cmdline", "make_cmdline"),
            ("kdump-lib.sh has no function prepare_cmdline",),
        ),
        (SYSCONFIG, "exit 1\n", ("kdump-lib.sh cannot be sourced",)),
        (
            SYSCONFIG + "KDUMP_KERNELVER=9.9\n",
            LIBRARY,
            ("prepare_kdump_bootinfo failed: no kernel for 9.9",),
        ),
        (SYSCONFIG, LIBRARY + "is_fadump_capable() { return 0; }\n", ("firmware-assisted",)),
        (SYSCONFIG, LIBRARY + "prepare_cmdline() { return 1; }\n", ("prepare_cmdline failed",)),
        (SYSCONFIG, LIBRARY + "prepare_cmdline() { echo a; echo b; }\n", ("more than one line",)),
        (SYSCONFIG, LIBRARY + "prepare_cmdline() { exit 0; }\nKDUMP_IMG=\n", ("failed",)),
    ],
)
def test_what_goes_wrong_is_named(
    tree: Tree, sysconfig: str, library: str, words: tuple[str, ...]
) -> None:
    tree.sysconfig(sysconfig)
    tree.library(library)
    with pytest.raises(ConfigError) as caught:
        tree.ask()
    message = str(caught.value)
    assert all(word in message for word in (*words, 'source = "explicit"')), message
    assert "\n" not in message
    assert str(tree.directory) in message or "firmware" in message


def test_missing_initrd_is_named_with_its_remedy(tree: Tree) -> None:
    tree.root.path("/boot/initramfs-6.1.0-runningkdump.img").unlink()
    with pytest.raises(InputError, match=r"runningkdump\.img.*kdumpctl rebuild"):
        tree.ask()


def test_hanging_library_is_ended_with_its_children(tree: Tree) -> None:
    pids = tree.directory / "pids"
    tree.library(LIBRARY + f"sleep 1000 & echo $! $$ >{pids}\nwait\n")
    with pytest.raises(ConfigError, match=r"kdump-lib.sh \(library\) did not finish within 0\.5 s"):
        tree.ask(limit=0.5)
    assert all(_ends(int(one)) for one in pids.read_text().split())


def test_child_left_behind_is_ended_and_not_waited_for(tree: Tree) -> None:
    pid = tree.directory / "pid"
    tree.library(LIBRARY + f"(trap '' HUP; sleep 1000) & echo $! >{pid}\n")
    assert tree.ask(limit=300).kexec_arguments == ("-s",)
    assert _ends(int(pid.read_text()))


def test_library_that_prints_for_ever_ends(tree: Tree) -> None:
    tree.library(LIBRARY + "while :; do printf '%065536d' 0; done\n")
    with pytest.raises(ConfigError, match=r"kdump-lib\.sh"):
        tree.ask(limit=60)


def _ends(pid: int) -> bool:
    """Whether the process is gone, or goes: a signal takes effect in its own time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], 60)[0])
    finally:
        os.close(fd)


def test_luks_target_counts_where_the_kernel_can_hand_keys_over(tree: Tree) -> None:
    tree.library(LIBRARY + "get_all_kdump_crypt_dev() { echo uuid-1; echo uuid-2; }\n")
    assert tree.ask().crypt_devices == ()
    tree.root.path("/sys/kernel/config/crash_dm_crypt_keys").mkdir(parents=True)
    asked = tree.ask()
    assert asked.crypt_devices == ("uuid-1", "uuid-2")
    kdump = auto.find(tree.root)
    assert kdump is not None
    spec = auto.spec(tree.root, kdump, asked, "auto")
    assert "uuid-2" in spec.no_kexec_load
    assert spec.no_file_load == spec.no_kexec_load, "without its keys it would load as well"


def test_spec_says_where_each_value_comes_from(tree: Tree) -> None:
    kdump = auto.find(tree.root)
    assert kdump is not None
    spec = auto.spec(tree.root, kdump, tree.ask(), "auto")
    assert spec.origin == "kdump-utils"
    assert [name for name, _ in spec.origins] == [
        "kernel",
        "initrd",
        "command_line",
        "kexec_arguments",
    ]
    assert spec.no_kexec_load == spec.no_file_load == ""
    assert "-s" in spec.remark


def test_recorded_tree_runs_no_code(tree: Tree) -> None:
    mark = tree.directory / "ran"
    tree.library(f"touch {mark}\n")
    with pytest.raises(ConfigError, match="only be asked on its own host"):
        auto.ask(tree.root, auto.find(tree.root), "auto")
    assert not mark.exists()


def test_lock_is_where_kdumpctl_has_it(tree: Tree) -> None:
    old = auto.find(tree.root)
    tree.root.path("/run/lock").mkdir(parents=True)
    new = auto.find(tree.root)
    assert old is not None
    assert new is not None
    assert old.lock == tree.directory / "var/lock/kdump"
    assert new.lock == tree.directory / "run/lock/kdump"
    assert new.tells_command


def test_no_kdump_asks_for_explicit(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert auto.find(root) is None
    with pytest.raises(ConfigError, match='source = "explicit"'):
        auto.ask(root, None, "auto")


WORDS = st.dictionaries(
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0=")),
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0")),
)


@given(WORDS, st.binary(max_size=50).filter(lambda tail: b"\0" not in tail))
def test_answer_survives_any_value_and_a_cut_tail(values: dict[str, str], tail: bytes) -> None:
    data = b"".join(f"{name}={value}\0".encode() for name, value in values.items())
    assert shell.parse_answer(data + tail) == values


@given(st.binary(max_size=400))
def test_answer_parser_takes_anything(data: bytes) -> None:
    assert all(isinstance(one, str) for one in shell.parse_answer(data).values())


def test_missing_bash_is_named(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "BASH", str(tree.directory / "bash"))
    with pytest.raises(KdumphpdError, match="install bash"):
        tree.ask()


@pytest.mark.parametrize("said", ["", "kernel=/boot/x\\0", "other=1\\0"])
def test_an_answer_that_only_claims_to_be_done_is_refused(tree: Tree, said: str) -> None:
    tree.library(f"printf '{said}step=done\\0' >&\"$_kdumphpd_fd\"; exit 0\n")
    with pytest.raises(ConfigError, match=r"spoiled the answer: it has no \w+; .*explicit"):
        tree.ask()


def test_no_file_of_a_question_is_left(tree: Tree) -> None:
    tree.write("/run/kdumphpd/ask-killed/answer", "of a process that was killed")
    tree.ask()
    assert list(tree.root.path("/run/kdumphpd").iterdir()) == []


def test_a_question_that_ends_with_the_service_is_no_fault(tree: Tree) -> None:
    """systemd sends SIGTERM to all processes of a service that it stops."""
    tree.library("kill $$; sleep 10\n")
    with pytest.raises(BusyError, match="interrupted"):
        tree.ask()


def test_under_systemd_it_is_a_unit_of_its_own(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a systemd-run that writes down what it gets, and runs it."""
    tree.root.path(processes.SYSTEMD).mkdir(parents=True)
    asked = tree.directory / "asked"
    runner = tree.write(
        "/bin/systemd-run",
        f'#!/bin/sh\necho "$@" >{asked}\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n',
    )
    runner.chmod(0o755)
    path = f"{runner.parent}:{processes.ENVIRONMENT['PATH']}"
    monkeypatch.setattr(processes, "ENVIRONMENT", {"PATH": path})
    assert tree.ask(limit=17).kexec_arguments == ("-s",)
    said = asked.read_text()
    assert "--unit=kdumphpd-ask-" in said
    assert "--property=TimeoutStartSec=17" in said
    assert "--property=LogLevelMax=notice" in said


def test_no_descriptor_is_left_open(tree: Tree) -> None:
    before = set(os.listdir("/proc/self/fd"))
    tree.ask()
    assert set(os.listdir("/proc/self/fd")) == before
