"""Rules on names: answers that mention a vendor, or claim to be its model; and cutting what a model says of itself."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from curate.errors import RecipeError, did_you_mean
from curate.filters.examples import Examples, chat
from curate.filters.phrases.identity import Sentence, cut, find_sentences
from curate.filters.registry import EVIDENCE, VERDICT, reject, repair, rule, signal
from curate.filters.repairs import find_places, mask
from curate.schemas.conversation import Conversation

CONTEXT = 120  # characters of evidence after a mention


@rule(
    examples=Examples(
        chat("Who made GPT-4?", "OpenAI made it, in 2023."), chat("Who made GPT-4? OpenAI?", "Yes, they did, in 2023.")
    )
)
def vendor_mention(
    words: tuple[str, ...] = ("openai", "chatgpt"), any_turn: bool = False, whole_words: bool = True
) -> pl.Expr:
    """Drop conversations in which an answer names a vendor or its model, ignoring case.

    FastChat's rule is `any_turn = true, whole_words = false`: any message, and matches inside words. Koala's list
    adds gpt-3, gpt3, chadgpt, chat-gpt, open-ai, open ai.
    """
    _check_words("vendor_mention", words=words)
    texts = pl.concat_list(pl.col("prompts"), pl.col("answers")) if any_turn else pl.col("answers")
    return _reject_matches(texts, _alternation(words, whole_words), "names {match}")


def _check_words(filter_name: str, **lists: Sequence[str]) -> None:
    """Raise RecipeError for a list of words that is empty or has an empty word."""
    for key, words in lists.items():
        if not words or not all(re.search(r"\w", word) for word in words):
            raise RecipeError(
                f"filter {filter_name!r}: {key} = {list(words)!r} must name at least one word, none empty or only marks"
            )


NAMES = (
    *("chatgpt", "gpt-3", "gpt-3.5", "gpt-4", "gpt-4o", "gpt-5", "claude", "bard", "gemini", "bing chat", "copilot"),
    *("llama", "mistral", "mixtral", "deepseek", "qwen", "grok", "ernie bot", "kimi", "doubao", "chatglm", "vicuna"),
    *("文心一言", "通义千问", "豆包", "智谱清言", "讯飞星火", "클로바", "하이퍼클로바", "챗gpt", "클로드", "제미나이"),
)
MAKERS = (
    *("openai", "anthropic", "google", "microsoft", "deepmind", "meta", "meta ai", "mistral ai", "deepseek", "xai"),
    *("alibaba", "alibaba cloud", "baidu", "bytedance", "moonshot ai", "zhipu ai", "tencent", "naver", "kakao"),
    *("阿里巴巴", "阿里云", "百度", "字节跳动", "月之暗面", "智谱", "腾讯", "科大讯飞", "深度求索", "네이버", "카카오"),
    *(
        "谷歌",
        "微软",
        "オープンai",
        "グーグル",
        "マイクロソフト",
        "구글",
        "오픈ai",
        "앤트로픽",
        "마이크로소프트",
        "딥시크",
    ),
)
CLASSES = {
    "claim": "says who it is",
    "disclaimer": "says that it is only a model",
    "cutoff": "says when its knowledge ends",
}
ACTIONS = ("flag", "repair", "mask", "exchange", "drop")


@signal(identity_claims=pl.UInt32, ai_disclaimers=pl.UInt32, knowledge_cutoffs=pl.UInt32)
def identity_answers(
    frame: pl.DataFrame, names: tuple[str, ...] = NAMES, makers: tuple[str, ...] = MAKERS
) -> pl.DataFrame:
    """Count the answers that claim to be a vendor's model, say that they are a model's, or when its knowledge ends."""
    found = [_kinds(answers) for answers in _find(frame, names, makers)]
    columns = zip(("identity_claims", "ai_disclaimers", "knowledge_cutoffs"), CLASSES, strict=True)
    return pl.DataFrame(
        {name: [sum(kind in kinds for kinds in answers) for answers in found] for name, kind in columns},
        schema=dict.fromkeys(("identity_claims", "ai_disclaimers", "knowledge_cutoffs"), pl.UInt32),
    )


def _find(frame: pl.DataFrame, names: Sequence[str], makers: Sequence[str]) -> Iterator[list[list[Sentence]]]:
    """Yield the sentences of identity of each conversation's answers."""
    sizes = frame["answers"].list.len()
    flat = iter(find_sentences(frame["answers"].filter(sizes > 0).explode(), names, makers))
    for size in sizes:
        yield list(itertools.islice(flat, size))


def _kinds(answers: Sequence[Sequence[Sentence]]) -> list[set[str]]:
    return [{kind for sentence in sentences for kind in sentence.kinds} for sentences in answers]


def check_identity(settings: Mapping[str, Any]) -> None:
    """Raise RecipeError if a setting of `identity` is not allowed."""
    names, makers, classes, action = (settings[key] for key in ("names", "makers", "classes", "action"))
    _check_words("identity", names=names, makers=makers)
    if action not in ACTIONS:
        raise RecipeError(f"filter 'identity': action = {action!r}{did_you_mean(action, ACTIONS)}")
    unknown = [name for name in classes if name not in CLASSES]
    if unknown or not classes:
        hint = did_you_mean(unknown[0], CLASSES) if unknown else f"; known: {', '.join(CLASSES)}"
        raise RecipeError(f"filter 'identity': classes = {list(classes)!r}{hint}")


@rule(
    examples=Examples(
        chat("Who are you?", "I am ChatGPT, a language model trained by OpenAI."),
        chat("What is ChatGPT?", "ChatGPT is a language model trained by OpenAI."),
    ),
    reads=("identity_claims",),
    check=check_identity,
)
def identity(
    frame: pl.DataFrame,
    names: tuple[str, ...] = NAMES,
    makers: tuple[str, ...] = MAKERS,
    classes: tuple[str, ...] = ("claim",),
    action: str = "drop",
) -> pl.Series:
    """Drop conversations in which an answer claims to be a vendor's model ("I am ChatGPT", "trained by OpenAI").

    `classes`: `claim`, `disclaimer` ("As an AI language model, …") and `cutoff` ("My knowledge ends in 2021").
    `action`: `flag` only measures, `repair` cuts the sentence, or only its first clause where the rest says something,
    `mask` does not train on the answer, `exchange` removes it with its prompt, `drop` rejects the conversation.
    Answers that only mention a name are kept; `vendor_mention` drops them. Eight languages are read, as by `refusals`.
    """
    if action != "drop":
        return pl.Series([None] * frame.height, dtype=VERDICT)
    return pl.Series([_verdict(answers, classes) for answers in _find(frame, names, makers)], dtype=VERDICT)


def _verdict(answers: Sequence[Sequence[Sentence]], classes: Sequence[str]) -> dict[str, str] | None:
    wanted = [_of(sentences, classes) for sentences in answers]
    hits = [sentences[0] for sentences in wanted if sentences]
    if not hits:
        return None
    reason = f"{_reason(hits[0], classes)} ({len(hits)} of {len(answers)} answers)"
    return {"reason": reason, "evidence": hits[0].text[:EVIDENCE]}


def _of(sentences: Sequence[Sentence], classes: Sequence[str]) -> list[Sentence]:
    return [sentence for sentence in sentences if not sentence.kinds.isdisjoint(classes)]


def _reason(sentence: Sentence, classes: Sequence[str]) -> str:
    return CLASSES[next(kind for kind in CLASSES if kind in sentence.kinds and kind in classes)]


@repair(of="identity")
def cut_identity(
    conversations: Sequence[Conversation],
    names: tuple[str, ...] = NAMES,
    makers: tuple[str, ...] = MAKERS,
    classes: tuple[str, ...] = ("claim",),
    action: str = "drop",
) -> None:
    """Cut sentences in which an answer says what it is, do not train on it, or remove its exchange."""
    if action in ("flag", "drop"):
        return
    places = find_places(conversations)
    texts = pl.Series([conversation.messages[index].content for conversation, index in places], dtype=pl.String)
    for (conversation, index), found in zip(places, find_sentences(texts, names, makers), strict=True):
        if sentences := _of(found, classes):
            _act(conversation, index, sentences, f"the answer {_reason(sentences[0], classes)}", action)


def _act(conversation: Conversation, index: int, sentences: Sequence[Sentence], reason: str, action: str) -> None:
    message = conversation.messages[index]
    evidence = sentences[0].text
    if action == "mask":
        mask(conversation, "identity", index, evidence, evidence)
        return
    after = cut(message.content, sentences) if action == "repair" else ""
    if not re.search(r"\w", after) and message.tool_calls is None:
        conversation.flaw("identity", index, reason + (", and nothing else" if action == "repair" else ""), evidence)
        return
    start = sentences[0].start
    conversation.edit("identity", index, message.content[start:], after[start:], len(sentences))
    message.content = after


def _alternation(terms: Sequence[str], whole_words: bool = False) -> str:
    """Return a pattern that matches any of the terms, longest first so that `gpt-3.5` does not match as `gpt-3`."""
    longest = sorted((term.strip() for term in terms), key=lambda term: (-len(term), term))
    return "|".join(_whole_word(term) if whole_words else re.escape(term) for term in longest)


def _whole_word(word: str) -> str:
    """Return a pattern with ASCII word boundaries at letters: Chinese text has no spaces around a Latin name."""
    before, after = (r"(?-u:\b)" if re.match(r"\w", letter, re.ASCII) else "" for letter in (word[0], word[-1]))
    return before + re.escape(word) + after


def _reject_matches(texts: pl.Expr, pattern: str, reason: str) -> pl.Expr:
    """Reject rows with a matching text; the reason counts matching texts, the evidence starts at the first match."""
    matches = texts.list.eval(pl.element().str.extract(f"(?i)({pattern})", 1)).list.drop_nulls()
    excerpts = texts.list.eval(pl.element().str.extract(f"(?is)((?:{pattern}).{{0,{CONTEXT}}})", 1)).list.drop_nulls()
    return reject(
        matches.list.len() > 0,
        reason + " ({count} of {texts} messages)",
        evidence=excerpts.list.first(),
        match=matches.list.first(),
        count=matches.list.len(),
        texts=texts.list.len(),
    )
