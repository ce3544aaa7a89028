"""All verbs, each with a module that is imported when the verb is used: none makes another start slower."""

from importlib import import_module
from inspect import signature
from typing import Any, Final

import typer
from typer.core import TyperGroup

from acestep_gguf.cli.default_bundle import VerbOfABundle
from acestep_gguf.cli.options import TYPER, BundleFolder
from acestep_gguf.cli.verb import Verb

# Verbs in the order of --help, with their lines in it. What a verb does is the function of its name in the
# module of its name, with an underscore for a hyphen, and after a name that Python has for itself.
VERBS: Final = {
    "convert": "Convert a checkpoint into a bundle.",
    "import": "Make a bundle of a decoder, and an mmproj file if it can see, of llama.cpp.",
    "quantize": "Quantize a decoder, a GGUF file.",
    "mixture": "Search the mixture of types that loses least on pictures.",
    "imatrix": "Make an importance matrix from pictures.",
    "run": "Answer a question about pictures.",
    "batch": "Ask about many pictures, and write a table.",
    "chat": "Answer one question after another.",
    "serve": "Answer over HTTP, as OpenAI's clients ask.",
    "rpc-server": "Lend memory to a decoder that is larger than one machine's.",
    "use": "Choose the bundle that is used where none is named.",
    "list": "Show the bundles that `use` named.",
    "encode": "Turn pictures into files of image embeds.",
    "info": "Show what is in a bundle.",
    "verify": "Check that a bundle is complete and undamaged.",
    "quality": "Measure what quantizations of a bundle cost.",
    "score": "Score decoders in MME, MMBench, SEED-Bench or MathVista.",
    "plan": "Show memory, settings and expected speed.",
    "tune": "Measure which settings suit this machine.",
    "demo": "Convert a small model, and ask it about pictures.",
    "cache": "Show or clear what is kept of pictures.",
}
EXAMPLES: Final = {
    "run": (
        'acestep-gguf run BUNDLE -i photo.jpg "What is this?"',
        'acestep-gguf run -i receipts/ -p "What is the total of each?"  (after `use BUNDLE`)',
        'curl -s URL | acestep-gguf run -i - "Describe this image." --json',
    ),
    "batch": ('acestep-gguf batch BUNDLE photos/ -p "Describe this image." -o answers.jsonl',),
    "convert": ("acestep-gguf convert CHECKPOINT BUNDLE -q Q4_K_M",),
    "score": ("acestep-gguf score BUNDLE mmbench MMBench_DEV_EN.tsv -q Q4_K_M -q Q8_0",),
}
PYTHONS_OWN: Final = ("import", "list")


def command(name: str) -> Any:
    """The verb ``name`` as click, or typer's own copy of it, takes it."""
    own_name = f"{name}_" if name in PYTHONS_OWN else name.replace("-", "_")
    verb = getattr(import_module(f"acestep_gguf.cli.{own_name}"), own_name)
    if not isinstance(verb, typer.Typer):
        first = next(iter(signature(verb).parameters.values()))
        reading = VerbOfABundle if first.annotation is BundleFolder else Verb
        # After \b, click keeps the lines as they are.
        examples = "\n".join(("\b", "Examples:", *EXAMPLES[name])) if name in EXAMPLES else None
        alone = typer.Typer(add_completion=False, **TYPER)
        alone.command(name, cls=reading, epilog=examples)(verb)
        verb = alone
    made = typer.main.get_command(verb)
    made.name = name
    return made


class Verbs(TyperGroup):
    """The group of all verbs."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        names: dict[str, Any] = dict.fromkeys(VERBS)
        self.commands = names  # for "Did you mean …"

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """The verb ``cmd_name``, None if there is no such verb."""
        return command(cmd_name) if cmd_name in VERBS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the list of verbs in --help."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))
