"""The configuration file, ``/etc/kdumphpd/kdumphpd.toml``.

Checked in full before anything acts on it: a daemon that loads crash kernels
as root must not guess what a misspelt key meant.
"""

from __future__ import annotations

import codecs
import difflib
import os
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from kdumphpd.errors import ConfigError, PermissionMissingError
from kdumphpd.machine import trust
from kdumphpd.machine.trust import DistrustError, NotRegularError
from kdumphpd.printable import printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_PATH = Path("/etc/kdumphpd/kdumphpd.toml")

# The file has a dozen keys. What is larger is something else.
MAX_BYTES = 64 << 10
_MAX_PROBLEMS = 10

_LONE_RETURN = re.compile(r"\r(?!\n)")
_STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*')
#: tomllib looks at each part of a dotted key as often as the key has parts.
_DEEP_KEY = re.compile(r"(?<![\w-])(?:[\w-]+[ \t]*\.[ \t]*){8}")

IMAGE_KEYS = ("kernel", "initrd", "command_line")


def _absolute(value: object) -> Path:
    """Take TOML's string; strict validation wants a Path already."""
    if isinstance(value, (str, Path)) and "\0" not in str(value):
        path = Path(value)
        if path.is_absolute():
            return path
    raise ValueError("not an absolute path")


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("not printable")
    return text


def _splittable(text: str) -> str:
    """Take what `shlex.split` can take apart, so that a load does not find out."""
    shlex.split(text)
    return text


AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]
OneLine = Annotated[str, AfterValidator(_one_line)]
Command = Annotated[str, AfterValidator(_one_line), AfterValidator(_splittable)]


class _Section(BaseModel):
    """A table of the file; each field's description says what is wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# Pydantic evaluates the annotations, so "X | None" would need Python 3.10.
class ImageConfig(_Section):
    """``[image]``: which crash kernel to load."""

    source: Literal["auto", "explicit"] = Field("auto", description='"auto" or "explicit"')
    kernel: Optional[AbsolutePath] = Field(  # noqa: UP045
        None, description="the absolute path of a bzImage"
    )
    initrd: Optional[AbsolutePath] = Field(  # noqa: UP045
        None, description="the absolute path of an initramfs"
    )
    command_line: Optional[OneLine] = Field(  # noqa: UP045
        None, description="one line of printable characters"
    )
    syscall: Literal["auto", "kexec_load", "kexec_file_load"] = Field(
        "auto", description='"auto", "kexec_load" or "kexec_file_load"'
    )

    @model_validator(mode="after")
    def _named_is_meant(self) -> ImageConfig:
        named = [key for key in IMAGE_KEYS if getattr(self, key) is not None]
        if self.source == "auto" and named:
            raise ValueError(f'{_and(named)} count only with source = "explicit"')
        return self


class UpdateConfig(_Section):
    """``[update]``: how uevents turn into updates."""

    settle_seconds: float = Field(
        10.0, ge=0.01, le=600, description="a number of seconds from 0.01 to 600"
    )
    interval_seconds: float = Field(
        0.5, ge=0.01, le=60, description="a number of seconds from 0.01 to 60"
    )
    max_disarmed_percent: float = Field(
        1.0, ge=0.01, le=10, description="a percentage from 0.01 to 10"
    )

    command: Optional[Command] = Field(  # noqa: UP045
        None, description="a command as a shell would split it, or empty for none"
    )

    @model_validator(mode="after")
    def _settle_is_longest(self) -> UpdateConfig:
        if self.settle_seconds < self.interval_seconds:
            raise ValueError(
                f"settle_seconds is {self.settle_seconds:g}, but must not be below"
                f" interval_seconds, which is {self.interval_seconds:g}"
            )
        return self


class AuditConfig(_Section):
    """``[audit]``: how often everything loaded is verified."""

    interval_seconds: float = Field(
        3600.0, ge=1, le=30 * 86400, description="a number of seconds from 1 to 2592000"
    )


class Config(_Section):
    """The whole file; each table and key may be left out."""

    image: ImageConfig = Field(default_factory=ImageConfig, description="a table: [image]")
    update: UpdateConfig = Field(default_factory=UpdateConfig, description="a table: [update]")
    audit: AuditConfig = Field(default_factory=AuditConfig, description="a table: [audit]")


@dataclass(frozen=True)
class ExplicitImage:
    """What ``source = "explicit"`` names."""

    kernel: Path
    initrd: Path
    command_line: str


def load_config(
    path: Path = DEFAULT_PATH, *, required: bool = False, check_owner: bool = True
) -> Config:
    """Read and check the file.

    Args:
        path: the file.
        required: whether a missing file is an error (the user named it);
            otherwise the defaults hold.
        check_owner: whether only root, or the caller when that is not root,
            may be able to write the file. Not for a recorded tree: nothing is
            loaded from it, and a checkout is often writable by a group.

    Raises:
        ConfigError: the file cannot be read, is not trusted, is not TOML, or
            has a key or value that is not known; up to ten of its problems at once.
        PermissionMissingError: this user may not read it.
    """
    try:
        text = _read(path, check_owner)
    except FileNotFoundError:
        if not required:
            return Config()
        raise ConfigError(f"{path} does not exist", "create it or name another file") from None
    except PermissionError as error:
        raise PermissionMissingError(
            f"{path} cannot be read: {error.strerror}", "run kdumphpd as root"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", "check its type and its mode"
        ) from error
    return parse(text, path)


def parse(text: str, path: Path) -> Config:
    """Check the text of a file; ``path`` is for the error's line.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    _check_form(text, path)
    try:
        table = tomllib.loads(text)
    # ValueError: a number of thousands of digits; the rest are its subclasses.
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(
            f"{path} is not TOML: {_brief(reason, 200)}", "correct that line"
        ) from error
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        found = error.errors()
        problems = list(dict.fromkeys(map(_problem, found[:_MAX_PROBLEMS])))
        if len(found) > _MAX_PROBLEMS:
            problems.append(f"and {len(found) - _MAX_PROBLEMS} more")
        raise ConfigError(f"{path}: {'; '.join(problems)}", "correct the file") from error


def explicit_image(config: Config, path: Path) -> ExplicitImage:
    """Give the image that the file names with ``source = "explicit"``.

    Raises:
        ConfigError: the file does not name all of it.
    """
    image = config.image
    if image.kernel is None or image.initrd is None or image.command_line is None:
        missing = [key for key in IMAGE_KEYS if getattr(image, key) is None]
        raise ConfigError(
            f'{path}: image.source is "explicit" without {_and(missing)}',
            "add them to the [image] table" if len(missing) > 1 else "add it to the [image] table",
        )
    return ExplicitImage(image.kernel, image.initrd, image.command_line)


def _read(path: Path, check_owner: bool) -> str:
    try:
        fd = trust.open_regular(path, check_owner=check_owner)
        try:
            content = trust.read_limited(fd, MAX_BYTES)
        finally:
            os.close(fd)
        if check_owner:
            trust.trusted_parents(path)
    except NotRegularError:
        raise ConfigError(f"{path} is not a regular file", "replace it by a file") from None
    except DistrustError as error:
        # It decides what runs at a panic.
        raise ConfigError(error.problem, error.remedy) from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES >> 10} KiB", "name a TOML file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ConfigError(f"{path} is UTF-16", "save the file as UTF-8") from error
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not UTF-8 (at line {line})", "save the file as UTF-8"
        ) from error


def _check_form(text: str, path: Path) -> None:
    """Refuse what the parser would not name, or would take minutes for."""
    if text.startswith("\N{ZERO WIDTH NO-BREAK SPACE}"):
        raise ConfigError(
            f"{path} begins with a byte order mark", "save the file as UTF-8 without it"
        )
    lone = _LONE_RETURN.search(text)
    if lone is not None:
        line = text.count("\n", 0, lone.start()) + 1
        raise ConfigError(
            f"{path} has a carriage return that ends no line (at line {line})",
            "save the file with the line ends of Unix",
        )
    bare = _STRING_OR_COMMENT.sub(_word_for, text)
    deep = _DEEP_KEY.search(bare)
    if deep is not None:
        line = bare.count("\n", 0, deep.start()) + 1
        raise ConfigError(
            f"{path} has a key of many parts (at line {line})", "the deepest here has two"
        )


def _word_for(match: re.Match[str]) -> str:
    return "" if match[0].startswith("#") else "_"


def _problem(error: ErrorDetails) -> str:
    """Say one of pydantic's errors in one clause."""
    keys = [str(part) for part in error["loc"]]
    name = ".".join(_brief(key) for key in keys)
    if error["type"] == "extra_forbidden":
        return f"{name} is not a known key, {_suggestion(keys)}"
    if error["type"] == "value_error" and isinstance(error["input"], dict):
        # From a model's own validator, which words it in full.
        return f"{name}: {error['ctx']['error']}"
    return f"{name} is {_value(error['input'])}, but must be {_wanted(keys)}"


def _suggestion(keys: list[str]) -> str:
    table = _table(keys[:-1])
    near = difflib.get_close_matches(keys[-1], table, n=3)
    if near:
        return f"did you mean {' or '.join(near)}"
    return f"{'known here are' if keys[:-1] else 'the tables are'} {_and(table)}"


def _wanted(keys: list[str]) -> str:
    """Give the description of the field that ``keys`` lead to."""
    model: Any = Config
    for key in keys[:-1]:
        model = model.model_fields[key].annotation
    description = model.model_fields[keys[-1]].description
    return description or "something else"


def _table(keys: Iterable[str]) -> list[str]:
    model: Any = Config
    for key in keys:
        model = model.model_fields[key].annotation
    return list(model.model_fields)


def _value(value: object) -> str:
    """Show a value as TOML writes it, as far as that fits on a line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{_brief(value)}"'
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "an array"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"  # str() refuses those of 4300 digits
    return _brief(str(value))


def _brief(text: str, limit: int = 60) -> str:
    """Make ``text`` printable and short."""
    shown = printable(text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
