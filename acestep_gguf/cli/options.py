"""Options that several verbs share, in llama.cpp's words, and how the command line reads texts and paths."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_type_hints

import typer

from acestep_gguf.cli.terminal import show_llama_log
from acestep_gguf.errors import UsageError
from acestep_gguf.options import MACHINE, OUTPUT, PICTURES_AND_PROMPT, EngineOptions

# How everything of typer is made: without colours and its own tracebacks.
TYPER: Final[dict[str, Any]] = {"pretty_exceptions_enable": False, "rich_markup_mode": None}


def text(argument: str) -> str:
    """An argument that is a text.

    Raises:
        UsageError: it is not UTF-8; Python then has surrogates in it.
    """
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{argument!r} is not UTF-8: check the encoding of the terminal.") from error
    return argument


def filled(argument: str) -> str:
    """An argument that is a text with something in it.

    Raises:
        typer.BadParameter: it is empty.
        UsageError: it is not UTF-8.
    """
    if not argument.strip():
        raise typer.BadParameter("it is empty.")
    return text(argument)


def path(argument: str) -> Path:
    """An argument that is a path.

    Raises:
        typer.BadParameter: it is empty, which Python would take for the current folder.
    """
    if not argument:
        raise typer.BadParameter("the path is empty.")
    return Path(argument)


def bundle_folder(argument: str) -> Path:
    """The folder of a bundle, of which its path or its name is given."""
    from acestep_gguf.bundle.library import Library, is_bundle

    written = path(argument)
    return written if is_bundle(argument) else Path(Library.read().bundles.get(argument, written))


def engine_option(name: str, *, help: str | None = None, group: str | None = None) -> Any:
    """The flag of one of EngineOptions, for a verb that takes few of them, perhaps in words of its own."""
    _, flag = get_args(get_type_hints(EngineOptions, include_extras=True)[name])
    return typer.Option(*flag.names, help=help or flag.help, metavar=flag.metavar, rich_help_panel=group)


def _begin_log(wanted: bool) -> bool:
    if wanted:
        show_llama_log()
    return wanted


BundleFolder = Annotated[
    Path,
    typer.Argument(
        parser=bundle_folder,
        metavar="[BUNDLE]",
        help="Folder that `convert` or `import` wrote, or a name of `list`. By default what `use` chose.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.", rich_help_panel=OUTPUT)]

TowerPrecisions = Annotated[
    list[str] | None,
    typer.Option(
        "--vision",
        help="Precision of the tower: float32 or int8; repeat. By default both, or what the bundle has.",
    ),
]
CalibrationPictures = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        parser=path,
        help="Folder of pictures that show which channels int8 would ruin. By default some of ours.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show sizes, types, disk and memory, and write nothing.")
]
LogJson = Annotated[
    bool, typer.Option("--log-json", help="Print what happens as JSON, one object on each line.")
]
Threads = Annotated[int | None, engine_option("n_threads")]

Images = Annotated[
    list[Path] | None,
    typer.Option(
        *("-i", "--image"),
        parser=path,
        metavar="PICTURE...",
        rich_help_panel=PICTURES_AND_PROMPT,
        help="Pictures, a folder of them, or - for standard input.",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", help="Print the answer only: no plan, no statistics.", rich_help_panel=OUTPUT),
]
TowerPrecision = Annotated[str | None, engine_option("vision")]
MaxTiles = Annotated[int | None, engine_option("max_tiles")]
EmbedsFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--embeds",
        parser=path,
        rich_help_panel=PICTURES_AND_PROMPT,
        help="Picture as `encode` wrote it; repeat for more. They come after all --image.",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        *("-v", "--verbose"),
        callback=_begin_log,
        rich_help_panel=OUTPUT,
        help="Print llama.cpp's log on standard error.",
    ),
]
SystemPrompt = Annotated[
    str | None,
    typer.Option(
        *("-sys", "--system-prompt"),
        parser=text,
        help="What the model is told before the question.",
        rich_help_panel=PICTURES_AND_PROMPT,
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help="One answer at a time, as `run` gives it to the last bit; the same as --parallel 1.",
        rich_help_panel=MACHINE,
    ),
]


def one_at_a_time(engine: EngineOptions, default: EngineOptions) -> EngineOptions:
    """What --exact makes of ``engine``, whose options are ``default`` where the verb was given none.

    Raises:
        UsageError: several answers at a time were asked for.
    """
    if engine.n_parallel not in (1, default.n_parallel):
        raise UsageError(f"--exact is one answer at a time, not --parallel {engine.n_parallel}: choose one.")
    return replace(engine, n_parallel=1)
