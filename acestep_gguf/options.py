"""Every option of an engine and of an answer, declared once: for Python, for the command line, for errors.

An option is a field here. Its name is the one that Python and error messages use (llama.cpp's, where it has
the option); its ``Flag`` is how the command line writes it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, get_args

from acestep_gguf.addresses import Address, rpc_addresses
from acestep_gguf.errors import UsageError

if TYPE_CHECKING:
    from acestep_gguf.grammar.matcher import Grammar

FlashAttention = Literal["auto", "on", "off"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
# llama.cpp's --spec-type, as far as it needs no second model.
SpecType = Literal["none", "ngram-simple"]
# Who reads long parts of a prompt: the bundle's int8 layers where they are faster and fit, always, or never.
Prefill = Literal["auto", "int8", "off"]

SPEC_TYPES: Final[tuple[SpecType, ...]] = get_args(SpecType)
PREFILLS: Final[tuple[Prefill, ...]] = get_args(Prefill)
MOST_DRAFT_MAX: Final = 64
MOST_PARALLEL: Final = 256

# What of onnxruntime runs the vision tower; "auto" is CUDA where it is installed and has room, else the CPU.
TowerProvider = Literal["cpu", "cuda", "openvino", "coreml", "qnn"]
VisionProvider = Literal["auto", TowerProvider]
VISION_PROVIDERS: Final[tuple[str, ...]] = ("auto", *get_args(TowerProvider))

Options = TypeVar("Options", "EngineOptions", "AnswerOptions")


# Groups of --help, in their order.
PICTURES_AND_PROMPT: Final = "Pictures and prompt"
OUTPUT: Final = "Output"
SAMPLING: Final = "Sampling"
MACHINE: Final = "Machine"
CACHE: Final = "Cache"
SERVER: Final = "Server"
QUANTIZATION: Final = "Quantization"
GROUPS: Final = (SERVER, QUANTIZATION, PICTURES_AND_PROMPT, OUTPUT, SAMPLING, MACHINE, CACHE)


@dataclass(frozen=True)
class Flag:
    """How the command line writes an option: its names, as typer takes them, its line and group in --help.

    ``default`` is the command line's own, where it is another one than Python's; ``metavar`` stands for the
    value in --help, if its type does not say enough.
    """

    names: tuple[str, ...]
    help: str
    group: str
    default: Any = None
    metavar: str | None = None


def _flag(*names: str, help: str, group: str = MACHINE, default: Any = None) -> Flag:
    return Flag(names, help, group, default)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a bundle is loaded, and with what memory. What is None is planned (docs/hardware.md).

    Args:
        quant: decoder to use, such as "Q5_K_M", in any case; by default the bundle's default.
        vision: precision of the tower, "float32" or "int8"; by default the bundle's default.
        vision_provider: what of onnxruntime runs the tower: "cpu", "cuda", "openvino", "coreml" or "qnn";
            "auto" is CUDA where it is installed and has room beside the whole decoder.
        n_ctx: tokens that prompt and answer may have together, at most what the model was made for; that is
            the default up to 8192, since memory for all of them is reserved at once.
        n_threads: threads of tower and decoder.
        n_threads_batch: threads that read the prompt, if not as many.
        use_extra_bufts: repack weights for the CPU while loading (llama.cpp's ``--repack``).
        n_batch, n_ubatch, n_gpu_layers, offload_kqv, type_k, type_v, flash_attn, use_mmap, use_mlock: as in
            llama.cpp.
        rpc: servers that lend their memory, ``HOST:PORT[,HOST:PORT…]``, for a decoder that is larger than
            this machine. Nothing is encrypted on the way to them (docs/scale.md).
        n_parallel: answers that ``batch`` writes together, each in ``n_ctx`` of its own; -1: what fits.
        allow_paging: run even if weights do not fit into memory and are read from disk again and again.
        prefill: "int8" reads long parts of a prompt with the decoder's int8 layers, which ``convert`` writes
            when it is asked to, "off" with llama.cpp alone; "auto" with the layers if the bundle has them,
            memory has room for them, and this machine reads faster so.
        image_tokens: tokens of a picture at most: those that say most of it are kept. By default all.
        max_tiles: tiles into which a picture is cut at most, by models that cut pictures up: 1 for none, and
            few tokens. By default as many as the model was made for.
        spec_type: "ngram-simple" guesses ahead what followed the last tokens before (see speculation.py).
        draft: folder of a smaller bundle of the same vocabulary, which guesses ahead instead.
        draft_max: tokens to guess at a time at most.
        cache: whether image embeds, and the decoder's state after a picture, are kept on disk for later
            processes, which then answer much faster; or the folder for them. They tell what was in the
            pictures: see docs/cache.md.
    """

    quant: Annotated[
        str | None, _flag("-q", "--quant", help="Decoder, such as Q4_K_M. By default the bundle's default.")
    ] = None
    vision: Annotated[
        str | None, _flag("--vision", help="Tower: float32 or int8. By default the bundle's default.")
    ] = None
    vision_provider: Annotated[
        VisionProvider,
        _flag("--vision-provider", help=f"What runs the tower: {', '.join(VISION_PROVIDERS)}."),
    ] = "auto"
    n_ctx: Annotated[
        int | None,
        _flag("-c", "--ctx-size", help="Tokens of prompt and answer together. By default up to 8192."),
    ] = None
    n_threads: Annotated[
        int | None, _flag("-t", "--threads", help="Threads that compute. By default one for each CPU.")
    ] = None
    n_threads_batch: Annotated[
        int | None, _flag("-tb", "--threads-batch", help="Threads that read the prompt, if not as many.")
    ] = None
    use_extra_bufts: Annotated[
        bool | None,
        _flag("--repack/--no-repack", " /-nr", help="Repack weights for the CPU while loading."),
    ] = None
    n_batch: Annotated[
        int | None,
        _flag("-b", "--batch-size", help="Tokens of a prompt that are given to llama.cpp at a time."),
    ] = None
    n_ubatch: Annotated[
        int | None, _flag("-ub", "--ubatch-size", help="Tokens that llama.cpp computes at a time.")
    ] = None
    n_gpu_layers: Annotated[
        int | None, _flag("-ngl", "--n-gpu-layers", help="Layers on GPUs; -1 is all. By default what fits.")
    ] = None
    offload_kqv: Annotated[
        bool | None, _flag("--kv-offload/--no-kv-offload", help="Keep the KV cache on GPUs, too, or in RAM.")
    ] = None
    rpc: Annotated[
        str | None,
        Flag(
            ("--rpc",),
            "Servers (`acestep-gguf rpc-server`) that lend memory to a model larger than this machine.",
            MACHINE,
            metavar="HOST:PORT,…",
        ),
    ] = None
    type_k: Annotated[
        CacheType | None,
        _flag("-ctk", "--cache-type-k", help=f"Type of the K cache: {', '.join(get_args(CacheType))}."),
    ] = None
    type_v: Annotated[
        CacheType | None, _flag("-ctv", "--cache-type-v", help="Type of the V cache, the same.")
    ] = None
    use_mmap: Annotated[
        bool | None, _flag("--mmap/--no-mmap", help="Map the file of weights, or read it into memory.")
    ] = None
    use_mlock: Annotated[bool | None, _flag("--mlock", help="Keep the weights from being paged out.")] = None
    n_parallel: Annotated[
        int,
        _flag(
            "-np", "--parallel", help="Answers that `batch` and `serve` write together; -1: as many as fit."
        ),
    ] = 1
    allow_paging: Annotated[
        bool,
        _flag(
            "--allow-paging", help="Run even if weights do not fit into memory and are read again and again."
        ),
    ] = False
    flash_attn: Annotated[
        FlashAttention | None,
        _flag("-fa", "--flash-attn", help=f"Flash attention: {', '.join(get_args(FlashAttention))}."),
    ] = None
    prefill: Annotated[
        Prefill,
        _flag("--prefill", help="Reading of long prompts: auto, int8 (if `convert --prefill` made it), off."),
    ] = "auto"
    image_tokens: Annotated[
        int | None,
        _flag(
            "--image-tokens",
            group=PICTURES_AND_PROMPT,
            help="Tokens of a picture at most: those that say most of it. By default all.",
        ),
    ] = None
    max_tiles: Annotated[
        int | None,
        _flag(
            "--max-tiles",
            group=PICTURES_AND_PROMPT,
            help="Tiles of a picture at most, where the model cuts pictures up. By default its own number.",
        ),
    ] = None
    spec_type: Annotated[
        SpecType,
        _flag(
            "--spec-type",
            help="ngram-simple guesses ahead that what followed the last tokens before will follow again.",
        ),
    ] = "none"
    draft: Annotated[
        str | os.PathLike[str] | None,
        _flag("--draft", "-md", "--model-draft", help="Bundle of a smaller model that guesses ahead."),
    ] = None
    # llama.cpp computes a call of 16 tokens in about the time of one of 8.
    draft_max: Annotated[
        int, _flag("--draft-max", "--spec-draft-n-max", help="Tokens to guess at a time at most.")
    ] = 15
    cache: Annotated[
        bool | str | os.PathLike[str],
        _flag(
            "--cache/--no-cache",
            group=CACHE,
            help="Keep on disk what was computed of pictures; see `cache info`.",
            default=True,
        ),
    ] = False

    def __post_init__(self) -> None:
        for name, value, of in (("quant", self.quant, "a decoder"), ("vision", self.vision, "a tower")):
            if value is not None and not isinstance(value, str):
                raise UsageError(
                    f"{name} is {value!r}: give the name of {of}, as `acestep-gguf info` shows them.",
                    settings=[name],
                )
        for name in ("use_extra_bufts", "offload_kqv", "use_mmap", "use_mlock", "allow_paging"):
            if getattr(self, name) not in (None, True, False):
                raise UsageError(f"{name} is {getattr(self, name)!r}: give True or False.", settings=[name])
        _ = self.rpc_addresses
        if self.draft == "":
            raise UsageError("draft is empty: give the folder of a bundle.", settings=["draft"])
        if not isinstance(self.cache, bool | str | os.PathLike):
            raise UsageError(f"cache is {self.cache!r}: give True, False or the path of a folder.")
        if self.image_tokens is not None:
            check_integer("image_tokens", self.image_tokens, 1, 2**20)
        if self.max_tiles is not None:
            check_integer("max_tiles", self.max_tiles, 1, 2**20)
        for name, choices in (
            ("prefill", PREFILLS),
            ("vision_provider", VISION_PROVIDERS),
            ("spec_type", SPEC_TYPES),
        ):
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}: choose from {', '.join(choices)}.", settings=[name]
                )
        if self.spec_type != "none" and self.draft is not None:
            raise UsageError(
                f"spec_type {self.spec_type} and draft are two ways to guess: choose one.",
                settings=["spec_type", "draft"],
            )
        check_integer("draft_max", self.draft_max, 1, MOST_DRAFT_MAX)
        check_integer("n_parallel", self.n_parallel, -1, MOST_PARALLEL)
        if self.n_parallel == 0:
            raise UsageError("n_parallel is 0: give 1 or more, or -1.", settings=["n_parallel"])

    @property
    def rpc_addresses(self) -> tuple[Address, ...]:
        """The servers of ``rpc``."""
        return () if self.rpc is None else rpc_addresses(self.rpc)

    @property
    def n_guesses(self) -> int:
        """Tokens that are guessed ahead at a time, at most."""
        return self.draft_max if self.spec_type != "none" or self.draft is not None else 0


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, under llama.cpp's names.

    Args:
        temperature: 0 takes the most probable token each time, so that answers repeat.
        top_k: draw from so many of the most probable tokens; 0 from all.
        top_p: draw from the fewest tokens that have this probability together.
        min_p: leave out tokens that are less probable than so much of the most probable one's probability.
        seed: of the draw; None or -1 draws a new one each time.
        repeat_penalty: 1 is off; it looks at the last 64 tokens.
    """

    temperature: Annotated[
        float, _flag("--temp", group=SAMPLING, help="0 always takes the most probable token.")
    ] = 0.0
    top_k: Annotated[
        int,
        _flag("--top-k", group=SAMPLING, help="Draw from this many of the most probable tokens; 0 is all."),
    ] = 40
    top_p: Annotated[
        float,
        _flag(
            "--top-p",
            group=SAMPLING,
            help="Draw from the most probable tokens that have this probability together.",
        ),
    ] = 0.95
    min_p: Annotated[
        float,
        _flag("--min-p", group=SAMPLING, help="Leave out tokens below this part of the highest probability."),
    ] = 0.05
    seed: Annotated[
        int | None,
        _flag(
            "-s", "--seed", group=SAMPLING, help="Seed of the draw; -1, the default, is a new one each time."
        ),
    ] = None
    repeat_penalty: Annotated[
        float,
        _flag(
            "--repeat-penalty",
            group=SAMPLING,
            help="Makes tokens that were there before less probable; 1 is off.",
        ),
    ] = 1.0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repeat_penalty", 1e-3, 100.0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not least <= value <= most:  # NaN fails both
                raise UsageError(
                    f"{name} is {value!r}: give a number from {least:g} to {most:g}.", settings=[name]
                )
        check_integer("top_k", self.top_k, 0, 2**31 - 1)
        if self.seed is not None:
            check_integer("seed", self.seed, -1, 2**32 - 2)


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(SamplingParams):
    """How an answer is written.

    Args:
        max_tokens: length of the answer at most; -1: until the context is full.
        stop: strings that end the answer, and are no part of it.
        exact: go on from what was computed for earlier answers only where that changes nothing, not even
            the last bit. Otherwise from the longest common beginning, which is faster in a chat: an answer
            can come out otherwise where two tokens are about equally probable.
        json_schema: what the answer has to be, as JSON (docs/json.md): a JSON Schema as a dict, its text or
            a file with it, or a pydantic model. ``Answer.data`` is the value.
        grammar: what the answer has to be, in llama.cpp's GBNF: text, or a file with it.
    """

    max_tokens: Annotated[
        int,
        _flag(
            "-n",
            "--n-predict",
            group=OUTPUT,
            help="Tokens of the answer at most; -1: until the context is full.",
        ),
    ] = 512
    stop: Annotated[
        Sequence[str],
        _flag("--stop", group=OUTPUT, help="A text that ends the answer, and is no part of it; repeat."),
    ] = ()
    exact: bool = True
    json_schema: Annotated[
        Mapping[str, Any] | str | os.PathLike[str] | type[Any] | None,
        _flag(
            *("-j", "--json-schema", "-jf", "--json-schema-file"),
            group=OUTPUT,
            help="Answer as JSON after this schema: a file, or its text.",
        ),
    ] = None
    grammar: Annotated[
        str | os.PathLike[str] | None,
        _flag(
            "--grammar",
            "--grammar-file",
            group=OUTPUT,
            help="Answer after this grammar (GBNF): a file, or its text.",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("max_tokens", self.max_tokens, -1, 2**31 - 1)
        if self.max_tokens == 0:
            raise UsageError("max_tokens is 0: give 1 or more, or -1.", settings=["max_tokens"])
        if not isinstance(self.stop, list | tuple) or not all(isinstance(text, str) for text in self.stop):
            raise UsageError(f"stop is {self.stop!r}: give a list of strings, even for a single one.")
        if "" in self.stop:
            raise UsageError("stop has an empty text: leave it out.", settings=["stop"])
        if self.stop and self.json_schema is not None:
            raise UsageError(
                "stop would end JSON in its middle: leave it out, or json_schema.",
                settings=["stop", "json_schema"],
            )
        if self.grammar is not None and self.json_schema is not None:
            raise UsageError(
                "json_schema and grammar each say what an answer is: choose one.",
                settings=["json_schema", "grammar"],
            )
        _ = self.constraint  # what is wrong with it is said at once

    @cached_property
    def constraint(self) -> "Grammar | None":
        """The grammar that the answer has to follow, if there is one; a file was read when it was made."""
        if self.json_schema is None and self.grammar is None:
            return None
        from acestep_gguf.grammar.matcher import Grammar  # noqa: PLC0415 (most answers need none)

        if self.grammar is not None:
            return Grammar.of_gbnf(self.grammar)
        return Grammar.of_schema(self.json_schema)


def changed(options: Options, changes: Mapping[str, Any]) -> Options:
    """``options`` with the fields named in ``changes``.

    Raises:
        UsageError: there is no such option, or a value is out of its range.
    """
    if unknown := changes.keys() - {field.name for field in fields(options)}:
        raise UsageError(
            f"{type(options).__name__} has no option {', '.join(sorted(unknown))}: see its documentation."
        )
    return replace(options, **changes)


def check_integer(name: str, value: object, least: int, most: int) -> None:
    """Check the setting called ``name``.

    Raises:
        UsageError: it is no integer, or out of its range.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(f"{name} is {value!r}: give a whole number from {least} to {most}.", settings=[name])
