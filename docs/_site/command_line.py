"""Writes docs/command-line.md from the commands themselves: ``python docs/_site/command_line.py``."""

from __future__ import annotations

import inspect
from pathlib import Path

import click

from convexlab.cli import main

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
    sections = [section(path, command) for path, command in commands("convexlab", main)]
    return "\n".join([INTRODUCTION, *sections, COMPLETION])


def commands(path: str, command: click.Command) -> list[tuple[str, click.Command]]:
    """Return every command that does something, with the words that call it."""
    if not isinstance(command, click.Group):
        return [(path, command)]
    inner = [pair for name, child in command.commands.items() for pair in commands(f"{path} {name}", child)]
    return [(path, command), *inner] if path == "convexlab" else inner


def section(path: str, command: click.Command) -> str:
    """Return what is to say of one command."""
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    records = [parameter.get_help_record(context) for parameter in command.params]
    options = [f"- **`{names}`** {text}" for names, text in filter(None, records)]
    return "\n".join([f"## {path}\n", f"```text\n{usage}\n```\n", prose(command.help or ""), "\n".join(options), ""])


def prose(text: str) -> str:
    """Return a help text as Markdown: what click is told to leave as it is becomes a block."""
    paragraphs = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        verbatim = paragraph.startswith("\b\n")
        paragraphs.append(f"```text\n{paragraph[2:].rstrip()}\n```\n" if verbatim else f"{paragraph}\n")
    return "\n".join(paragraphs)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
