"""What all verbs have in common: the user's own defaults of options, and --help with options in groups."""

from typing import Any

from typer.core import TyperCommand

from acestep_gguf.cli.option_groups import groups_among
from acestep_gguf.options import GROUPS


class Verb(TyperCommand):
    """A verb, as a command of click, or of typer's own copy of it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; an option that is not there is what the user's file says."""
        groups = groups_among(str(parameter.name) for parameter in self.get_params(ctx))
        if groups and not ctx.resilient_parsing:  # which is completion
            from acestep_gguf.cli.config import user_defaults

            ctx.default_map = user_defaults(groups)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the lists of arguments and options in --help, each option in its ``rich_help_panel``.

        typer has that with rich only, which takes longer to import than all else that --help does.
        """
        lists: dict[str, list[tuple[str, str]]] = {
            heading: [] for heading in ("Arguments", *GROUPS, "Options")
        }
        for parameter in self.get_params(ctx):
            heading = getattr(parameter, "rich_help_panel", None) or "Options"
            if parameter.param_type_name == "argument":
                heading = "Arguments"
            if line := parameter.get_help_record(ctx):
                name, words = line
                if name.startswith("["):  # required here, yet there is a default bundle
                    words = words.removesuffix("  [required]")
                lists[heading].append((name, words))
        for heading, lines in lists.items():
            if lines:
                with formatter.section(heading):
                    formatter.write_dl(lines)
