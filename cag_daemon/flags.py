"""The flags of `serve`, as words and as values: one definition, for the command line and for the front."""

from __future__ import annotations

from typing import Any

import click

from cag_daemon.config import FLAGS, Settings
from cag_daemon.errors import InvalidParams

STANDALONE = "keep everything in this process and its worker, share nothing"


def settings_flags(command: Any) -> Any:
    """Every setting as a flag; None where it is not given."""
    for name, info in reversed(Settings.model_fields.items()):
        command = click.option(FLAGS[name], name, metavar="…", help=info.description)(command)
    return command


def serve_flags(command: Any) -> Any:
    """What `serve` accepts: the settings, and what editors add of their own accord."""
    command = settings_flags(command)
    command = click.option("--clientProcessId", "client", hidden=True)(command)
    command = click.option("--standalone", is_flag=True, help=STANDALONE)(command)
    return click.option("--stdio", is_flag=True, hidden=True)(command)


def parse_flags(arguments: list[str]) -> dict[str, Any]:
    """The settings among the arguments of a `serve`, by field name, as `config.resolve` takes them.

    Args:
        arguments: as they were typed, all that stood behind `serve`.

    Raises:
        InvalidParams: there is no such flag, or its value is missing.
    """
    try:
        given = _SERVE.make_context("serve", list(arguments)).params
    except click.UsageError as error:
        message = error.format_message()
        message += "" if message.endswith((".", "?")) else "."
        raise InvalidParams(f"{message} `cag-daemon serve --help` lists the flags.", _named(error)) from None
    return {name: given[name] for name in Settings.model_fields}


def _named(error: click.UsageError) -> str:
    return str(getattr(error, "option_name", None) or "arguments")


# No --help of its own: it would print, and end, where nobody looks.
_SERVE = serve_flags(click.Command("serve", add_help_option=False))
