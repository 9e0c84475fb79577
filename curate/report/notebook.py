"""Results as HTML for notebooks, without scripts, in the notebook's colours."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import singledispatch
from itertools import islice
from typing import TYPE_CHECKING

from curate.analysis.comparison import Comparison
from curate.analysis.conversations import ConversationView
from curate.analysis.doctor import Doctor
from curate.analysis.explanation import Explanation
from curate.analysis.selection import Selection
from curate.analysis.stats import Flow, Share, Stats, edits, flow
from curate.conversion.collection import Conversations
from curate.dataset.curated_set import CuratedSet, translate_errors
from curate.display.figures import number, percent, plural
from curate.display.html import Cell, escape, table
from curate.pipeline.run import CleanResult
from curate.report.html import conversation
from curate.report.terminal.compare import SIDES, describe_matching, describe_side, total_figures
from curate.report.terminal.doctor import render_doctor
from curate.report.terminal.explain import render_explanation

if TYPE_CHECKING:
    from rich.console import RenderableType

NAMES = 8  # of a list
SHOWN = 5  # of a selection
WIDTH = 100  # cells of terminal reports
STYLE = """<style>
.curate{font:14px/1.5 system-ui,sans-serif;max-width:1000px}
.curate p{margin:0 0 8px}.curate .soft,.curate .note,.curate caption{opacity:.75}
.curate .grid{display:flex;flex-wrap:wrap;gap:8px 40px}
.curate table{border-collapse:collapse;margin:0 0 8px}.curate caption{text-align:left;font-weight:600}
.curate th,.curate td{padding:1px 16px 1px 0;text-align:left;border:0;background:none;vertical-align:top}
.curate td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.curate article{border:1px solid #8886;border-radius:8px;padding:8px 14px;margin:0 0 10px}
.curate .message{border-left:3px solid #8886;padding-left:10px;margin:8px 0}
.curate .message .role{font-weight:600;margin:0}
.curate .user{border-color:#1f6fb2}.curate .assistant{border-color:#2c8a55}.curate .system{border-color:#8b5aa8}
.curate .plain{white-space:pre-wrap;overflow-wrap:anywhere}.curate pre{overflow-x:auto;margin:4px 0}
</style>"""


def to_html(result: object) -> str:
    """Return a result of the library as HTML."""
    html: str = _html_of(result)
    return html


@singledispatch
def _html_of(result: object) -> str:
    raise TypeError(f"{type(result).__name__} has no notebook view")


@_html_of.register
def _stats(stats: Stats) -> str:
    """Show statistics: totals, rejected records, lengths and shares."""
    header = stats.header
    verb, unit = ("kept", "pieces") if header.kind == "set" else ("readable", "conversations")
    share = percent(header.kept, header.read)
    line = f"{number(header.kept)} of {number(header.read)} records {verb} ({share}), {number(header.tokens)} tokens, "
    line += f"{number(header.answer_tokens)} of them trained on ({percent(header.answer_tokens, header.tokens)})"
    lengths: list[Sequence[Cell]] = [
        (item.title, item.mean, *item.percentiles.values(), item.maximum) for item in stats.histograms if item.count
    ]
    names = next((list(item.percentiles) for item in stats.histograms if item.count), [])
    parts = [
        _flow(stats.flow),
        table("lengths", ("", "mean", *names, "longest"), lengths),
        _shares("languages", stats.languages, unit),
        _shares("models", stats.models, unit),
        _counts("other keys", [(key.name, key.count) for key in stats.turn_keys], "messages"),
        _counts("repairs", [(edit.name, edit.count) for edit in stats.edits], "times"),
    ]
    return _block(f"<p><b>{escape(header.path)}</b> {line}</p>{_grid(parts)}")


@_html_of.register
def _comparison(comparison: Comparison) -> str:
    """Show a comparison: the records that only one set keeps, and the totals."""
    parts = []
    for side, names in ((comparison.only_one, SIDES), (comparison.only_other, SIDES[::-1])):
        rows = [(rule.rule, rule.count, ", ".join(rule.examples)) for rule in side.rules]
        parts.append(
            f"<div><p>{escape(describe_side(side, *names))}</p>{table('', ('rule', 'records', 'such as'), rows)}</div>"
        )
    figures = [(pair.name, pair.first, pair.second, pair.change) for pair in total_figures(comparison)]
    parts.append(table("numbers", ("", "first", "second", "change"), figures))
    named = f"first: <b>{escape(comparison.one.header.path)}</b>, second: <b>{escape(comparison.other.header.path)}</b>"
    return _block(f"<p>{named}; {escape(describe_matching(comparison))}</p>{_grid(parts)}")


@_html_of.register
def _result(result: CleanResult) -> str:
    """Show the result of `clean`: paths, rejected records, repairs and warnings."""
    counts = result.manifest.counts
    share = percent(counts.kept, counts.read)
    line = f"{number(counts.kept)} of {number(counts.read)} records kept ({share}), "
    line += f"{number(counts.tokens)} tokens"
    warnings = "".join(f"<p>warning: {escape(warning)}</p>" for warning in result.warnings)
    repairs = _counts("repairs", [(edit.name, edit.count) for edit in edits(result.manifest)], "times")
    written = ", ".join(escape(path) for path in (result.address or result.output, result.file) if path is not None)
    return _block(f"<p><b>{written}</b> {line}</p>{warnings}{_grid([_flow(flow(result.manifest)), repairs])}")


@_html_of.register
def _set(curated: CuratedSet) -> str:
    """Show a summary of a set from its manifest."""
    with translate_errors(curated):
        counts = curated.manifest.counts
        line = f"recipe {escape(curated.manifest.recipe_name)}, {number(counts.kept)} of {number(counts.read)} "
        line += f"records kept, {number(counts.pieces)} {plural(counts.pieces, 'piece')}, "
        line += f"{number(counts.tokens)} tokens"
    return _block(f"<p><b>{escape(curated.path)}</b> {line}</p>")


@_html_of.register
def _selection(selection: Selection) -> str:
    """Show the first conversations of a selection."""
    shown = "".join(map(conversation.render_conversation, islice(selection, SHOWN)))
    more = len(selection) - SHOWN
    note = f'<p class="note">{number(more)} more</p>' if more > 0 else ""
    return _block(f"<p>{selection.describe_size()}</p>{shown}{note}")


@_html_of.register
def _conversations(found: Conversations) -> str:
    """Show the first conversations of a set or a file."""
    chats = list(islice(found, SHOWN + 1))
    views = [ConversationView(chat.source_id or "no id", "", 0, tuple(chat.messages)) for chat in chats[:SHOWN]]
    shown = "".join(map(conversation.render_conversation, views))
    more = '<p class="note">and more</p>' if len(chats) > SHOWN else ""
    return _block(f"<p><b>{escape(found.path)}</b></p>{shown}{more}")


@_html_of.register
def _conversation(view: ConversationView) -> str:
    """Show a conversation."""
    return _block(conversation.render_conversation(view))


@_html_of.register
def _explanation(explanation: Explanation) -> str:
    return _terminal(render_explanation(explanation))


@_html_of.register
def _doctor(report: Doctor) -> str:
    return _terminal(render_doctor(report))


def _terminal(renderable: RenderableType) -> str:
    """Show a terminal report as text."""
    from rich.console import Console

    file = io.StringIO()
    out = Console(file=file, width=WIDTH, color_system=None, force_jupyter=False, force_terminal=False, highlight=False)
    out.print(renderable, markup=False, emoji=False)
    return _block(f"<pre>{escape(file.getvalue())}</pre>")


def _block(body: str) -> str:
    return f'{STYLE}<div class="curate">{body}</div>'


def _grid(parts: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(part for part in parts if part)}</div>'


def _flow(flow: Flow) -> str:
    rows = [
        (step.rule, step.first, step.first / flow.read, "" if step.alone is None else step.alone)
        for step in flow.steps
        if flow.read
    ]
    return table("rejected by", ("rule", "records", "share", "alone"), rows, {"share": percent})


def _shares(title: str, shares: Sequence[Share], unit: str) -> str:
    total = sum(share.pieces for share in shares) or 1
    rows = [(share.name, share.pieces, share.pieces / total, share.tokens) for share in shares[:NAMES]]
    return table(title, ("name", unit, "share", "tokens"), rows, {"share": percent})


def _counts(title: str, counts: Sequence[tuple[str, int]], unit: str) -> str:
    return table(title, ("name", unit), counts[:NAMES])
