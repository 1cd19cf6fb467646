"""The configuration file: what is accepted, and what is said of the rest."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kdumphpd.config import Config, explicit_image, load_config, parse
from kdumphpd.errors import ConfigError, ExitCode, PermissionMissingError

PATH = Path("/etc/kdumphpd/kdumphpd.toml")

WHOLE = """
[image]
source = "explicit"
kernel = "/boot/vmlinuz"
initrd = "/boot/initrd.img"
command_line = "root=/dev/vda1 irqpoll maxcpus=1"

[update]
settle_seconds = 5
interval_seconds = 0.25
max_disarmed_percent = 0.5

[audit]
interval_seconds = 600
"""


def error_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH)
    assert caught.value.exit_code == ExitCode.CONFIG
    assert caught.value.remedy
    line = str(caught.value)
    assert line.isprintable(), "one line, and nothing that moves a terminal's cursor"
    assert str(PATH) in line
    return line


def test_whole_file() -> None:
    config = parse(WHOLE, PATH)
    assert explicit_image(config, PATH).kernel == Path("/boot/vmlinuz")
    assert explicit_image(config, PATH).command_line == "root=/dev/vda1 irqpoll maxcpus=1"
    assert config.update.settle_seconds == 5.0
    assert config.audit.interval_seconds == 600


def test_empty_file_has_all_defaults() -> None:
    config = parse("", PATH)
    assert config == Config()
    assert config.image.source == "auto"
    assert config.update.max_disarmed_percent == 1.0
    assert config.audit.interval_seconds == 3600


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().update.settle_seconds = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[image]\nkernal = '/x'", "image.kernal is not a known key, did you mean kernel"),
        ("[imag]\nkernel = '/x'", "imag is not a known key, did you mean image"),
        ("zzz = 1", "zzz is not a known key, the tables are image, update and audit"),
        ("[audit]\nqqq = 1", "audit.qqq is not a known key, known here are interval_seconds"),
        (
            "[update]\nsettle_seconds = 'ten'",
            'update.settle_seconds is "ten", but must be a number of seconds from 0.01 to 600',
        ),
        ("[update]\nsettle_seconds = true", "update.settle_seconds is true, but must be a number"),
        ("[update]\nsettle_seconds = nan", "update.settle_seconds is nan, but must be a number"),
        ("[update]\nmax_disarmed_percent = 50", "is 50, but must be a percentage from 0.01 to 10"),
        ("[image]\nkernel = 3", "image.kernel is 3, but must be the absolute path of a bzImage"),
        ("[image]\nkernel = 'boot/vmlinuz'", 'image.kernel is "boot/vmlinuz", but must be the abs'),
        ('[image]\ninitrd = "/a\\u0000b"', 'image.initrd is "/a\\x00b", but must be the absolute'),
        ("[image]\nsource = 'magic'", 'image.source is "magic", but must be "auto" or "explicit"'),
        (
            '[image]\ncommand_line = "a\\nb"',
            'image.command_line is "a\\x0ab", but must be one line',
        ),
        ("[audit]\ninterval_seconds = 0x" + "f" * 5_000, "is a number of more than 64 bits, but"),
        ("image = 3", "image is 3, but must be a table: [image]"),
        ("[[image]]\nkernel = '/x'", "image is an array, but must be a table: [image]"),
        (
            "[update]\nsettle_seconds = 0.1",
            "update: settle_seconds is 0.1, but must not be below interval_seconds, which is 0.5",
        ),
    ],
)
def test_each_mistake_is_named_with_what_is_wanted(text: str, wanted: str) -> None:
    assert wanted in error_of(text)


def test_all_mistakes_at_once() -> None:
    line = error_of("[image]\nkernal = '/x'\ninitrd = 3\n[audit]\ninterval_seconds = 0")
    assert "image.kernal" in line
    assert "image.initrd is 3" in line
    assert "audit.interval_seconds is 0" in line


@pytest.mark.parametrize("count", [10, 11, 5000])
def test_no_more_than_ten_mistakes_are_named(count: int) -> None:
    line = error_of("[audit]\n" + "".join(f"key{number} = 1\n" for number in range(count)))
    assert line.count("is not a known key") == 10
    assert (f"; and {count - 10} more; " in line) == (count > 10)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"\xef\xbb\xbf[image]\n", "begins with a byte order mark"),
        ("[image]\n".encode("utf-16"), "is UTF-16"),
        ("[image]\n".encode("utf-16-be"), "not"),
        (
            b"[image]\r\nsource = 'auto'\r[update]\r\n",
            "a carriage return that ends no",
        ),
    ],
)
def test_what_other_systems_make_of_text_is_named(
    tmp_path: Path, content: bytes, wanted: str
) -> None:
    with pytest.raises(ConfigError, match=wanted):
        load_config(write(tmp_path, content))


def test_lines_may_end_as_in_windows(tmp_path: Path) -> None:
    content = WHOLE.replace("\n", "\r\n").encode()
    assert load_config(write(tmp_path, content)) == parse(WHOLE, PATH)


@pytest.mark.parametrize(
    "text", ["a." * 32_000 + "a = 1", "".join(f"{'a.' * 2000}b{n} = 1\n" for n in range(16))]
)
def test_what_would_take_minutes_is_refused_unparsed(text: str) -> None:
    assert "has a key of many parts" in error_of(text)
    assert parse("# " + "." * 60_000, PATH) == Config()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_that_may_not_be_read_is_a_matter_of_permission(tmp_path: Path) -> None:
    path = write(tmp_path, mode=0o600)
    tmp_path.chmod(0o755)
    with as_nobody(), pytest.raises(PermissionMissingError, match="run kdumphpd as root"):
        load_config(path)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """With another effective user: the files of the tests are root's."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[image\n", "line 1"),
        ("[image]\nkernel = /boot/vmlinuz\n", "line 2"),
        ("a = " + "[" * 100_000, "is not TOML"),
        ("a = " + "9" * 5_000, "is not TOML"),
    ],
)
def test_syntax_errors_give_the_line(text: str, wanted: str) -> None:
    assert wanted in error_of(text)


@pytest.mark.parametrize("source", ["", "source = 'auto'\n"])
def test_an_image_that_is_named_must_be_meant(source: str) -> None:
    text = f"[image]\n{source}kernel = '/boot/vmlinuz'\ninitrd = '/boot/initrd'\n"
    assert 'kernel and initrd count only with source = "explicit"' in error_of(text)


def test_explicit_image_that_is_not_complete() -> None:
    config = parse("[image]\nsource = 'explicit'\nkernel = '/boot/vmlinuz'", PATH)
    with pytest.raises(ConfigError, match="without initrd and command_line; add them"):
        explicit_image(config, PATH)


def write(directory: Path, content: bytes | str = WHOLE, mode: int = 0o644) -> Path:
    path = directory / "kdumphpd.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def test_file_is_read(tmp_path: Path) -> None:
    assert load_config(write(tmp_path), required=True) == parse(WHOLE, PATH)


def test_missing_file_means_defaults_unless_it_was_named(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert load_config(path) == Config()
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(path, required=True)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620])
def test_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path, mode=mode)
    with pytest.raises(ConfigError, match=f"mode 0{mode:o}.*; chmod go-w {path}$"):
        load_config(path)
    assert load_config(path, check_owner=False) == parse(WHOLE, PATH)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    os.chown(path, 12345, 0)
    with pytest.raises(ConfigError, match="belongs to user 12345, not to root; chown 0"):
        load_config(path)
    assert load_config(path, check_owner=False) == parse(WHOLE, PATH)


def test_directory_and_fifo_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a regular file"):
        load_config(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_config(tmp_path / "fifo")


def test_file_below_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        load_config(write(tmp_path) / "kdumphpd.toml")


def test_bytes_that_are_not_utf8_give_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not UTF-8 \(at line 3\)"):
        load_config(write(tmp_path, b"[image]\n\nkernel = '\xff'\n"))


def test_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger than"):
        load_config(write(tmp_path, b"#" * ((1 << 16) + 1)))


def parse_or_clear_error(text: str) -> Config | None:
    try:
        return parse(text, PATH)
    except ConfigError as error:
        line = str(error)
    assert line.isprintable()
    return None


@given(st.text(max_size=300))
def test_any_text_is_a_configuration_or_a_clear_error(text: str) -> None:
    config = parse_or_clear_error(text)
    assert config is None or isinstance(config, Config)


VALUES = st.recursive(
    st.one_of(
        st.sampled_from(["true", "-1", "0", "1e400", "inf", "nan", "1979-05-27", "'/x'", '""']),
        st.integers().map(str),
        st.floats(allow_nan=False, allow_infinity=False).map(repr),
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
    max_leaves=5,
)
KEYS = st.sampled_from(
    [f"image.{key}" for key in ("source", "kernel", "initrd", "command_line", "x")]
    + [f"update.{key}" for key in ("settle_seconds", "interval_seconds", "max_disarmed_percent")]
    + ["audit.interval_seconds", "audit", "image", "image.kernel.x", "x"]
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_hostile_values_leave_bounded_settings_or_a_clear_error(lines: dict[str, str]) -> None:
    config = parse_or_clear_error("\n".join(f"{key} = {value}" for key, value in lines.items()))
    if config is None:
        return
    update = config.update
    assert 0 < update.interval_seconds <= update.settle_seconds <= 600
    assert 0 < update.max_disarmed_percent <= 10
    assert math.isfinite(config.audit.interval_seconds)
    assert config.image.kernel is None or config.image.kernel.is_absolute()


# --- hostile and foreign files ---------------------------------------------------------------


def test_mistakes_are_listed_up_to_ten() -> None:
    line = error_of("\n".join(f"unknown{number} = 1" for number in range(3000)))
    assert line.count("is not a known key") == 10
    assert "and 2990 more" in line
    assert len(line) < 2000


@pytest.mark.parametrize("text", ["{}", "[{}]", '"a" . {}', "[[{}]]", "x = {{{} = 1}}", "'#' . {}"])
def test_a_key_of_many_parts_is_not_parsed(text: str) -> None:
    """A file of one such key took 38 s."""
    key = ".".join("a" * 15_000)
    assert "a key of many parts (at line 2)" in error_of("\n" + text.format(key))


def test_dots_in_values_and_comments_are_no_keys() -> None:
    dots = ".".join("a" * 500)
    text = (
        f"# {dots} \"\n[image]  # don't {dots}\n"
        f'source = "explicit"\ncommand_line = "{dots} \\" {dots}"\n'
    )
    assert parse(text, PATH).image.command_line == f'{dots} " {dots}'
    text = f"[image]\nsource = 'explicit'\ncommand_line = '{dots}'\n"
    assert parse(text, PATH).image.command_line == dots


def test_a_byte_order_mark_is_named() -> None:
    assert "byte order mark; save the file as UTF-8 without it" in error_of("\ufeff[image]\n")


def test_line_ends_of_windows_do_no_harm_and_others_are_named() -> None:
    assert parse(WHOLE.replace("\n", "\r\n"), PATH) == parse(WHOLE, PATH)
    assert "carriage return that ends no line (at line 2)" in error_of("[image]\n[update]\r[audit]")


def test_larger_than_any_configuration(tmp_path: Path) -> None:
    path = tmp_path / "kdumphpd.toml"
    path.write_text("#" * (64 << 10))
    assert load_config(path) == Config()
    path.write_text("#" * (64 << 10) + "\n")
    with pytest.raises(ConfigError, match="larger than 64 KiB"):
        load_config(path)
    os.truncate(path, 1 << 40)
    with pytest.raises(ConfigError, match="larger than 64 KiB"):
        load_config(path)


def test_a_directory_in_which_others_can_replace_it(tmp_path: Path) -> None:
    path = tmp_path / "kdumphpd.toml"
    path.write_text("")
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=rf"{tmp_path} is writable by others \(mode 0777\)"):
        load_config(path)
    assert load_config(path, check_owner=False) == Config()


def test_a_file_that_this_user_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "kdumphpd.toml"
    path.write_text("")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionMissingError, match="run kdumphpd as root") as caught:
        load_config(path)
    assert caught.value.exit_code == 77
