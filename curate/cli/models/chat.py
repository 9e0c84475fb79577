"""`curate chat`: chat with a model in the terminal, or answer a piped prompt."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from curate.cli.options import model_options

if TYPE_CHECKING:
    from curate.inference.chat import Chat

HELP = """\
/reset          start a new conversation
/system TEXT    set the system prompt and start a new conversation
/result TEXT    give the result of a call that the model made (with --tools)
/base           turn the adapter off, or on again
/help           show this help
/quit           quit (also Ctrl-D); Ctrl-C stops an answer"""
_RESULT = re.compile(r"/result(?:\s+(.*))?", re.DOTALL)


@click.command()
@click.argument("model")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Answer this and exit; can be repeated.")
@click.option("--system", default="", metavar="TEXT", help="System prompt instead of the template's.")
@click.option(
    "--tools", type=click.Path(), metavar="FILE", help="Definitions of tools that the model may call; none is run."
)
@click.option("--temperature", type=click.FloatRange(0), help="0 always takes the most likely token.  [default: 0.7]")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Sample from tokens up to this probability.  [default: 0.9]",
)
@click.option("--top-k", type=click.IntRange(0), help="Sample from this many tokens; 0: from all.  [default: 0]")
@click.option(
    "--repetition", type=click.FloatRange(0, min_open=True), help="Penalty on repetition, above 1.  [default: 1.0]"
)
@click.option("--seed", type=click.IntRange(0), help="Seed, for reproducible answers.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Most tokens in an answer.  [default: 512]")
@click.option("--template", help="Built-in prompt template instead of the model's.")
@model_options
def chat(
    model: str,
    prompts: tuple[str, ...],
    system: str,
    tools: str | None,
    template: str | None,
    base: str | None,
    other_base: bool,
    quantise: bool | None,
    dtype: str,
    device: str,
    **settings: float | None,
) -> None:
    """Chat with a model.

    MODEL is a run of curate finetune, a model, an adapter (its base is loaded too), or a Hub name. Prompts
    are rendered as in training. Without a terminal, the prompt is read from standard input.

    With --tools, the prompt lists tools and the model's calls are shown; answer a call with "/result TEXT".

    \b
    Example:
      curate chat runs/first --temperature 0
    """
    import curate
    from curate.cli.progress.stages import show_stages

    questions = list(prompts) or _read_piped()
    with show_stages("loading"):
        opened = curate.chat(
            model,
            base=base,
            system=system,
            tools=tools,
            template=template,
            quantise=quantise,
            other_base=other_base,
            dtype=dtype,
            device=device,
            say=lambda text: click.echo(text, err=True),
            **settings,
        )
    if questions:
        for text in questions:
            _answer(opened, text)
    else:
        _chat(opened)


def _read_piped() -> list[str]:
    if sys.stdin.isatty():
        return []
    text = sys.stdin.read().strip()
    if not text:
        raise click.UsageError("no prompt: pipe one in, or use --prompt TEXT")
    return [text]


def _answer(opened: Chat, text: str) -> None:
    """Stream an answer to stdout; on a terminal, control characters are made visible."""
    from curate.display.text import safe

    is_terminal = sys.stdout.isatty()
    result = _RESULT.fullmatch(text) if opened.tools else None
    if result and not opened.open_calls:
        click.echo("(the last answer calls no tool, so there is no result to give)", err=True)
        return
    for part in opened.stream_result(result[1] or "") if result else opened.stream(text):
        click.echo(safe(part) if is_terminal else part, nl=False)
        sys.stdout.flush()
    click.echo()
    for call in opened.open_calls:
        shown = f"(calls {call.name} with {call.arguments}; give its result: /result TEXT)"
        click.echo(safe(shown) if is_terminal else shown, err=True)
    answer = opened.last
    if answer is not None and answer.left_out:
        click.echo(f"({answer.left_out} earlier exchanges no longer fit the window and were left out)", err=True)
    if answer is not None and not answer.stopped:
        click.echo(f"(cut off after {answer.tokens} tokens; raise --max-new-tokens)", err=True)


# ---- at a terminal


def _chat(opened: Chat) -> None:
    with suppress(ImportError):  # readline adds line editing and history
        import readline  # noqa: F401
    click.echo(_about(opened), err=True)
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
            return
        if not text:
            continue
        if text.split()[0] == "/quit":
            return
        if (opened.tools and _RESULT.fullmatch(text)) or not _run_command(opened, text):
            try:
                _answer(opened, text)
            except KeyboardInterrupt:
                click.echo("\n(stopped; the text so far stays in the conversation)", err=True)


def _about(opened: Chat) -> str:
    model = opened.model
    device = next(model.parameters()).device
    dtype = str(model.dtype).removeprefix("torch.")
    template = opened.serving.template or "its own chat template"
    return f"{opened.artifact}\nprompt: {template}; {dtype} on {device}; /help lists the commands"


def _run_command(opened: Chat, text: str) -> bool:
    """Run a command that begins with a slash; return whether the text was a command."""
    name, _, argument = text.partition(" ")
    if name not in COMMANDS:
        if re.fullmatch(r"/\w*", text):
            click.echo(f"no command {text}\n{HELP}", err=True)
            return True
        return False
    click.echo(COMMANDS[name](opened, argument.strip()), err=True)
    return True


def _reset(opened: Chat, _: str) -> str:
    opened.reset()
    return "(new conversation)"


def _system(opened: Chat, text: str) -> str:
    opened.system = text
    opened.reset()
    return (
        "(new conversation with this system prompt)" if text else "(new conversation with the template's system prompt)"
    )


def _base(opened: Chat, _: str) -> str:
    if not opened.has_adapter:
        return "(this model has no adapter)"
    opened.as_base = not opened.as_base
    return "(adapter off)" if opened.as_base else "(adapter on)"


COMMANDS: dict[str, Callable[[Chat, str], str]] = {
    "/reset": _reset,
    "/system": _system,
    "/base": _base,
    "/help": lambda opened, _: f"{_about(opened)}\n{HELP}",
}
