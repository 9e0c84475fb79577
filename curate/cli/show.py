"""`curate show`: show conversations in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

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

    if sum((diff, mask, raw, as_json)) > 1:
        raise click.UsageError("--diff, --mask, --raw and --json exclude each other")
    seed = _seed(seed) if conditions["random"] else seed
    rejected_by: str | bool = rejected is not None if rejected in (None, ANY_RULE) else str(rejected)
    selection = select(ids, set_path, rejected=rejected_by, seed=seed, **conditions)
    if limit is not None:
        selection = selection.head(limit)
    elif conditions["random"]:
        limit = conditions["random"]
    if as_json:
        _print_json(_cut(selection, limit))
        return
    if not len(selection):
        click.echo("no conversation matches", err=True)
        return
    _show(selection, _renderer(selection, diff, mask, raw), limit)


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


def _renderer(selection: Selection, diff: bool, mask: bool, raw: bool) -> Callable[[ConversationView], RenderableType]:
    """Return the function that renders a conversation."""
    from curate.analysis import conversations
    from curate.dataset.curated_set import translate_errors
    from curate.report.terminal.conversations import render_conversation, render_diff, render_mask

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
    if mask:
        viewer = _viewer(selection, needed=True)
        assert viewer is not None
        return lambda view: render_mask(view, viewer.view(view.messages))
    counter = _viewer(selection, needed=False)

    def render(view: ConversationView) -> RenderableType:
        sizes = counter.count_message_tokens(view.messages) if counter else None
        return render_conversation(view, sizes, raw=raw)

    return render


def _viewer(selection: Selection, needed: bool) -> MaskViewer | None:
    """Return the mask viewer. If it cannot be loaded, print why; raises TokenizerError if it is needed."""
    from curate.errors import TokenizerError
    from curate.rendering.mask_view import load_viewer

    viewer, problem = load_viewer(selection.set.manifest)
    if viewer is None and needed:
        raise TokenizerError(f"the mask cannot be shown: {problem}")
    if viewer is None:
        click.echo(f"no token counts for messages: {problem}", err=True)
    return viewer


def _print_json(selection: Selection) -> None:
    """Print a JSON array, one conversation on each line, as they are read."""
    from curate.analysis.json_export import to_json_lines

    viewer = _viewer(selection, needed=False)
    before = "[\n"
    for line in to_json_lines(selection, viewer.count_batch if viewer else None):
        sys.stdout.write(f"{before}{line}")
        before = ",\n"
    click.echo("[]" if before == "[\n" else "\n]")
