"""How numbers look: a run's summary, a set's statistics and a record's story, as rich renderables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from curate import tables
from curate.explain import Edit, Explanation, Rejection, Story
from curate.report_stats import flow_table
from curate.stats import edits, flow
from curate.terminal import one_line


def stats_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `curate stats --json` prints, from the dataclasses themselves."""
    from curate.stats import Stats

    return _schema(Stats, "curate stats --json")


def comparison_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `curate stats --compare --json` prints."""
    from curate.compare import Comparison

    return _schema(Comparison, "curate stats --compare --json")


def _schema(described: type, title: str) -> dict[str, Any]:
    import msgspec

    schema = msgspec.json.schema(described)
    for definition in schema["$defs"].values():
        definition["additionalProperties"] = False
        definition["description"] = " ".join(definition["description"].split())
    own = schema["$defs"].pop(described.__name__)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return {**head, **{key: value for key, value in own.items() if key != "title"}, "$defs": schema["$defs"]}


def summary(manifest: Mapping[str, Any], *outputs: str) -> RenderableType:
    """Render the end of a run: from records read to conversations kept, then pieces, repairs and time."""
    counts = manifest["counts"]
    facts = tables.facts()
    tables.add(facts, "written", tables.text(", ".join(outputs), "bold"))
    tables.add(facts, "pieces", tables.number(counts["pieces"]))
    tables.add(facts, "tokens", f"{tables.number(counts['tokens'])} ({_counted_in(manifest)})")
    if counts.get("eval"):
        tables.add(
            facts,
            "held out",
            f"{tables.number(counts['eval'])} of {tables.number(counts['kept'])} conversations, for eval",
        )
    exchanges = counts["rejected_exchanges"]
    if exchanges:
        by_rule = _counted(sorted(counts.get("exchanges", {}).items(), key=lambda item: (-item[1], item[0])))
        text = f"{tables.number(exchanges)} {tables.plural(exchanges, 'exchange')} lost from kept records"
        tables.add(facts, "lost", f"{text}: {by_rule}" if by_rule else text)
    repairs = _counted([(item.name, item.count) for item in edits(manifest)])
    if repairs:
        tables.add(facts, "repairs", repairs)
    run = manifest.get("run")
    if run:
        workers = f"{run['workers']} {tables.plural(run['workers'], 'worker')}"
        tables.add(facts, "time", f"{run['seconds']:,.1f} s, {run['mb_per_s']:,.1f} MB/s, {workers}")
    return Group(flow_table(flow(manifest), bars=False), Text(), facts)


def _counted(items: Sequence[tuple[str, int]]) -> str:
    return " · ".join(f"{tables.line(name)} {tables.number(count)}" for name, count in items)


def explanation_page(found: Explanation) -> RenderableType:
    """Render the way of each record that an id names."""
    parts: list[RenderableType] = []
    if found.matches > 1:
        more = f", the first {len(found.records)} here" if found.matches > len(found.records) else ""
        parts += [Text(f"{found.matches} records are named {tables.line(found.query)}{more}"), Text()]
    for story in found.records:
        parts += [_story(story), Text()]
    return Group(*parts[:-1])


def name_list(names: Mapping[str, str], heading: tuple[str, str]) -> RenderableType:
    """Render names with one line each."""
    table = tables.plain()
    table.add_column(heading[0], no_wrap=True, style="bold")
    table.add_column(heading[1])
    for name, text in names.items():
        table.add_row(tables.text(name), tables.text(text))
    return table


def format_list(formats: Sequence[Any]) -> RenderableType:
    """Render the formats (`formats.Format`): whether each is read and written, and what it holds."""
    table = tables.plain()
    table.add_column("format", no_wrap=True, style="bold")
    table.add_column("read")
    table.add_column("written")
    table.add_column("what it holds", ratio=1)
    for one in formats:
        table.add_row(
            tables.text(one.name), *("yes" if can else "" for can in (one.reads, one.writes)), tables.text(one.summary)
        )
    return table


def filter_list(rules: Sequence[Any], on: Mapping[str, object]) -> RenderableType:
    """Render registered filters (`registry.Rule`): whether the default recipe has them on, settings, purpose."""
    table = tables.plain()
    table.add_column("filter", no_wrap=True, style="bold")
    table.add_column("default")
    table.add_column("settings", max_width=34)
    table.add_column("what it does", ratio=1)
    for rule in rules:
        table.add_row(
            tables.text(rule.name), "on" if rule.name in on else "off", _settings(rule), tables.text(rule.summary)
        )
    return table


def filter_page(rule: Any, on: bool) -> RenderableType:
    """Render one filter's documentation in full."""
    facts = tables.facts()
    tables.add(facts, "filter", tables.text(rule.name, "bold"))
    tables.add(facts, "default", "on" if on else "off")
    tables.add(facts, "settings", _settings(rule))
    return Group(facts, Text(), tables.text(rule.doc))


def _settings(rule: Any) -> Text:
    return tables.text(", ".join(f"{name} = {_toml(value)}" for name, value in rule.settings.items()))


def _toml(value: object) -> str:
    """Write a setting as a recipe does; JSON's values are TOML's here."""
    return json.dumps(value, ensure_ascii=False)


def _story(story: Story) -> RenderableType:
    facts = tables.facts()
    tables.add(facts, "record", tables.text(f"{story.source_file}:{story.source_index}", "bold"))
    tables.add(facts, "id", tables.text(story.source_id) if story.source_id is not None else "none of its own")
    tables.add(facts, "came out", Text("kept", "bold green") if story.kept else Text("rejected", "bold red"))
    for rejection in story.rejections:
        tables.add(facts, "lost" if rejection.scope == "exchange" else "why", _rejection(rejection))
    for edit in story.edits:
        tables.add(facts, "repair", _edit(edit))
    for piece in story.pieces:
        sizes = f"{piece.split}, {piece.turns} messages, {tables.number(piece.tokens)} tokens"
        sizes += f" ({tables.number(piece.answer_tokens)} in answers)"
        tables.add(facts, "piece", Text.assemble(tables.text(piece.id, "bold"), f"  {sizes}"))
    if story.twins:
        tables.add(facts, "twins", tables.text("rejected as duplicates of it: " + ", ".join(story.twins)))
    if story.record is not None:
        tables.add(facts, "as it came", tables.text(one_line(story.record, 400), "dim"))
    return facts


def _rejection(rejection: Rejection) -> Text:
    text = Text.assemble((tables.line(rejection.rule), "bold"), f": {tables.line(rejection.reason)}")
    if rejection.messages:
        first, last = rejection.messages
        text.append(f" (message {first})" if first == last else f" (messages {first} to {last})")
    if rejection.twin:
        text.append(f"\ntwin kept: {tables.line(rejection.twin)}")
    if rejection.evidence:
        text.append(f"\n{tables.line(rejection.evidence)}", "dim")
    return text


def _edit(edit: Edit) -> Text:
    where = "the record" if edit.message is None else f"message {edit.message}"
    times = f", {edit.count} times" if edit.count != 1 else ""
    text = Text.assemble((tables.line(edit.rule), "bold"), f" in {where}{times}")
    text.append(f"\n- {tables.line(edit.before)}", "red")
    text.append(f"\n+ {tables.line(edit.after)}", "green")
    return text


def _counted_in(manifest: Mapping[str, Any]) -> str:
    tokenizer = manifest["tokenizer"]["name"]
    template, window = tables.line(manifest["template"]), tables.number(manifest["window"])
    return f"{tables.line(tokenizer)}, template {template}, window {window}"
