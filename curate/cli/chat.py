"""`curate chat`: a conversation with a model in the terminal, or one answer to a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from curate.model.choices import DTYPES

if TYPE_CHECKING:
    from curate.inference.chat import Chat

HELP = """\
/reset          begin a new conversation
/system TEXT    say how it should answer, and begin anew
/base           answer without the adapter; again: with it
/help           this
/quit           leave (or Ctrl-D); Ctrl-C ends an answer"""


@click.command()
@click.argument("model")
@click.option(
    "--prompt", "prompts", multiple=True, metavar="TEXT", help="Answer this and leave; repeat for more turns."
)
@click.option("--system", default="", metavar="TEXT", help="A system prompt, instead of the template's own.")
@click.option("--temperature", type=click.FloatRange(0), help="0 takes the likeliest token.  [default: 0.7]")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), help="Likeliest tokens up to here.  [default: 0.9]"
)
@click.option("--top-k", type=click.IntRange(0), help="So many of the likeliest; 0 is all.  [default: 0]")
@click.option("--repetition", type=click.FloatRange(0, min_open=True), help="Above 1 repeats less.  [default: 1.0]")
@click.option("--seed", type=click.IntRange(0), help="The same answers again.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Of an answer.  [default: 512]")
@click.option("--template", help="Ask by a built-in prompt template, instead of the model's own.")
@click.option("--base", help="Another base than the adapter names: a folder or a Hub name.")
@click.option(
    "--4bit/--no-4bit", "quantise", default=None, help="Hold the weights in 4 bits; by default as in training."
)
@click.option("--dtype", type=click.Choice(["auto", *DTYPES]), default="auto", help="Numbers to compute in.")
@click.option("--device", default="auto", help="Where to compute: auto, cpu, cuda.")
def chat(
    model: str,
    prompts: tuple[str, ...],
    system: str,
    template: str | None,
    base: str | None,
    quantise: bool | None,
    dtype: str,
    device: str,
    **settings: float | None,
) -> None:
    """Talk to a model.

    MODEL is what curate finetune made (its run's folder), a model, an adapter (its base is found), or a Hub
    name. Prompts are rendered as in training. Without a terminal, standard input is the prompt.

    \b
    Example:
      curate chat runs/first --temperature 0
    """
    import curate

    asked = list(prompts) or _piped()
    opened = curate.chat(
        model,
        base=base,
        system=system,
        template=template,
        quantise=quantise,
        dtype=dtype,
        device=device,
        say=lambda text: click.echo(text, err=True),
        **settings,
    )
    if asked:
        for text in asked:
            _answer(opened, text)
    else:
        _talk(opened)


def _piped() -> list[str]:
    if sys.stdin.isatty():
        return []
    text = sys.stdin.read().strip()
    if not text:
        raise click.UsageError("nothing is asked: pipe a prompt in, or give --prompt TEXT")
    return [text]


def _answer(opened: Chat, text: str) -> None:
    """Write an answer as it comes; onto a terminal without what one would obey."""
    from curate.display.text import safe

    obeys = sys.stdout.isatty()
    for part in opened.stream(text):
        click.echo(safe(part) if obeys else part, nl=False)
        sys.stdout.flush()
    click.echo()
    said = opened.last
    if said is not None and said.left_out:
        click.echo(f"({said.left_out} earlier exchanges no longer fit the model's window)", err=True)
    if said is not None and not said.stopped:
        click.echo(f"(cut after {said.tokens} tokens; --max-new-tokens gives more)", err=True)


# ---- at a terminal


def _talk(opened: Chat) -> None:
    with suppress(ImportError):  # lines can be edited and called back where there is readline
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
        if not _obeyed(opened, text):
            try:
                _answer(opened, text)
            except KeyboardInterrupt:
                click.echo("\n(stopped; what was said so far stays)", err=True)


def _about(opened: Chat) -> str:
    model = opened.model
    place = next(model.parameters()).device
    numbers = str(model.dtype).removeprefix("torch.")
    asked = opened.serving.template or "its own chat template"
    return f"{opened.artifact}\nprompt: {asked}; {numbers} on {place}; /help tells more"


def _obeyed(opened: Chat, text: str) -> bool:
    """Do what a line beginning with a slash says; tell whether it was such a line."""
    word, _, rest = text.partition(" ")
    if word not in ORDERS:
        if re.fullmatch(r"/\w*", text):
            click.echo(f"no command {text}\n{HELP}", err=True)
            return True
        return False
    click.echo(ORDERS[word](opened, rest.strip()), err=True)
    return True


def _reset(opened: Chat, _: str) -> str:
    opened.reset()
    return "(a new conversation)"


def _system(opened: Chat, text: str) -> str:
    opened.system = text
    opened.reset()
    return "(a new conversation, with that system prompt)" if text else "(a new conversation, with the template's own)"


def _base(opened: Chat, _: str) -> str:
    if not opened.has_adapter:
        return "(this is a model without an adapter)"
    opened.as_base = not opened.as_base
    return "(the base answers now)" if opened.as_base else "(the adapter answers now)"


ORDERS: dict[str, Callable[[Chat, str], str]] = {
    "/reset": _reset,
    "/system": _system,
    "/base": _base,
    "/help": lambda opened, _: f"{_about(opened)}\n{HELP}",
}
