"""`curate.identity`: questions on what the model is and who made it, answered with a name of one's own.

As in FastChat's `hardcoded_questions.py`, each question of a group is asked with each of its answers. The texts are
those of `identity.toml`, or of a template of the user's. `curate finetune --identity` trains on the file.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from curate import files
from curate.errors import InputError, RecipeError, error_message

BUILT_IN = "identity.toml"
PLACEHOLDER = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class IdentityResult:
    """The file that was written, how many conversations it has, and the questions that were left out."""

    target: Path
    conversations: int
    left_out: Sequence[str]  # they have the name or the organisation, as if it were another one


@dataclass(frozen=True)
class _Group:
    """Questions of which each has any of the answers; `where` names the group in errors."""

    id: str
    questions: Sequence[str]
    answers: Sequence[str]
    where: str


def identity(
    name: str, organisation: str = "", *, template: str | Path | None = None, target: str | Path = "identity.jsonl"
) -> IdentityResult:
    """Write questions on the model's identity with their answers, as JSON lines, for `finetune(identity=…)`.

    `template` is a TOML file in the form of the built-in one. Raises RecipeError for an invalid template, and if it
    needs an organisation and none is given.
    """
    values = {"name": name.strip(), "organisation": organisation.strip()}
    if not values["name"]:
        raise RecipeError("the model's name is empty; give it one: --name Heron")
    groups = _read(template)
    own = [value.casefold() for value in values.values() if value]
    # "Are you Claude?" has the answer no, but not where that is the model's name
    left_out = {question for group in groups for question in group.questions if any(_names(question, own))}
    lines = [
        json.dumps(_record(f"identity-{group.id}-{number}", *texts), ensure_ascii=False) + "\n"
        for group in groups
        for number, texts in enumerate(_pairs(group, left_out, values))
    ]
    if not lines:
        raise RecipeError(f"{_where(template)} has no question; add a group with questions and answers")
    files.write_text(Path(target), "".join(lines))
    return IdentityResult(Path(target), len(lines), sorted(left_out))


def _names(question: str, own: Sequence[str]) -> Iterator[bool]:
    text = question.casefold()
    # letters of other scripts follow a name without a space
    return (re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", text) is not None for name in own)


def _record(id: str, question: str, answer: str) -> dict[str, Any]:
    return {"id": id, "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _pairs(group: _Group, left_out: set[str], values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each question that is not left out with each answer, filled in."""
    for question in group.questions:
        if question not in left_out:
            for answer in group.answers:
                yield _fill(question, values, group.where), _fill(answer, values, group.where)


def _fill(text: str, values: Mapping[str, str], where: str) -> str:
    """Return a text with its placeholders filled in; raises RecipeError for one that has no value."""
    for name in PLACEHOLDER.findall(text):
        if name not in values:
            raise RecipeError(f"{where}: {{{name}}} in {text!r} is not known; write {{name}} or {{organisation}}")
        if not values[name]:
            raise RecipeError(f"{where} says {{{name}}}; give it: --{name} 'Riverside Lab'")
    return PLACEHOLDER.sub(lambda match: values[match[1]], text)


def _where(template: str | Path | None) -> str:
    return f"template {str(template)!r}" if template is not None else "the built-in template"


def _read(template: str | Path | None) -> list[_Group]:
    """Read the groups of a template; raises InputError if it cannot be read, RecipeError if it is invalid."""
    where = _where(template)
    try:
        source = resources.files("curate.api") / BUILT_IN if template is None else Path(template)
        values = tomllib.loads(source.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {where}: {error_message(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where} is not TOML: {error}") from None
    groups = values.pop("group", None)
    if values or not isinstance(groups, list):
        wrong = f"{next(iter(values))!r} is not a key" if values else "it has no [[group]]"
        raise RecipeError(f"{where}: {wrong}; give [[group]] tables with questions and answers")
    return [_group(group, number, where) for number, group in enumerate(groups, start=1)]


def _group(value: Mapping[str, Any], number: int, where: str) -> _Group:
    """Return one group; raises RecipeError unless it has questions and answers, and nothing else but an id."""
    where = f"{where}, group {number}"
    if wrong := next((key for key in value if key not in ("id", "questions", "answers")), None):
        raise RecipeError(f"{where}: {wrong!r} is not a key; allowed are id, questions, answers")
    for key in ("questions", "answers"):
        texts = value.get(key)
        if not isinstance(texts, list) or not texts:
            raise RecipeError(f"{where}: {key} = {texts!r} is not allowed; give a list of texts")
        if bad := [text for text in texts if not isinstance(text, str) or not text.strip()]:
            raise RecipeError(f"{where}: {bad[0]!r} in {key} is not allowed; give texts, none empty")
    return _Group(str(value.get("id", number)), value["questions"], value["answers"], where)
