"""Commands of click whose help is in groups, by what one wants to do, and that say which name was meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from convexlab.errors import unknown_name

__all__ = ["EXIT_STATUS", "Command", "Group", "leaves"]

EXIT_STATUS = "Exit status: 0 done, 1 it went wrong, 2 wrong use, 130 interrupted (what was done is kept)."

Sections = Mapping[str, Sequence[str]]

Rows = list[tuple[str, str]]


class Command(click.Command):
    """A command whose help has its options in sections."""

    def __init__(self, *args: Any, sections: Sections | None = None, **settings: Any) -> None:
        """``sections`` has the names of parameters by heading; all others follow under "Other options"."""
        settings.setdefault("epilog", EXIT_STATUS)
        super().__init__(*args, **settings)
        self._sections = sections or {}

    def sections(self, context: click.Context) -> Iterator[tuple[str, Rows]]:
        """Yield headings, each with the names and the help of its options."""
        records = {
            parameter.name or "": record
            for parameter in self.get_params(context)
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context))
        }
        yield from _arranged(self._sections, records, "Other options" if self._sections else "Options")

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a heading each section."""
        _write(self.sections(context), formatter)


class Group(click.Group):
    """Commands whose help lists all that do something, in sections; a group within stands for its commands."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, sections: Sections | None = None, **settings: Any) -> None:
        """``sections`` has the names of commands by heading; all others follow under "Commands"."""
        super().__init__(*args, **settings)
        self._sections = sections or {}

    def sections(self) -> Iterator[tuple[str, Rows]]:
        """Yield headings, each with the names of its commands and what they do."""
        # So long that nothing is cut off: the formatter breaks lines.
        records = {name: (name, command.get_short_help_str(200)) for name, command in leaves(self)}
        yield from _arranged(self._sections, records, "Commands")

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, and the few options after them."""
        self.format_commands(context, formatter)
        click.Command.format_options(self, context, formatter)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, a heading each section."""
        _write(self.sections(), formatter)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is called; what is no command says which one was meant."""
        name = args[0]
        if self.get_command(context, name) is None and not name.startswith("-") and not context.resilient_parsing:
            context.fail(str(unknown_name("command", name, {*self.commands, *dict(leaves(self))})))
        return super().resolve_command(context, args)


def leaves(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield the commands that do something, each with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def _arranged(sections: Sections, records: Mapping[str, tuple[str, str]], rest: str) -> Iterator[tuple[str, Rows]]:
    for heading, names in sections.items():
        yield heading, [records[name] for name in names]
    named = {name for names in sections.values() for name in names}
    if others := [record for name, record in records.items() if name not in named]:
        yield rest, others


def _write(sections: Iterable[tuple[str, Rows]], formatter: click.HelpFormatter) -> None:
    for heading, rows in sections:
        with formatter.section(heading):
            formatter.write_dl(rows)
