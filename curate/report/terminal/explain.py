"""The history of a record in the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from curate.analysis.explanation import Explanation, RecordHistory, Rejection
from curate.display import terminal
from curate.display.figures import number
from curate.display.text import one_line
from curate.schemas.conversation import Edit


def render_explanation(explanation: Explanation) -> RenderableType:
    """Render the history of each record that has this id."""
    parts: list[RenderableType] = []
    if explanation.matches > 1:
        more = f", the first {len(explanation.records)} here" if explanation.matches > len(explanation.records) else ""
        parts += [
            Text(f"{explanation.matches} records have the id {terminal.safe_line(explanation.query)}{more}"),
            Text(),
        ]
    for record in explanation.records:
        parts += [_history(record), Text()]
    if explanation.sets:
        facts = terminal.label_grid()
        for text in explanation.sets:
            terminal.add_row(facts, "set made by", terminal.safe_text(text))
        return Group(*parts, facts)
    return Group(*parts[:-1])


def _history(history: RecordHistory) -> RenderableType:
    facts = terminal.label_grid()
    branch = f", branch {history.branch}" if history.branch else ""
    place = f"{history.source_file}:{history.source_index}{branch}"
    terminal.add_row(facts, "record", terminal.safe_text(place, "bold"))
    terminal.add_row(
        facts, "id", terminal.safe_text(history.source_id) if history.source_id is not None else "none in the dump"
    )
    terminal.add_row(facts, "outcome", Text("kept", "bold green") if history.kept else Text("rejected", "bold red"))
    for rejection in history.rejections:
        terminal.add_row(facts, "removed" if rejection.scope == "exchange" else "reason", _rejection(rejection))
    for edit in history.edits:
        terminal.add_row(facts, "repair", _edit(edit))
    for piece in history.pieces:
        sizes = f"{piece.split}, {piece.turns} messages, {number(piece.tokens)} tokens"
        sizes += f" ({number(piece.answer_tokens)} in answers)"
        terminal.add_row(facts, "piece", Text.assemble(terminal.safe_text(piece.id, "bold"), f"  {sizes}"))
    if history.twins:
        terminal.add_row(facts, "duplicates", terminal.safe_text("rejected: " + ", ".join(history.twins)))
    if history.record is not None:
        terminal.add_row(facts, "original", terminal.safe_text(one_line(history.record, 400), "dim"))
    return facts


def _rejection(rejection: Rejection) -> Text:
    text = Text.assemble((terminal.safe_line(rejection.rule), "bold"), f": {terminal.safe_line(rejection.reason)}")
    return add_details(text, rejection)


def add_details(text: Text, rejection: Rejection) -> Text:
    """Append the messages, the kept twin and the evidence of a rejection; return the text."""
    if rejection.messages:
        first, last = rejection.messages
        text.append(f" (message {first})" if first == last else f" (messages {first} to {last})")
    if rejection.twin:
        text.append(f"\nkept twin: {terminal.safe_line(rejection.twin)}")
    if rejection.evidence:
        text.append(f"\n{terminal.safe_line(rejection.evidence)}", "dim")
    return text


def _edit(edit: Edit) -> Text:
    where = "the record" if edit.message is None else f"message {edit.message}"
    times = f", {edit.count} times" if edit.count != 1 else ""
    text = Text.assemble((terminal.safe_line(edit.rule), "bold"), f" in {where}{times}")
    text.append(f"\n- {terminal.safe_line(edit.before)}", "red")
    text.append(f"\n+ {terminal.safe_line(edit.after)}", "green")
    return text
