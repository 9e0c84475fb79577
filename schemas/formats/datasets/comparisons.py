"""Several answers to one prompt, rated or ranked: the best is read, the worst is kept as the rejected answer.

Sources of the keys and of which score is better: the cards of openbmb/UltraFeedback, berkeley-nest/Nectar (rank 1 is
best), stanfordnlp/SHP (`labels` 1: A is preferred), openai/webgpt_comparisons (`score_0` and `score_1` sum to 0),
nvidia/HelpSteer3 (`overall_preference` from -3 to 3, negative where `response1` is better), nvidia/HelpSteer2
(`preference_strength` in the same way; ratings from 0 to 4) and PKU-Alignment/PKU-SafeRLHF on huggingface.co/datasets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from curate.errors import RecordError
from curate.schemas.conversation import Conversation
from curate.schemas.formats import pairs, preference
from curate.schemas.formats.format import Format
from curate.schemas.reading import turns
from curate.schemas.reading.key_kinds import has_content, is_false, to_number

RULE = "no_preference"
TIED = "tied_answers"  # the repair
ID_KEYS = ("id", "prompt_id", "post_id", "uid")
SCORES = ("overall_score", "score", "rating", "fine-grained_score")  # of an answer in a list, the first that it has
MIN_HELPFULNESS = 2  # of 4: HelpSteer2's guidelines call 0 "not useful" and 1 "borderline unhelpful"
_MARK = re.compile(r"\s*<extra_id_1>(Assistant|User)\n")  # between the turns of HelpSteer2's prompts

Record = Mapping[str, object]


@dataclass(frozen=True)
class _Answer:
    """One answer: its key or its place in the record, its value, its score (higher is better), what else is said."""

    key: str
    value: object
    score: float | None
    model: str | None = None
    flaw: str = ""  # a key that says that it is bad


def _read(record: Record, prompt: object, answers: Sequence[_Answer], used: frozenset[str]) -> Conversation:
    """Read the best answer to the prompt, whose keys are `used`; raises RecordError if none is better than the others.

    The rejected answer has the key of its own in the metadata, if it cannot be read.
    """
    best, worst, tied = _choose(answers)
    conversation = Conversation(None, [])
    id_key = next((key for key in ID_KEYS if record.get(key) not in (None, "")), "id")
    conversation.source_id = turns.read_source_id(conversation, record.get(id_key))
    pairs.add_messages(conversation, "user", prompt)
    pairs.add_messages(conversation, "assistant", best.value)
    keys = {best.key, *(() if worst is None else [worst.key])}
    turns.read_other_keys(conversation, record, used | keys | {id_key})
    conversation.model = best.model or conversation.model
    if tied:
        conversation.edit(TIED, None, f"{tied} answers have the best score, {best.score:g}", "", tied)
    if best.flaw:
        _flag(conversation, best.flaw)
    if worst is not None:
        preference.keep_rejected(conversation, worst.key, worst.value)
    return conversation


def _flag(conversation: Conversation, found: str) -> None:
    """Flag the last message as badly labelled."""
    last = len(conversation.messages) - 1
    conversation.flaw("bad_label", last, f"turn {last} has {found}", found)


def _choose(answers: Sequence[_Answer]) -> tuple[_Answer, _Answer | None, int]:
    """Return the best answer, the worst (None if there is no other), and how many are as good as the best if any are.

    Of equally good ones, the first is taken. Raises RecordError if several have no score, or all the same.
    """
    answers = [answer for answer in answers if has_content(answer.value)]
    if not answers:
        raise RecordError(RULE, "the record has no answer with a text")
    if len(answers) == 1:
        return answers[0], None, 0
    scored = [(answer.score, answer) for answer in answers if answer.score is not None]
    if not scored:
        raise RecordError(RULE, f"none of the {len(answers)} answers has a score", turns.preview(answers[0].value))
    best = max(scored, key=lambda pair: pair[0])
    worst = min(scored, key=lambda pair: pair[0])
    if len(scored) == 1 or best[0] == worst[0]:
        reason = f"the {len(answers)} answers have the same score" if len(scored) > 1 else "only one answer has a score"
        raise RecordError(RULE, f"{reason}: none of them was preferred", turns.preview(best[1].value))
    tied = sum(score == best[0] for score, _ in scored)
    return best[1], worst[1], tied if tied > 1 else 0


# ── answers in a list ─────────────────────────────────────────────────────────────────────────────────────────────


def _recognises_list(record: Record, prompt_key: str, list_key: str, answer_key: str) -> bool:
    answers = record.get(list_key)
    return (
        prompt_key in record
        and isinstance(answers, list)
        and bool(answers)
        and isinstance(answers[0], dict)
        and answer_key in answers[0]
    )


def _parse_list(record: Record, prompt_key: str, list_key: str, answer_key: str) -> Conversation:
    """Read one record; what else its list says of the answers, and the other ones, stay in the metadata."""
    entries = record[list_key]
    assert isinstance(entries, list)
    answers = [
        _Answer(f"{list_key}[{index}]", entry.get(answer_key), _score(entry), _text(entry.get("model")))
        for index, entry in enumerate(entries)
        if isinstance(entry, dict)
    ]
    conversation = _read(record, record[prompt_key], answers, frozenset({prompt_key, list_key}))
    read = {each.value for each in _choose(answers)[:2] if each is not None and isinstance(each.value, str)}
    rest = [_without(entry, answer_key, read) for entry in entries]
    conversation.metadata[list_key] = turns.to_plain_json(rest)
    return conversation


def _without(entry: object, key: str, read: Collection[str]) -> object:
    """Return an entry without an answer that is among the messages."""
    if not isinstance(entry, dict) or not isinstance(entry.get(key), str) or entry[key] not in read:
        return entry
    return {name: value for name, value in entry.items() if name != key}


def _score(entry: Record) -> float | None:
    """Return an answer's score, from its rank if it has one: the lower, the better."""
    if (rank := to_number(entry.get("rank"))) is not None:
        return -rank
    return next((score for key in SCORES if (score := to_number(entry.get(key))) is not None), _mean_rating(entry))


def _mean_rating(entry: Record) -> float | None:
    """Return the mean of the ratings of UltraFeedback's four aspects, where there is no score over all."""
    annotations = entry.get("annotations")
    aspects = annotations.values() if isinstance(annotations, dict) else ()
    ratings = [to_number(aspect.get("Rating")) for aspect in aspects if isinstance(aspect, dict)]
    numbers = [rating for rating in ratings if rating is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


# ── two answers under keys of their own ───────────────────────────────────────────────────────────────────────────


def _answers(record: Record, keys: Sequence[str], scores: Sequence[float | None]) -> list[_Answer]:
    return [_Answer(key, record[key], score) for key, score in zip(keys, scores, strict=True)]


def _has(*keys: str) -> Callable[[Record], bool]:
    """Return whether a record has all the keys."""
    return lambda record: all(key in record for key in keys)


def _opposite(score: float | None) -> float | None:
    return None if score is None else -score


def _parse_shp(record: Record) -> Conversation:
    """Read one record; raises RecordError if its labels prefer neither."""
    label = to_number(record["labels"])
    score = None if label not in (0, 1) else label * 2 - 1
    answers = _answers(record, ("human_ref_A", "human_ref_B"), (score, _opposite(score)))
    return _read(record, record["history"], answers, frozenset({"history"}))


def _parse_webgpt(record: Record) -> Conversation:
    """Read one record; its question is text, or an object that has the text."""
    scores = [to_number(record.get(f"score_{number}")) for number in (0, 1)]
    answers = _answers(record, ("answer_0", "answer_1"), scores)
    question = record["question"]
    if not isinstance(question, dict) or "full_text" not in question:
        return _read(record, question, answers, frozenset({"question"}))
    conversation = _read(record, question["full_text"], answers, frozenset({"question"}))
    if rest := {key: value for key, value in question.items() if key != "full_text"}:
        conversation.metadata["question"] = turns.to_plain_json(rest)
    return conversation


def _parse_safe(record: Record) -> Conversation:
    """Read the answer that was found more helpful; it is flagged if it is not safe."""
    better = to_number(record["better_response_id"])
    answers = []
    for number in (0, 1):
        key, safe_key = f"response_{number}", f"is_response_{number}_safe"
        flaw = f"{safe_key!r}: {record[safe_key]}" if is_false(record.get(safe_key)) else ""
        score = None if better not in (0, 1) else float(better == number)
        answers.append(_Answer(key, record[key], score, _text(record.get(f"{key}_source")), flaw))
    return _read(record, record["prompt"], answers, frozenset({"prompt"}))


_HELPSTEER: tuple[tuple[str, str, str, str], ...] = (  # prompt, two answers, and by how much the second is better
    ("context", "response1", "response2", "overall_preference"),
    ("prompt", "response_1", "response_2", "preference_strength"),
)


def _recognises_helpsteer(record: Record) -> bool:
    if any(key in record for *_, key in _HELPSTEER):
        return any(all(key in record for key in keys) for keys in _HELPSTEER)
    return all(key in record for key in ("prompt", "response", "helpfulness", "verbosity"))


def _parse_helpsteer(record: Record) -> Conversation:
    """Read the preferred of two answers, or the only one, which is flagged if people found it unhelpful."""
    keys = next((keys for keys in _HELPSTEER if all(key in record for key in keys)), None)
    if keys is None:
        conversation = pairs.parse({**record, "prompt": _split_prompt(record["prompt"])})
        helpfulness = to_number(record["helpfulness"])
        if helpfulness is not None and helpfulness < MIN_HELPFULNESS:
            _flag(conversation, f"'helpfulness': {helpfulness:g}")
        return conversation
    prompt, first, second, key = keys
    score = to_number(record[key])
    answers = _answers(record, (first, second), (_opposite(score), score))
    return _read(record, _split_prompt(record[prompt]), answers, frozenset({prompt}))


def _split_prompt(prompt: object) -> object:
    """Return the turns of HelpSteer2's prompts, which have marks between them; other prompts as they are."""
    if not isinstance(prompt, str) or "<extra_id_1>" not in prompt:
        return prompt
    first, *rest = _MARK.split(prompt)
    names = ("User", *rest[::2])
    return [{"role": name.lower(), "content": text} for name, text in zip(names, (first, *rest[1::2]), strict=True)]


def _list_format(name: str, summary: str, keys: tuple[str, str, str], score_key: str) -> Format:
    """Return the format of records whose keys are those of the prompt, of the list and of an answer in it."""
    return Format(
        name,
        summary,
        lambda record: _recognises_list(record, *keys),
        lambda record: _parse_list(record, *keys),
        writes=False,
        requires=keys[:2],
        turn_keys=frozenset({keys[2], score_key}),
        holds="a list of answers",
    )


FORMATS = (
    _list_format(
        "ultrafeedback",
        "UltraFeedback: {instruction, completions: [{response, overall_score, model, …}]}; the best, and the worst.",
        ("instruction", "completions", "response"),
        "overall_score",
    ),
    _list_format(
        "nectar",
        "Nectar: {prompt, answers: [{answer, model, rank}]}; the answers of the best and of the worst rank.",
        ("prompt", "answers", "answer"),
        "rank",
    ),
    Format(
        "shp",
        "SHP: {history, human_ref_A, human_ref_B, labels}; 1 prefers A, 0 prefers B.",
        _has("history", "human_ref_A", "human_ref_B", "labels"),
        _parse_shp,
        writes=False,
        requires=("history", "human_ref_A", "labels"),
        holds="1 or 0",
    ),
    Format(
        "webgpt",
        "WebGPT's comparisons: {question: {full_text}, answer_0, score_0, answer_1, score_1}.",
        _has("question", "answer_0", "answer_1"),
        _parse_webgpt,
        writes=False,
        requires=("question", "answer_0", "answer_1"),
        holds="an answer",
    ),
    Format(
        "helpsteer",
        "HelpSteer: {context, response1, response2, overall_preference}, or {prompt, response, helpfulness, …}.",
        _recognises_helpsteer,
        _parse_helpsteer,
        writes=False,
        requires=("context", "overall_preference"),
        holds="a number",
    ),
    Format(
        "safe_rlhf",
        "PKU-SafeRLHF: {prompt, response_0, response_1, better_response_id, is_response_0_safe, …}.",
        _has("prompt", "response_0", "response_1", "better_response_id"),
        _parse_safe,
        writes=False,
        requires=("prompt", "better_response_id"),
        holds="0 or 1",
    ),
)
