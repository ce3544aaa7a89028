"""The options of options.py on the command line: how a verb takes a group of them, what errors call them."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from acestep_gguf.cli.options import path
from acestep_gguf.errors import AceStepError
from acestep_gguf.options import AnswerOptions, EngineOptions, Flag


def options_of(group: type[Any], defaults: Any = None) -> tuple[Parameter, ...]:
    """The fields of a group that have a flag, as keyword-only parameters for typer.

    Defaults are those of ``defaults``, if it is a group, or else the flags' own, or else those of Python.
    """
    return tuple(
        Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=flag_default if defaults is None else getattr(defaults, name),
            annotation=Annotated[
                kind,
                typer.Option(
                    *flag.names,
                    help=flag.help,
                    metavar=flag.metavar,
                    parser=path if Path in get_args(kind) else None,
                    rich_help_panel=flag.group,
                ),
            ],
        )
        for name, kind, flag, flag_default in _flags(group)
    )


def in_flags(error: AceStepError) -> str:
    """The message of an error with the command line's flags in the place of the options that it names."""
    if not error.settings:
        return str(error)
    names = "|".join(map(re.escape, error.settings))
    # Not where they are parts of paths.
    pattern = rf"(?<![\w./\\-])({names})(?:=([^\s;,]*[^\s;,.]))?(?!\w|[./\\-]\S)"
    return re.sub(pattern, lambda found: _as_flag(found[1], found[2]), str(error))


def _flags(group: type[Any]) -> Iterator[tuple[str, Any, Flag, Any]]:
    """Name, type for typer, flag and its default of each field that the command line has."""
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        if get_origin(hints[field.name]) is Annotated:
            declared, flag = get_args(hints[field.name])
            default = field.default if flag.default is None else flag.default
            yield field.name, _typer_type(declared), flag, default


def _typer_type(declared: Any) -> Any:
    """What typer reads: the simplest of the types that an option may have; the library checks the value."""
    if get_origin(declared) is Sequence:
        return list[str]
    kinds = get_args(declared) or (declared,)
    if get_origin(declared) is Literal:
        kinds = (str,)
    simplest = next((kind for kind in (bool, str, int, float, Path) if kind in kinds), str)
    return simplest | None if NoneType in kinds else simplest


def _as_flag(name: str, value: str | None) -> str:
    """``--ctx-size 4096`` of ``n_ctx`` and "4096", ``--no-mmap`` of ``use_mmap`` and "False"."""
    from acestep_gguf.server.settings import ServerSettings

    names = _long_names(EngineOptions, AnswerOptions, ServerSettings)
    on, _, off = names.get(name, f"--{name.replace('_', '-')}").partition("/")
    if value in (None, "True"):
        return on
    return (off or f"without {on}") if value == "False" else f"{on} {value}"


@cache
def _long_names(*groups: type[Any]) -> dict[str, str]:
    return {
        name: next(long for long in flag.names if long.startswith("--"))
        for group in groups
        for name, _, flag, _ in _flags(group)
    }


def groups_among(names: Iterable[str]) -> list[type[Any]]:
    """The groups of which a verb has all options, by the ``names`` of its parameters."""
    known = {*names}
    options: defaultdict[type[Any], set[str]] = defaultdict(set)
    for group, name, _ in options_by_flag().values():
        options[group].add(name)
    return [group for group, its_names in options.items() if its_names <= known]


@cache
def options_by_flag() -> dict[str, tuple[type[Any], str, Any]]:
    """By long flags without their dashes, such as "ctx-size": group, name and type for typer of an option."""
    return {
        _long_names(group)[name].partition("/")[0].removeprefix("--"): (group, name, kind)
        for group in (EngineOptions, AnswerOptions)
        for name, kind, _, _ in _flags(group)
    }


def takes_groups(verb: Callable[..., None]) -> Callable[..., None]:
    """Let typer see the fields of each parameter that is a group (a dataclass) as options of ``verb``.

    A group's options stand in --help where the group stands among the parameters. A group that is a
    parameter's default gives the options theirs.
    """
    groups: dict[str, type[Any]] = {}
    parameters: list[Parameter] = []
    for parameter in signature(verb, eval_str=True).parameters.values():
        if is_dataclass(group := parameter.annotation) and isinstance(group, type):
            groups[parameter.name] = group
            parameters += options_of(
                group, None if parameter.default is Parameter.empty else parameter.default
            )
        else:
            parameters.append(parameter)

    def with_groups(**values: Any) -> None:
        for name, group in groups.items():
            given = {option.name: values.pop(option.name) for option in options_of(group)}
            values[name] = group(
                **{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
            )
        verb(**values)

    with_groups.__name__, with_groups.__doc__ = verb.__name__, verb.__doc__
    with_groups.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(with_groups)["__signature__"] = Signature(parameters)  # the attribute that inspect reads
    return with_groups
