"""`curate show`: show conversations in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from curate.cli.rendering_options import CHOICES, choice_options, given

if TYPE_CHECKING:
    from rich.console import RenderableType

    from curate.analysis.conversations import ConversationView
    from curate.analysis.selection import Selection
    from curate.rendering.mask_view import MaskViewer

SHOWN = 10  # entries printed to a pipe or a file without --limit
ANY_RULE = "*"  # stands for --rejected without a rule


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option(
    "--set", "set_path", default="curated", show_default=True, metavar="SET", help="The curated set's folder."
)
@click.option("--where", metavar="SQL", help='Condition on the columns, such as "tokens > 1000".')
@click.option("--search", metavar="TEXT", help="Text in any message; case is ignored.")
@click.option("--random", type=click.IntRange(min=1), metavar="N", help="Show N of them, chosen at random.")
@click.option("--seed", type=int, help="Seed of --random.")
@click.option("--rejected", is_flag=False, flag_value=ANY_RULE, metavar="[RULE]", help="Show rejects [by RULE].")
@click.option("--diff", is_flag=True, help="Show what cleaning changed in the record.")
@click.option("--mask", is_flag=True, help="Show which tokens are trained on.")
@click.option("--template", metavar="NAME", help="For --mask: prompt template.  [default: the set's]")
@click.option("--tokenizer", metavar="NAME", help="For --mask: tokenizer.  [default: the set's]")
@click.option("--chat-template", metavar="FILE", help="For --mask: Jinja chat template to use instead.")
@click.option("--loss", help="For --mask: train on all answers, last, or roles:assistant,tool.")
@choice_options
@click.option("--raw", is_flag=True, help="Show the stored text instead of rendered Markdown.")
@click.option("--limit", type=click.IntRange(min=1), help=f"Show at most this many.  [default in a pipe: {SHOWN}]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(
    ids: tuple[str, ...],
    set_path: str,
    rejected: str | None,
    limit: int | None,
    diff: bool,
    mask: bool,
    raw: bool,
    as_json: bool,
    seed: int | None,
    **conditions: Any,
) -> None:
    """Show conversations of a set.

    On a terminal, n and p show the next and the previous conversation, q quits. ID is an id of the set,
    an id of the dump, or FILE:INDEX; without an ID, all conversations that --where and --search match.

    \b
    Example:
      curate show --where "tokens > 1000 and language = 'ko'" --random 5
    """
    from curate.analysis.selection import show as select
    from curate.cli.progress.stages import show_stages

    if sum((diff, mask, raw, as_json)) > 1:
        raise click.UsageError("--diff, --mask, --raw and --json exclude each other")
    rendering = given(conditions, "template", "tokenizer", "chat_template", "loss", *CHOICES)
    if rendering and not mask:
        raise click.UsageError(f"--{next(iter(rendering)).replace('_', '-')} is for --mask")
    seed = _seed(seed) if conditions["random"] else seed
    rejected_by: str | bool = rejected is not None if rejected in (None, ANY_RULE) else str(rejected)
    with show_stages("searching"):
        selection = select(ids, set_path, rejected=rejected_by, seed=seed, **conditions)
    if limit is not None:
        selection = selection.head(limit)
    elif conditions["random"]:
        limit = conditions["random"]
    if as_json:
        selection = _cut(selection, limit)
        with show_stages("printing", quiet=sys.stdout.isatty()):  # the lines themselves show what is done there
            _print_json(selection)
        return
    if not len(selection):
        click.echo("no conversation matches", err=True)
        return
    _show(selection, _renderer(selection, diff, raw, rendering if mask else None), limit)


def _seed(seed: int | None) -> int:
    """Return the seed; draw and print one if it is None."""
    if seed is None:
        import random

        seed = random.randrange(100_000)
        click.echo(f"chosen with --seed {seed}", err=True)
    return seed


def _cut(selection: Selection, limit: int | None) -> Selection:
    """Return what to print without a pager; print how many are left out."""
    if limit is not None or len(selection) <= SHOWN:
        return selection
    click.echo(f"{SHOWN} of {selection.describe_size()}; --limit {len(selection)} prints all", err=True)
    return selection.head(SHOWN)


def _show(selection: Selection, render: Callable[[ConversationView], RenderableType], limit: int | None) -> None:
    from curate.display.text import console
    from curate.display.text import show as print_renderable

    if sys.stdin.isatty() and sys.stdout.isatty() and not console().is_dumb_terminal:
        from curate.cli.pager import browse

        browse(len(selection), lambda index: render(selection[index]))
        return
    for index, view in enumerate(_cut(selection, limit)):
        if index:
            click.echo()
        print_renderable(render(view))


def _renderer(
    selection: Selection, diff: bool, raw: bool, mask: Mapping[str, Any] | None
) -> Callable[[ConversationView], RenderableType]:
    """Return the function that renders a conversation; `mask` are the settings that its loss mask is shown with."""
    from curate.analysis import conversations
    from curate.dataset.curated_set import translate_errors
    from curate.report.terminal.conversations import render_conversation, render_diff

    if diff:

        def render_differences(view: ConversationView) -> RenderableType:
            if view.unread is not None:
                return render_conversation(view)
            with translate_errors(selection.set):
                return render_diff(
                    view,
                    conversations.diff_record(selection.set, view),
                    conversations.find_rejections(selection.set, view),
                )

        return render_differences
    if mask is not None:
        return _mask_renderer(selection, **mask)
    counter = _viewer(selection)

    def render(view: ConversationView) -> RenderableType:
        sizes = counter.count_message_tokens(view.messages) if counter else None
        return render_conversation(view, sizes, raw=raw)

    return render


def _mask_renderer(
    selection: Selection,
    *,
    template: str | None = None,
    tokenizer: str | None = None,
    chat_template: str | None = None,
    loss: str = "all",
    **choices: Any,
) -> Callable[[ConversationView], RenderableType]:
    """Return the function that renders a conversation with its loss mask, by default as in a run with the set's own."""
    from curate.errors import TokenizerError
    from curate.rendering import factory
    from curate.rendering.choices import Choices
    from curate.rendering.mask_view import view_rows
    from curate.report.terminal.conversations import render_mask
    from curate.schemas.conversation import with_tools
    from curate.tokenization.tokenizer import load_tokenizer

    manifest = selection.set.manifest
    try:
        loaded = (
            load_tokenizer(tokenizer, bulk=False) if tokenizer else factory.load_set_tokenizer(manifest, bulk=False)
        )
    except TokenizerError as error:
        raise TokenizerError(f"the mask cannot be shown: {error}") from None
    text = factory.read_chat_template(chat_template)
    renderer = factory.make_renderer(
        template or manifest.template, loaded, loss=loss, chat_template=text, choices=Choices(**choices)
    )
    return lambda view: render_mask(view, view_rows(renderer, with_tools(view.messages, view.facts.get("tools"))))


def _viewer(selection: Selection) -> MaskViewer | None:
    """Return the viewer that counts tokens. If it cannot be loaded, print why."""
    from curate.rendering.mask_view import load_viewer

    viewer, problem = load_viewer(selection.set.manifest)
    if viewer is None:
        click.echo(f"no token counts for messages: {problem}", err=True)
    return viewer


def _print_json(selection: Selection) -> None:
    """Print a JSON array, one conversation on each line, as they are read."""
    from curate.analysis.json_export import to_json_lines

    viewer = _viewer(selection)
    before = "[\n"
    for line in to_json_lines(selection, viewer.count_batch if viewer else None):
        sys.stdout.write(f"{before}{line}")
        before = ",\n"
    click.echo("[]" if before == "[\n" else "\n]")
