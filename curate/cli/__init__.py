"""The command line: commands are loaded on demand, and errors become exit codes in one place."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import IO, Any

import click

from curate._version import __version__
from curate.errors import CurateError, did_you_mean

__all__ = ["cli", "main"]

GROUPS = {  # heading in the help: command to module; importing a module loads only click
    "Data": {
        "clean": "clean",
        "refilter": "refilter",
        "combine": "refilter",
        "convert": "convert",
        "generate": "models.generate",
        "score": "models.score",
        "fingerprint": "fingerprint",
    },
    "Look": {"stats": "stats", "show": "show", "explain": "explain"},
    "Train": {"identity": "identity", "finetune": "models.finetune"},
    "Models": {
        "chat": "models.chat",
        "serve": "models.serve",
        "arena": "models.arena",
        "evaluate": "models.evaluate",
        "judge": "models.judge",
        "merge": "models.merge",
    },
    "Reference": {
        "filters": "catalogue",
        "recipes": "catalogue",
        "presets": "catalogue",
        "formats": "catalogue",
        "doctor": "doctor",
    },
}
COMMANDS = {name: module for commands in GROUPS.values() for name, module in commands.items()}
REPORT_HINT = "please report it with the traceback that CURATE_DEBUG=1 prints"


class Failure(click.ClickException):
    """An error that ends the command with exit code 1 and one line on stderr."""

    def show(self, file: IO[Any] | None = None) -> None:
        from curate.display.text import one_line

        click.echo(f"error: {one_line(self.message, 2000)}", err=True, file=file)


class Commands(click.Group):
    """A group that imports a command when it is called, and maps errors to exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"curate.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in their groups, with all descriptions in one column."""
        width = max(map(len, COMMANDS))
        for title, names in GROUPS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl(
                    [(name.ljust(width), each.get_short_help_str(formatter.width)) for name, each in commands if each]
                )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            ctx.fail(f"no command {name!r}{did_you_mean(name, COMMANDS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; print a user error as one line, and any other as one line with a hint."""
        try:
            return super().invoke(ctx)
        except CurateError as error:
            raise Failure(str(error)) from error
        except KeyboardInterrupt as stop:
            ctx.exit(_report_stop(stop))
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except OSError as error:
            _raise_if_debugging()
            file = f": {error.filename!r}" if error.filename else ""
            raise Failure(f"{error.strerror or error}{file}") from error
        except Exception as error:
            _raise_if_debugging()
            raise Failure(f"this is a bug in curate: {type(error).__name__}: {error}; {REPORT_HINT}") from error


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: ends a run as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


def _terminate(number: int, _frame: object) -> None:
    raise Terminated(number)


def _report_stop(stop: KeyboardInterrupt) -> int:
    """Print that the command was stopped, and return its exit code."""
    click.echo(f"stopped; {str(stop) or 'nothing was changed'}", err=True)
    return stop.code if isinstance(stop, Terminated) else 130


def _raise_if_debugging() -> None:
    """Re-raise the exception being handled, with its traceback, if CURATE_DEBUG is set."""
    if os.environ.get("CURATE_DEBUG"):
        raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="curate")
def cli() -> None:
    """Turn raw chat dumps into training sets, and fine-tune models on them.

    \b
    curate clean dump.json     # write a curated set to curated/
    curate stats               # show its statistics
    curate explain ID          # show what happened to one record
    """


def main() -> None:
    """Run the command line and exit."""
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # under nohup it is ignored, and stays ignored
                signal.signal(number, _terminate)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # for terminals with a limited encoding
        cli(prog_name="curate")
    except KeyboardInterrupt as stop:  # outside of a command
        sys.exit(_report_stop(stop))
