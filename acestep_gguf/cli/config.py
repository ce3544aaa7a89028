"""The user's own defaults of options: a table of TOML, under the names of flags."""

import tomllib
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import platformdirs

from acestep_gguf.cli.option_groups import in_flags, options_by_flag
from acestep_gguf.errors import UsageError

TABLE: Final = "defaults"
MAX_BYTES: Final = 2**20
WORDS: Final = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    list: "a list of texts",
}


def config_file() -> Path:
    """Where they are: on Linux in XDG_CONFIG_HOME or ``~/.config``."""
    return platformdirs.user_config_path("acestep-gguf") / "config.toml"


def user_defaults(groups: Collection[type[Any]]) -> dict[str, Any]:
    """Values of options by the names of their fields; none without the file.

    Args:
        groups: of which they are wanted: EngineOptions, AnswerOptions, or both. All of the file is checked.

    Raises:
        UsageError: it cannot be read, or has something in it that is no option or out of its range.
    """
    path = config_file()
    values: defaultdict[type[Any], dict[str, Any]] = defaultdict(dict)
    for key, value in _table(path).items():
        if key not in (options := options_by_flag()):
            positive = key.removeprefix("no-")
            hint = "`acestep-gguf run --help` lists them, here without dashes and in their long form"
            if positive != key and positive in options:
                hint = f"write {positive} = false"
            raise UsageError(f"{path} has {key}, which is no flag: {hint}.")
        group, name, kind = options[key]
        if not _is(value, kind):
            raise UsageError(f"{path}: {key} is {value!r}: give {_words(kind)}.")
        values[group][name] = value
    for group, given in values.items():
        try:
            group(**given)
        except UsageError as error:
            raise UsageError(f"{path}: {in_flags(error)}") from error
    return {name: value for group in groups for name, value in values[group].items()}


def _table(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UsageError(f"{path} is too large for a list of options: remove it.")
        tables = tomllib.loads(data.decode())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"{path} is no TOML ({error}): mend or remove it.") from error
    table = tables.pop(TABLE, {})
    if tables or not isinstance(table, dict):
        wrong = next(iter(tables), TABLE)
        raise UsageError(f"{path} has {wrong} outside of a table [{TABLE}]: write options below that line.")
    return table


def _is(value: Any, kind: Any) -> bool:
    """Whether a value of TOML is one of ``kind``, as typer takes it."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    kinds = get_args(kind) or (kind,)
    return type(value) in kinds or (type(value) is int and float in kinds)


def _words(kind: Any) -> str:
    return WORDS[list if get_origin(kind) is list else (get_args(kind) or (kind,))[0]]
