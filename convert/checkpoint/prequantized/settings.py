"""Values of ``quantization_config``, which come from strangers: any that is not known is refused."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from acestep_gguf.errors import CheckpointError, UnsupportedModelError

MAX_GROUP_SIZE: Final = 2**20
REQUIRED: Final = object()


def choice(
    format_name: str,
    settings: Mapping[str, Any],
    keys: Sequence[str],
    known: Sequence[Any],
    default: Any = REQUIRED,
) -> Any:
    """The value of the first of ``keys`` that ``settings`` has; it must be one of ``known``.

    Raises:
        CheckpointError: there is none.
        UnsupportedModelError: it is another one.
    """
    value = _value(format_name, settings, keys, default)
    # True is equal to 1, and a list to none of them.
    if not any(type(value) is type(one) and value == one for one in known):
        raise UnsupportedModelError(
            f"{format_name} with {keys[0]} {value!r} is not read, only {' or '.join(map(str, known))}: "
            "convert the checkpoint that it was quantized from."
        )
    return value


def group_size(
    format_name: str, settings: Mapping[str, Any], keys: Sequence[str], default: int
) -> int | None:
    """Columns of a group; None stands for all of them.

    Raises:
        CheckpointError: it is damaged.
    """
    value = _value(format_name, settings, keys, default)
    if type(value) is not int or not (value == -1 or 1 <= value <= MAX_GROUP_SIZE):
        raise _damaged(keys[0], value)
    return None if value == -1 else value


def block_size(settings: Mapping[str, Any], key: str, default: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a block.

    Raises:
        CheckpointError: it is damaged.
    """
    value = settings.get(key, default)
    match value:
        case [int(rows), int(columns)] if 1 <= rows <= MAX_GROUP_SIZE and 1 <= columns <= MAX_GROUP_SIZE:
            return rows, columns
    raise _damaged(key, value)


def _value(format_name: str, settings: Mapping[str, Any], keys: Sequence[str], default: Any) -> Any:
    for key in keys:
        if key in settings:
            return settings[key]
    if default is REQUIRED:
        raise CheckpointError(
            f"config.json: quantization_config of {format_name} has no {keys[0]}: "
            "get an undamaged checkpoint."
        )
    return default


def _damaged(key: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"config.json: quantization_config has {key} {value!r}: get an undamaged checkpoint."
    )
