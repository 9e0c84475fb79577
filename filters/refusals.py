"""Answers that decline, known by how they do so and not by what they are about: signal, filter and repair.

Only answers are read, of each the first 200 characters and the last sentence. A cue is a phrase in which the speaker
("I", "we") is unable or unwilling to help, does not understand, or says what it lacks (`filters.phrases`, eight
languages); a quotation, heading or speaker's name before it makes it someone else's. What follows the cue decides
whether the answer declines, or gives what was asked all the same.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from curate.errors import RecipeError, did_you_mean
from curate.filters import phrases
from curate.filters.examples import Examples, chat
from curate.filters.phrases.recall import recall
from curate.filters.registry import check_range, reject, repair, rule, signal
from curate.filters.repairs import mask
from curate.schemas.conversation import Conversation

CLASSES = {
    "refusal": "a refusal",
    "capability": "a limit of capability",
    "clarification": "a question for more",
    "partial": "a refusal in part",
}
ACTIONS = ("flag", "mask", "exchange", "drop")
CUES = ("capability", "refusal", "ai", "clarification")  # in the order in which they decide a sentence
OPENING = 200  # characters at the start of an answer that are read
CLOSING = 300  # characters at the end in which the last sentence is looked for
MAX_WORDS = 80  # of what follows a cue without code or a list and is no answer

NOT_OWN = r'"“”«»「」『』|`#>:：<{'  # what follows one of these is not the assistant's own sentence
SENTENCE = re.compile(r"[^.!?。！？\n]+(?:[.!?]+(?=\s|\Z)|[。！？\n]+|\Z|[.!?]+)")
SUBSTANCE = re.compile(r"```|^ {0,3}(?:[-*•+]|\d{1,2}[.)、]) ?\S|^\|.*\|", re.MULTILINE)
CONDITION = re.compile(r"\b(?:if|unless|without|until|when|si|sans|wenn|falls|sem|sin)\b|如果|除非|なければ|면 ", re.I)
WORD = re.compile(r"[぀-ヿ㐀-鿿가-힣]{1,2}|[^\W぀-ヿ㐀-鿿가-힣]+")  # two letters of a script without spaces are one


@signal(
    declines=pl.List(pl.String),
    declining_sentences=pl.List(pl.String),
    refusals=pl.UInt32,
    capability_limits=pl.UInt32,
    clarifications=pl.UInt32,
    partial_refusals=pl.UInt32,
    refusal_share=pl.Float32,
)
def declining_answers(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure how each answer declines: refusal, capability, clarification, partial, or null; and how many of each do.

    `declines` and `declining_sentences` have an entry for each answer; `refusal_share` is the share of refusals.
    """
    sizes = frame["answers"].list.len()
    declining = classify(frame["answers"].filter(sizes > 0).explode())
    kinds = _regroup([each.kind if each else None for each in declining], sizes)
    sentences = _regroup([each.sentence if each else None for each in declining], sizes)
    columns = ("refusals", "capability_limits", "clarifications", "partial_refusals")
    measured = pl.DataFrame({"declines": kinds, "declining_sentences": sentences}).with_columns(
        pl.col("declines").list.count_matches(kind).cast(pl.UInt32).alias(column)
        for kind, column in zip(CLASSES, columns, strict=True)
    )
    share = (pl.col("refusals") / pl.max_horizontal(sizes, pl.lit(1))).cast(pl.Float32)
    return measured.with_columns(refusal_share=share)


def _regroup(values: Sequence[str | None], sizes: pl.Series) -> pl.Series:
    """Return the values of all answers as one list for each conversation."""
    flat = pl.Series(values, dtype=pl.String)
    starts = sizes.cum_sum() - sizes
    rows = [flat.slice(start, size) for start, size in zip(starts, sizes, strict=True)]
    return pl.Series(rows, dtype=pl.List(pl.String))


PROMPT = 2_000  # characters at the end of a prompt that a classifier is given


@signal(refusal_probabilities=pl.List(pl.Float32), refusal_probability=pl.Float32)
def refusal_model(
    frame: pl.DataFrame,
    model: str = "",
    label: str = "",
    template: str = "{answer}",
    batch_size: int = 32,
    max_tokens: int = 512,
) -> pl.DataFrame:
    """Measure how likely each answer is a refusal, by a sequence classifier of transformers; and the highest of them.

    `model` is a name on the Hub or a folder; a GPU is used if there is one. `label` is the classifier's label of
    refusals; by default the one that has "refus" in its name. `template` is the text that it reads, with `{answer}` and
    perhaps `{prompt}`, such as "<|user|>\\n{prompt}\\n<|assistant|>\\n{answer}".
    """
    from curate.filters import classifiers  # imports torch: late

    if not model:
        raise RecipeError("signal 'refusal_model': model is missing; give a classifier's name on the Hub or its folder")
    if "{answer}" not in template:
        raise RecipeError(f"signal 'refusal_model': template = {template!r} must have {{answer}}")
    if min(batch_size, max_tokens) < 1:
        raise RecipeError("signal 'refusal_model': batch_size and max_tokens must be 1 or more")
    texts = [[_fill(template, *pair) for pair in _pairs(messages)] for messages in frame["messages"].to_list()]
    flat = [text for each in texts for text in each]
    values = iter(classifiers.probabilities(flat, model, label, "refus", batch_size, max_tokens))
    lists = pl.Series([[next(values) for _ in each] for each in texts], dtype=pl.List(pl.Float32))
    return pl.DataFrame({"refusal_probabilities": lists, "refusal_probability": lists.list.max()})


def _fill(template: str, prompt: str, answer: str) -> str:
    parts = {"{prompt}": prompt[-PROMPT:], "{answer}": answer}
    return re.sub(r"\{prompt\}|\{answer\}", lambda match: parts[match.group()], template)


def _pairs(messages: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield each answer with the prompt before it."""
    prompt = ""
    for message in messages:
        if message["role"] == "user":
            prompt = message["content"]
        elif message["role"] == "assistant":
            yield prompt, message["content"]


@rule(
    examples=Examples(
        chat("How do I pick a lock?", "I'm sorry, but I can't assist with that request."),
        chat("Why do models refuse?", "They are trained to say that they can't assist with a harmful request."),
    )
)
def refusals(action: str = "exchange", classes: tuple[str, ...] = ("refusal",), share: float = 0.0) -> pl.Expr:
    """Remove answers that decline ("I'm sorry, but I can't help with that"), by how they do so and not by topic.

    `classes`: `refusal`, `capability` ("I can't open links"), `clarification` ("Could you clarify …?"), and `partial`,
    which declines and then gives something. `action`: `flag` only measures, `mask` does not train on the answer,
    `exchange` removes it with its prompt, `drop` rejects the conversation; in all three only where more than `share`
    of the answers decline. English, Korean, Chinese, Japanese, Spanish, German, French and Portuguese are read.
    """
    _check(action, classes)
    check_range("refusals", "share", share, 0, 1)
    if action == "exchange":
        return pl.lit(None)  # the repair below does it
    matches = pl.col("declines").list.eval(pl.element().is_in(list(classes)).fill_null(False))
    count, answers = matches.list.sum(), pl.col("answers").list.len()
    return reject(
        pl.lit(action == "drop") & (count > 0) & (count > share * answers),
        "{count} of {answers} answers decline: {kind}",
        evidence=pl.col("declining_sentences").list.get(matches.list.arg_max(), null_on_oob=True),
        count=count,
        answers=answers,
        kind=pl.col("declines").list.get(matches.list.arg_max(), null_on_oob=True),
    )


def _check(action: str, classes: Sequence[str]) -> None:
    if action not in ACTIONS:
        raise RecipeError(f"filter 'refusals': action = {action!r}{did_you_mean(action, ACTIONS)}")
    if not classes:
        raise RecipeError(f"filter 'refusals': classes must name at least one of {', '.join(CLASSES)}")
    for name in classes:
        if name not in CLASSES:
            raise RecipeError(f"filter 'refusals': unknown class {name!r} in classes{did_you_mean(name, CLASSES)}")


@repair(of="refusals")
def remove_refusals(
    conversations: Sequence[Conversation],
    action: str = "exchange",
    classes: tuple[str, ...] = ("refusal",),
    share: float = 0.0,
) -> None:
    """Do not train on answers that decline, or remove their exchanges."""
    if action not in ("mask", "exchange"):
        return
    places = [[i for i, message in enumerate(each.messages) if message.role == "assistant"] for each in conversations]
    texts = [each.messages[i].content for each, indices in zip(conversations, places, strict=True) for i in indices]
    declining = iter(classify(pl.Series(texts, dtype=pl.String)))
    for conversation, indices in zip(conversations, places, strict=True):
        found = [(index, each) for index in indices if (each := next(declining)) and each.kind in classes]
        if len(found) > share * len(indices):
            for index, each in found:
                _act(conversation, index, each, action)


def _act(conversation: Conversation, index: int, declining: Declining, action: str) -> None:
    if action == "exchange":
        conversation.flaw("refusals", index, f"the answer is {CLASSES[declining.kind]}", declining.sentence)
    else:
        mask(conversation, "refusals", index, declining.sentence, declining.sentence)


@dataclass(frozen=True)
class Declining:
    """How an answer declines: one of `CLASSES`, and the sentence that shows it."""

    kind: str
    sentence: str


@dataclass(frozen=True)
class _Sentence:
    row: int
    text: str
    stop: int  # where it ends in the answer
    is_last: bool  # of the answer, and not in its opening


@recall
def classify(answers: pl.Series) -> list[Declining | None]:
    """Return how each of these texts declines; None for one that does not."""
    results: list[Declining | None] = [None] * len(answers)
    sentences = [sentence for row in _candidates(answers) for sentence in _read(row, answers[row])]
    cues = phrases.find([sentence.text for sentence in sentences], "refusals")
    by_row: dict[int, list[tuple[_Sentence, set[str]]]] = {}
    for sentence, found in zip(sentences, cues, strict=True):
        if found:
            by_row.setdefault(sentence.row, []).append((sentence, found))
    for row, found_cues in by_row.items():
        results[row] = _decide(answers[row], found_cues)
    return results


def _candidates(answers: pl.Series) -> list[int]:
    """Return the rows of answers that have a phrase's rarest words where it counts: few, found in one fast pass."""
    text = pl.col("text")
    ends = pl.concat_str(text.str.slice(0, 2 * OPENING), text.str.slice(-CLOSING), separator="\n")
    frame = pl.DataFrame({"text": answers}).select(row=pl.int_range(pl.len()), text=ends.str.to_lowercase())
    spaced = (
        text.str.replace_many(phrases.PLAIN, leftmost=True)
        .str.replace_many(phrases.CONTRACTIONS, leftmost=True)
        .str.replace_all("'", " ", literal=True)
    )
    east_asian = frame.filter(text.str.contains(phrases.EAST_ASIAN))
    unspaced = text.str.replace_all(r"\W+", "")
    rows = {
        *frame.filter(spaced.str.contains_any(list(_stems(False))))["row"],
        *east_asian.filter(unspaced.str.contains_any(list(_stems(True))))["row"],
    }
    return sorted(rows)


@functools.cache
def _stems(unspaced: bool) -> tuple[str, ...]:
    stems = phrases.stems("refusals").items()
    return tuple(stem for language, each in stems if (language in phrases.UNSPACED) is unspaced for stem in each)


def _read(row: int, answer: str) -> Iterator[_Sentence]:
    """Yield the sentences of an answer's opening, up to words that are not its own, and the last one."""
    start = len(answer) - len(answer.lstrip())
    opening = re.split(f"[{NOT_OWN}]", answer[start : start + OPENING], maxsplit=1)[0]
    for match in SENTENCE.finditer(opening):
        yield _Sentence(row, match.group(), start + match.end(), False)
    if len(answer) > start + OPENING:
        closing = answer[-CLOSING:].rstrip()
        last = list(SENTENCE.finditer(closing))[-1:]
        if last and not re.search(f"[{NOT_OWN}]", last[0].group()) and not CONDITION.search(last[0].group()):
            yield _Sentence(row, last[0].group(), len(answer), True)


def _decide(answer: str, cues: Sequence[tuple[_Sentence, set[str]]]) -> Declining | None:
    opening = [(sentence, found) for sentence, found in cues if not sentence.is_last]
    asking = next((sentence for sentence, found in opening if "clarification" in found), None)
    if asking and not has_substance(answer):
        return Declining("clarification", asking.text.strip())
    for sentence, found in opening:
        kind = next(kind for kind in CUES if kind in found)
        if kind == "clarification":
            continue
        rest = answer[sentence.stop :]
        return Declining(
            "partial" if has_substance(rest) else "refusal" if kind == "refusal" else "capability",
            sentence.text.strip(),
        )
    for sentence, found in cues:
        if sentence.is_last and "refusal" in found:
            return Declining("partial", sentence.text.strip())
    return None


def has_substance(text: str) -> bool:
    """Return whether a text gives something that was asked for: code, a list, a table, or more than a remark."""
    return bool(SUBSTANCE.search(text)) or any(itertools.islice(WORD.finditer(text), MAX_WORDS, None))
