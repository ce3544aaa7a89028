"""How a verb reads its arguments: the first is a bundle, or the default one; pictures share a flag."""

import os
from typing import Any

from acestep_gguf.cli.pictures import one_flag_each
from acestep_gguf.cli.verb import Verb


class VerbOfABundle(Verb):
    """A verb that puts the default bundle before its words if they do not begin with a bundle."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # click's or typer's own Context
        """The arguments for typer."""
        if ctx.resilient_parsing:  # completion, of words that are not all there yet
            return super().parse_args(ctx, args)
        if any("--image" in parameter.opts for parameter in self.get_params(ctx)):
            args = one_flag_each(args)
        if self._lacks_a_bundle(ctx, args):
            from acestep_gguf.bundle.library import default_bundle

            folder = default_bundle()
            args = [str(folder), *args] if folder else args
        return super().parse_args(ctx, args)

    def _lacks_a_bundle(self, ctx: Any, args: list[str]) -> bool:
        """Whether the first word is something else than a bundle, or there is no word at all.

        A first word that is no bundle, no file, and not alone, is a bundle's name with a mistake in it.
        """
        if not {"-h", "--help"}.isdisjoint(args):
            return False
        from acestep_gguf.bundle.library import is_bundle_or_name

        values, _, _ = self.make_parser(ctx).parse_args([*args])
        names = [
            parameter.name for parameter in self.get_params(ctx) if parameter.param_type_name == "argument"
        ]
        first, *others = (values.get(str(name)) for name in names)
        if not isinstance(first, str):
            return True
        if not first or not others or is_bundle_or_name(first):
            return False
        return not others[0] or os.path.exists(first)
