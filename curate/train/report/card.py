"""The model card, README.md in the model's folder: base, data, losses and settings of its run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from curate.display.figures import loss, number
from curate.display.text import one_line, safe
from curate.model.serving import Note, Serving
from curate.schemas.conversation import Message
from curate.schemas.prompts import text as prompt_text
from curate.train.run import records
from curate.train.run.records import Records, Row

CARD = "README.md"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
LONG = 600  # characters of an answer
LOSSES = 10  # rows of the table of the training loss, at most


def write(folder: Path, history: Records, serving: Serving, note: Note) -> None:
    """Write the card of a model or adapter into its folder; raises OSError."""
    (folder / CARD).write_text(text(history, serving, note), "utf-8", "backslashreplace")


def text(history: Records, serving: Serving, note: Note) -> str:
    """Return the card's markdown."""
    parts = [
        _front(note),
        f"# {_escape(history.name)}",
        _introduction(note, history.facts.get("objective")),
        _section("Prompt format", _prompt_format(serving)),
        _section("Data", _facts(history.facts.get("data"))),
        _section("Held-out loss", _losses(history)),
        _section("Training loss", _training_loss(history)),
        _section("Sample answer", _answer(history)),
        _section("Settings", _fence(history.config, "toml")),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(note: Note) -> str:
    """Return the YAML that the Hub reads; `base_model` is left out for a local folder."""
    base = [f"base_model: {json.dumps(note.base)}"] if HUB_NAME.fullmatch(note.base) else []
    library = "peft" if note.kind == "adapter" else "transformers"
    return "\n".join(
        ["---", *base, f"library_name: {library}", "pipeline_tag: text-generation", "tags: [curate]", "---"]
    )


def _introduction(note: Note, objective: object) -> str:
    quantised = ", which was quantised to 4 bits (NF4) during training" if note.quantised else ""
    pairs = " on preference pairs (DPO)" if objective == "dpo" else ""
    kind = "An adapter" if note.kind == "adapter" else "A model"
    return (
        f"{kind} trained by `curate finetune` {note.version}, method `{note.method}`{pairs}, from {_code(note.base)}"
        f"{quantised}. The licence of the base model applies."
    )


def _prompt_format(serving: Serving) -> str:
    fitted = serving.fitted
    stops = ", ".join(_code(stop) for stop in serving.stops)
    ending = f"An answer ends with {stops}."
    if fitted is None:
        return f"Use the chat template in `tokenizer_config.json`. {ending}"
    info = serving.tokenizer.info
    shown = prompt_text(
        fitted,
        [Message("user", "Hello!"), Message("assistant", "Hi!"), Message("user", "How are you?")],
        bos=info.bos_token or "",
        eos=info.eos_token,
    )
    where = f"Template `{serving.template}`, stored in `tokenizer_config.json` as the chat template:"
    return f"{where}\n\n{_fence(shown)}\n\n{ending}"


def _facts(facts: object) -> str:
    if not isinstance(facts, Mapping):
        return ""
    return _table(("", ""), [(_escape(records.label(str(name))), _value(value)) for name, value in facts.items()])


def _losses(history: Records) -> str:
    base, tuned = history.evaluation(records.BASE), history.evaluation(records.TUNED)
    if tuned is None:
        return ""
    slices = [("all", _row(base, "overall"), _row(tuned, "overall"))]
    before = {row.get("name"): row for row in (base or {}).get("by_depth") or []}
    slices += [
        (f"answer {row.get('name')}", before.get(row.get("name"), {}), row) for row in tuned.get("by_depth") or []
    ]
    rows = [(name, _loss(old), _loss(new), number(new.get("tokens", 0))) for name, old, new in slices]
    return _table(("", "base", "tuned", "tokens"), rows)


def _training_loss(history: Records) -> str:
    """Return the training loss in a few rows, each the mean since the previous row."""
    curve = records.downsample(records.points(history.metrics, "loss"), LOSSES)
    return _table(("up to step", "loss"), [(number(step), loss(value)) for step, value in curve]) if curve else ""


def _row(evaluation: Row | None, key: str) -> Row:
    row = (evaluation or {}).get(key)
    return row if isinstance(row, dict) else {}


def _loss(row: Row) -> str:
    return loss(row["loss"]) if isinstance(row.get("loss"), int | float) else ""


def _answer(history: Records) -> str:
    """Return the tuned model's answer to the first prompt."""
    for _, row in history.answers():
        messages = [message for message in row.get("messages") or [] if isinstance(message, dict)]
        prompt = "\n\n".join(str(message.get("content")) for message in messages)
        answer = str(row.get("answer", ""))
        return f"Prompt:\n\n{_fence(_cut(prompt))}\n\nAnswer:\n\n{_fence(_cut(answer))}"
    return ""


def _cut(answer: str) -> str:
    return answer if len(answer) <= LONG else f"{answer[:LONG]}…"


# ---- Markdown, with text escaped


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _escape(value: str) -> str:
    """Return a text on one line, with the characters escaped that mean something in markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!~&$])", r"\\\1", one_line(value, 200))


def _code(value: str, table: bool = False) -> str:
    """Return a text as code, between more backticks than it has in a row; in a table, bars are escaped."""
    shown = one_line(value, 200)
    shown = shown.replace("|", "\\|") if table else shown
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{ticks} {shown} {ticks}" if len(ticks) > 1 else f"`{shown}`"


def _value(value: object) -> str:
    if isinstance(value, str):
        return _code(value, table=True) if value else ""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else ""
    if isinstance(value, int):
        return number(value)
    return _code(json.dumps(value, ensure_ascii=False, default=str), table=True)


def _fence(value: str, language: str = "") -> str:
    """Return a text as a code block, with a longer fence than any in it."""
    if not value:
        return ""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", value)), default=0))
    return f"{ticks}{language}\n{safe(value).rstrip()}\n{ticks}"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
