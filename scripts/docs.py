"""Write the generated parts of the documentation: help texts, tables from the code, recorded runs.

    python scripts/docs.py            bring README.md and docs/ up to date
    python scripts/docs.py --check    exit 1 and name the parts that are out of date

A part is between `<!-- generated: NAME -->` and `<!-- end -->`. NAME is a key of `PARTS`, followed by that part's
argument (`help clean`, `run stats`). Example runs are executed on the example dump, in a scratch folder.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 80  # columns of help texts and recorded runs
DUMP = "examples/sharegpt_dump.json"
PART = re.compile(r"(?P<head><!-- generated: (?P<name>[^\n]+?) -->\n)(?P<body>.*?)(?P<end><!-- end -->)", re.S)
CLOCK = re.compile(r"^time .*$", re.M)  # differs between runs

NO_COMMENT = {
    "method.peft": 'for `kind = "peft"`: a `peft_type`, such as LOHA, and the arguments of its class',
    "name": "The name in the set's manifest and in `curate stats`; by default the file's name.",
    "summary": "One line for `curate recipes`.",
    "base": "The recipe that this one starts from: a built-in name, or a file in the same folder.",
    "filters.files": "Python files with your own filters, relative to the recipe's folder; see [filters](filters.md).",
    "eval.seed": "another text holds out other conversations",
}


def pages() -> list[Path]:
    """Return the pages that may contain generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def renew(text: str) -> tuple[str, list[str]]:
    """Return a page with its parts regenerated, and the names of those that were out of date."""
    stale: list[str] = []

    def regenerate(match: re.Match[str]) -> str:
        body = make(match["name"])
        if CLOCK.sub("", body) == CLOCK.sub("", match["body"]):
            return match[0]
        stale.append(match["name"])
        return match["head"] + body + match["end"]

    return PART.sub(regenerate, text), stale


@functools.cache
def make(name: str) -> str:
    """Return a part's text, with a newline at its end."""
    kind, _, argument = name.partition(" ")
    if kind not in PARTS:
        raise SystemExit(f"unknown part {name!r}; known: {', '.join(PARTS)}")
    return PARTS[kind](argument).rstrip("\n") + "\n"


# ---- help texts and recorded runs


def command_help(command: str) -> str:
    """Return a command's --help as a text block, wrapped at `WIDTH` columns."""
    return _block(_run_in(ROOT, f"{command} --help"))


def recorded_run(line: str) -> str:
    """Return a command and what it prints; `| head -N` after it truncates the output as in a shell."""
    command, _, pipe = line.partition(" | ")
    lines = 0
    if pipe:
        match = re.fullmatch(r"head -(\d+)", pipe)
        if match is None:
            raise SystemExit(f"a recorded run supports only `| head -N`, not {pipe!r}")
        lines = int(match[1])
    output = _run(command).splitlines()
    return _block("\n".join([f"$ curate {line}", *(output[:lines] if lines else output)]))


@functools.cache
def _scratch() -> tuple[Path, str]:
    """Return a folder with the example dump and its curated set, and what `curate clean` printed."""
    folder = Path(tempfile.mkdtemp(prefix="curate-docs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / DUMP).parent.mkdir()
    shutil.copy(ROOT / DUMP, folder / DUMP)
    (folder / "votes.jsonl").write_text("".join(f"{json.dumps(vote)}\n" for vote in _simulated_votes()))
    return folder, _run_in(folder, f"clean {DUMP}")


def _simulated_votes() -> Iterator[dict[str, Any]]:
    """Yield votes between three models; 100 words more are worth 40 points."""
    chance, ratings = random.Random(1), {"base": 900, "other": 970, "tuned": 1130}
    for _ in range(240):
        models = chance.sample(sorted(ratings), 2)
        words = [chance.randint(20, 200) for _ in models]
        points = [ratings[model] + 0.4 * count for model, count in zip(models, words, strict=True)]
        first = chance.random() < 1 / (1 + 10 ** ((points[1] - points[0]) / 400))
        winner = "tie" if chance.random() < 0.15 else "model_a" if first else "model_b"
        chats = [[_said("user", "Why?"), _said("assistant", "word " * count)] for count in words]
        yield {
            **dict(zip(("model_a", "model_b"), models, strict=True)),
            "winner": winner,
            **dict(zip(("conversation_a", "conversation_b"), chats, strict=True)),
        }


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


@functools.cache
def _run(command: str) -> str:
    folder, clean_output = _scratch()
    return clean_output if command == f"clean {DUMP}" else _run_in(folder, command)


def _run_in(folder: Path, command: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "CURATE_DEBUG")}
    environment |= {"COLUMNS": str(WIDTH), "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "curate", *shlex.split(command)]
    process = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    if process.returncode:
        raise SystemExit(f"curate {command}: exit {process.returncode}: {process.stderr.strip()}")
    return process.stdout


# ---- tables


def filters_table(_: str) -> str:
    """Return the built-in filters with their settings."""
    from curate.pipeline import recipe

    on = recipe.load("vicuna").filters
    rows = [
        (_code(rule.name), "on" if rule.name in on else "off", _settings(rule.settings) or "none", rule.summary)
        for rule in _rules("filter", "corpus", "repair")
    ]
    return _table(("filter", "in `vicuna`", "settings and their defaults", "what it does"), rows)


def signals_table(_: str) -> str:
    """Return the built-in signals with their columns."""
    rows = [
        (_code(rule.name), ", ".join(map(_code, rule.columns)), _settings(rule.settings) or "none", rule.summary)
        for rule in _rules("signal")
    ]
    return _table(("signal", "columns", "settings", "what it measures"), rows)


def _rules(*kinds: Literal["filter", "signal", "repair", "corpus"]) -> list[typing.Any]:
    """Return the rules that curate itself registers, without those of a user's file."""
    from curate.filters import registry

    return [rule for rule in registry.rules(*kinds).values() if rule.function.__module__.startswith("curate.")]


def repairs_table(_: str) -> str:
    """Return the repairs by their names in `edits`."""
    from curate.pipeline.repair_turns import REPAIRS

    return _table(("repair", "what it does"), [(_code(name), text) for name, text in REPAIRS.items()])


def losses_table(_: str) -> str:
    """Return the reasons to reject an exchange, or its record, while turns are put in order."""
    from curate.pipeline.repair_turns import LOSSES

    return _table(("rule", "why"), [(_code(name), text) for name, text in LOSSES.items()])


def problems_table(_: str) -> str:
    """Return the reasons why a record cannot become a conversation."""
    from curate.schemas.formats import PROBLEMS

    return _table(("rule", "why"), [(_code(name), text) for name, text in PROBLEMS.items()])


def formats_table(_: str) -> str:
    """Return the formats, and how each is written."""
    from curate.schemas.formats import FORMATS

    def written_as(form: typing.Any) -> str:
        known = {"parquet": "a Parquet file", "text": "text", "hf": "a folder", "csv": "a CSV file"}
        known["rendered"] = "JSON lines, an array, or a Parquet file"
        array = "one JSON array" if form.array else "JSON lines, or an array"
        return known.get(form.name, array) if form.writes else "no"

    rows = [
        (_code(entry.name), "yes" if entry.reads else "no", written_as(entry), entry.summary)
        for entry in FORMATS.values()
    ]
    return _table(("format", "read", "written as", "contents"), rows)


def templates_table(_: str) -> str:
    """Return the prompt templates."""
    from curate.schemas.chat_templates import CHAT_TEMPLATES
    from curate.schemas.prompts import TEMPLATES

    templates: list[typing.Any] = [*TEMPLATES.values(), *CHAT_TEMPLATES.values()]
    rows = [
        (
            _code(template.name),
            _code(template.summary.partition(": ")[2]),
            ", ".join(map(_code, template.needs)) or "none",
        )
        for template in templates
    ]
    return _table(("template", "a conversation in it", "control tokens that the tokenizer must have"), rows)


def recipes_table(_: str) -> str:
    """Return the filters that each built-in recipe turns on."""
    from curate.pipeline import recipe

    loaded = {name: recipe.load(name).filters for name in recipe.RECIPES.summaries()}
    rows = []
    for rule in _rules("filter", "corpus"):
        cells = [
            _settings(_changed(filters[rule.name], rule.settings)) or "on" if rule.name in filters else "off"
            for filters in loaded.values()
        ]
        rows.append((_code(rule.name), *cells))
    return _table(("filter", *map(_code, loaded)), rows)


def recipe_differences(_: str) -> str:
    """Return the other settings in which the built-in recipes differ."""
    from curate.pipeline import recipe

    loaded = {name: recipe.load(name) for name in recipe.RECIPES.summaries()}
    rows = []
    for section, kind in recipe.SECTIONS.items():
        for item in dataclasses.fields(kind):
            values = [_toml(getattr(getattr(settings, section), item.name)) for settings in loaded.values()]
            if len(set(values)) > 1:
                rows.append((_code(f"{section}.{item.name}"), *map(_code, values)))
    return _table(("setting", *map(_code, loaded)), rows)


def recipe_keys(_: str) -> str:
    """Return every key of a recipe, its default, and its comment in `vicuna.toml`."""
    from curate.pipeline import recipe

    comments = _comments(recipe.RECIPES.source("vicuna"))
    rows = [(_code(key), "", NO_COMMENT[key]) for key in ("name", "summary", "base", "filters.files")]
    for section, kind in recipe.SECTIONS.items():
        hints = typing.get_type_hints(kind)
        for item in dataclasses.fields(kind):
            key = f"{section}.{item.name}"
            rows.append((_code(key), _code(_toml(item.default)), comments[key] + _choices(hints[item.name])))
    return _table(("key", "default", "meaning"), rows)


def presets_table(_: str) -> str:
    """Return the presets."""
    from curate.train import config

    return _table(
        ("preset", "what it sets"), [(_code(name), text) for name, text in config.PRESETS.summaries().items()]
    )


def preset_differences(_: str) -> str:
    """Return the settings in which presets differ from each other."""
    from curate.train import config

    loaded = {name: config.load(name) for name in config.PRESETS.summaries()}
    rows = []
    for section, kind in config.SECTIONS.items():
        for item in dataclasses.fields(kind):
            values = [_toml(getattr(getattr(settings, section), item.name)) for settings in loaded.values()]
            if len(set(values)) > 1:
                rows.append((_code(f"{section}.{item.name}"), *map(_code, values)))
    return _table(("setting", *map(_code, loaded)), rows)


def preset_keys(_: str) -> str:
    """Return every key of a preset, its default, and its comment in `default.toml`."""
    from curate.train import config

    comments = _comments(config.PRESETS.source(config.DEFAULT))
    default = config.load(config.DEFAULT)
    rows = [
        (_code(f"{section}.{item.name}"), _code(_toml(getattr(getattr(default, section), item.name))))
        for section, kind in config.SECTIONS.items()
        for item in dataclasses.fields(kind)
    ]
    return _table(("key", "default", "meaning"), [(*row, comments[row[0].strip("`")]) for row in rows])


def _comments(toml: str) -> dict[str, str]:
    comments = dict(NO_COMMENT)
    section = ""
    for line in toml.splitlines():
        if header := re.match(r"\[(\w+)\]", line):
            section = header[1]
        elif match := re.match(r"(\w+) = [^#]*#\s*(.+)", line):
            comments[f"{section}.{match[1]}"] = match[2]
    return comments


def _choices(hint: object) -> str:
    if typing.get_origin(hint) is not Literal:
        return ""
    return f" ({' or '.join(_code(_toml(choice)) for choice in typing.get_args(hint))})"


def _changed(settings: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in settings.items() if value != defaults[name]}


def _settings(settings: Mapping[str, object]) -> str:
    return ", ".join(_code(f"{name} = {_toml(value)}") for name, value in settings.items())


def _toml(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def gpu_figures(_: str) -> str:
    """Return what was measured on GPUs, or that nothing was."""
    from benchmarks import gpu_table

    return gpu_table.markdown()


PARTS: dict[str, Callable[[str], str]] = {
    "help": command_help,
    "run": recorded_run,
    "gpu": gpu_figures,
    "filters": filters_table,
    "signals": signals_table,
    "repairs": repairs_table,
    "losses": losses_table,
    "problems": problems_table,
    "formats": formats_table,
    "templates": templates_table,
    "recipes": recipes_table,
    "recipe-differences": recipe_differences,
    "recipe-keys": recipe_keys,
    "presets": presets_table,
    "preset-differences": preset_differences,
    "preset-keys": preset_keys,
}


def schemas() -> dict[Path, str]:
    """Return the JSON Schemas of `stats --json` and `stats --compare --json`, by file."""
    from curate.analysis.comparison import Comparison
    from curate.analysis.stats import Stats

    contents = {
        "stats": json_schema(Stats, "curate stats --json"),
        "comparison": json_schema(Comparison, "curate stats --compare --json"),
    }
    return {
        ROOT / f"schemas/{name}.schema.json": json.dumps(schema, indent=1) + "\n" for name, schema in contents.items()
    }


def json_schema(kind: type, title: str) -> dict[str, Any]:
    """Return the JSON Schema of a dataclass, with the docstrings as descriptions."""
    import msgspec

    schema = msgspec.json.schema(kind)
    for definition in schema["$defs"].values():
        definition["additionalProperties"] = False
        definition["description"] = " ".join(definition["description"].split())
    own = schema["$defs"].pop(kind.__name__)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return {**head, **{key: value for key, value in own.items() if key != "title"}, "$defs": schema["$defs"]}


def _schemas(write: bool) -> int:
    stale = {path: text for path, text in schemas().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        print(path.relative_to(ROOT))
        if write:
            path.write_text(text, "utf-8")
    return len(stale)


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with --check only report what is out of date."""
    if arguments not in ([], ["--check"]):
        print("usage: python scripts/docs.py [--check]", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    stale_count = _schemas(write=not arguments)
    for page in pages():
        text, stale = renew(page.read_text("utf-8"))
        stale_count += len(stale)
        for name in stale:
            print(f"{page.relative_to(ROOT)}: {name}")
        if stale and not arguments:
            page.write_text(text, "utf-8")
    return 1 if stale_count and arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
