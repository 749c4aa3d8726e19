"""Writes docs/command-line.md from the commands themselves: ``python docs/_site/command_line.py``."""

from __future__ import annotations

import inspect
from pathlib import Path

import click

from convexlab.cli import main
from convexlab.commands import Command, leaves

PAGE = Path(__file__).parents[1] / "command-line.md"
INTRODUCTION = """\
# Command line

What each command takes, as `convexlab COMMAND --help` says it. This page is made from the program itself.
"""
COMPLETION = """\
## Completion in the shell

Names of commands and options are completed at the tab key, once your shell knows how:

| shell | line for its start-up file |
|---|---|
| bash | `eval "$(_CONVEXLAB_COMPLETE=bash_source convexlab)"` |
| zsh | `eval "$(_CONVEXLAB_COMPLETE=zsh_source convexlab)"` |
| fish | `_CONVEXLAB_COMPLETE=fish_source convexlab \\| source` |
"""


def page() -> str:
    """Return the page."""
    commands = [lines for heading, rows in main.sections() for lines in (f"\n**{heading}**\n", *map(item, rows))]
    start = [f"## convexlab\n\n{prose(main.help or '')}", *commands, f"\n{main.epilog}\n"]
    sections = [section(f"convexlab {path}", command) for path, command in leaves(main)]
    return "\n".join([INTRODUCTION, *start, *sections, COMPLETION])


def item(row: tuple[str, str]) -> str:
    """Return one of a list."""
    names, text = row
    return f"- **`{names}`** {text}".rstrip()


def section(path: str, command: click.Command) -> str:
    """Return what is to say of one command."""
    # As within the main command, which names the option for help; click makes that option once a process.
    context = click.Context(command, info_name=path, **main.context_settings)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    lines = [f"## {path}\n", f"```text\n{usage}\n```\n", prose(command.help or "")]
    assert isinstance(command, Command)
    for heading, rows in command.sections(context):
        lines += [f"**{heading}**\n", *map(item, rows), ""]
    return "\n".join(lines)


def prose(text: str) -> str:
    """Return a help text as Markdown: what click is told to leave as it is becomes a block."""
    paragraphs = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        verbatim = paragraph.startswith("\b\n")
        paragraphs.append(f"```text\n{paragraph[2:].rstrip()}\n```\n" if verbatim else f"{paragraph}\n")
    return "\n".join(paragraphs)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
