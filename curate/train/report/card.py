"""The model card: README.md beside the weights, from what the run wrote down: base, data, losses, settings."""

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
LOSSES = 10  # rows of the training loss


def write(folder: Path, history: Records, serving: Serving, note: Note) -> None:
    """Write the card into a model's folder."""
    (folder / CARD).write_text(text(history, serving, note), "utf-8", "backslashreplace")


def text(history: Records, serving: Serving, note: Note) -> str:
    """Return the card's markdown."""
    parts = [
        _front(note),
        f"# {_plain(history.name)}",
        _what(note),
        _section("How it is asked", _asked(serving)),
        _section("Data", _facts(history.facts.get("data"))),
        _section("Held-out loss", _losses(history)),
        _section("Training loss", _course(history)),
        _section("An answer", _answer(history)),
        _section("Settings", _fenced(history.config, "toml")),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(note: Note) -> str:
    """Return the YAML that the Hub reads; a folder of this machine is no name there, and stays out of it."""
    base = [f"base_model: {json.dumps(note.base)}"] if HUB_NAME.fullmatch(note.base) else []
    library = "peft" if note.kind == "adapter" else "transformers"
    return "\n".join(
        ["---", *base, f"library_name: {library}", "pipeline_tag: text-generation", "tags: [curate]", "---"]
    )


def _what(note: Note) -> str:
    quantised = ", which was held in 4 bits (NF4) meanwhile" if note.quantised else ""
    kind = "An adapter" if note.kind == "adapter" else "A model"
    return (
        f"{kind} trained by `curate finetune` {note.version}, method `{note.method}`, from {_code(note.base)}"
        f"{quantised}. The base's licence holds for it."
    )


def _asked(serving: Serving) -> str:
    fitted = serving.fitted
    stops = ", ".join(_code(stop) for stop in serving.stops)
    said = f"An answer ends with {stops}."
    if fitted is None:
        return f"By the chat template of its own, in `tokenizer_config.json`. {said}"
    info = serving.tokenizer.info
    shown = prompt_text(
        fitted,
        [Message("user", "Hello!"), Message("assistant", "Hi!"), Message("user", "How are you?")],
        bos=info.bos_token or "",
        eos=info.eos_token,
    )
    where = f"Template `{serving.template}`, which `tokenizer_config.json` holds as a chat template:"
    return f"{where}\n\n{_fenced(shown)}\n\n{said}"


def _facts(facts: object) -> str:
    if not isinstance(facts, Mapping):
        return ""
    return _table(("", ""), [(_plain(str(name).replace("_", " ")), _value(value)) for name, value in facts.items()])


def _losses(history: Records) -> str:
    base, tuned = history.evaluation(records.BASE), history.evaluation(records.TUNED)
    if tuned is None:
        return ""
    slices = [("all", _row(base, "overall"), _row(tuned, "overall"))]
    before = {one.get("name"): one for one in (base or {}).get("by_depth") or []}
    slices += [
        (f"answer {one.get('name')}", before.get(one.get("name"), {}), one) for one in tuned.get("by_depth") or []
    ]
    rows = [(name, _loss(old), _loss(new), number(new.get("tokens", 0))) for name, old, new in slices]
    return _table(("", "base", "tuned", "tokens"), rows)


def _course(history: Records) -> str:
    """Return the loss over the run in a few rows, each the mean since the row before."""
    curve = records.thinned(records.points(history.metrics, "loss"), LOSSES)
    return _table(("up to step", "loss"), [(number(step), loss(value)) for step, value in curve]) if curve else ""


def _row(evaluation: Row | None, key: str) -> Row:
    found = (evaluation or {}).get(key)
    return found if isinstance(found, dict) else {}


def _loss(row: Row) -> str:
    return loss(row["loss"]) if isinstance(row.get("loss"), int | float) else ""


def _answer(history: Records) -> str:
    """Return the last answer to a prompt, the first of those that were asked."""
    for _, row in history.answers():
        asked = "\n\n".join(str(one.get("content")) for one in row.get("messages") or [] if isinstance(one, dict))
        said = str(row.get("answer", ""))
        return f"Asked:\n\n{_fenced(_cut(asked))}\n\nIt said:\n\n{_fenced(_cut(said))}"
    return ""


def _cut(said: str) -> str:
    return said if len(said) <= LONG else f"{said[:LONG]}…"


# ---- markdown that no text of the data can break out of


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _plain(value: str) -> str:
    """Return a text on one line, with what markdown or HTML would read taken literally."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!~&$])", r"\\\1", one_line(value, 200))


def _code(value: str, table: bool = False) -> str:
    """Return a text as code, between more backticks than it holds; in a table a bar would end the cell."""
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


def _fenced(value: str, language: str = "") -> str:
    if not value:
        return ""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", value)), default=0))
    return f"{ticks}{language}\n{safe(value).rstrip()}\n{ticks}"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
