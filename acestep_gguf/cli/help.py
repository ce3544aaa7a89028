"""--help with the options of a verb in groups, without rich, which would take longer than all else."""

from typing import Any

from typer.core import TyperCommand

from acestep_gguf.options import GROUPS


class Verb(TyperCommand):
    """A verb; each of its options stands in the ``rich_help_panel`` that typer was given for it."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # click's, or typer's own copies of them
        """Write the lists of arguments and options in --help."""
        lists: dict[str, list[tuple[str, str]]] = {
            heading: [] for heading in ("Arguments", *GROUPS, "Options")
        }
        for parameter in self.get_params(ctx):
            heading = getattr(parameter, "rich_help_panel", None) or "Options"
            if parameter.param_type_name == "argument":
                heading = "Arguments"
            if line := parameter.get_help_record(ctx):
                lists[heading].append(line)
        for heading, lines in lists.items():
            if lines:
                with formatter.section(heading):
                    formatter.write_dl(lines)
