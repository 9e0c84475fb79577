"""Run a recipe's repairs on a batch of conversations, before their turns are put in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from curate.errors import RecipeError
from curate.filters.registry import Rule, Settings, first_line, get, part_of
from curate.filters.verdicts import FAILURES
from curate.schemas.conversation import Conversation, Message

Texts = Callable[[list[str]], Sequence[str | None]]  # None: unchanged


def find_repairs(filters: Mapping[str, Settings]) -> list[tuple[Rule, Settings]]:
    """Return the repairs that a recipe turns on, with their settings: those it names, and parts of its filters."""
    named = [(get(name) if get(name).kind == "repair" else part_of(name), filters[name]) for name in filters]
    return [(rule, settings) for rule, settings in named if rule is not None]


def apply_repairs(conversations: Sequence[Conversation], repairs: Sequence[tuple[Rule, Settings]]) -> None:
    """Change the conversations in place; raises RecipeError, with the rule, if a repair fails."""
    for rule, settings in repairs:
        try:
            rule.call(conversations, settings)
        except FAILURES as error:
            raise RecipeError(f"{rule.label} failed: {first_line(error)}") from error


def is_answer(message: Message) -> bool:
    """Return whether a message is the assistant's."""
    return message.role == "assistant"


def find_places(
    conversations: Sequence[Conversation], when: Callable[[Message], bool] = is_answer
) -> list[tuple[Conversation, int]]:
    """Return the conversation and the index of each message that `when` chooses."""
    return [
        (conversation, index)
        for conversation in conversations
        for index, message in enumerate(conversation.messages)
        if when(message)
    ]


def mask(conversation: Conversation, rule: str, index: int, before: str, after: str) -> None:
    """Do not train on a message, and record that as an edit with these excerpts, unless it is not trained on anyway."""
    message = conversation.messages[index]
    if message.train:
        message.train = False
        conversation.edit(rule, index, before, after)


def repair_texts(
    conversations: Sequence[Conversation],
    rule: str,
    function: Texts,
    *,
    when: Callable[[Message], bool] = is_answer,
) -> None:
    """Replace the contents of the messages that `when` chooses by what `function` makes of all of them in one call.

    Each change is recorded as an edit named `rule`. `function` returns a text, or None to leave it, for each text.
    """
    places = find_places(conversations, when)
    texts = [conversation.messages[index].content for conversation, index in places]
    for (conversation, index), before, after in zip(places, texts, function(texts), strict=True):
        if after is not None and after != before:
            conversation.messages[index].content = after
            conversation.edit(rule, index, *_around_change(before, after))


def _around_change(before: str, after: str, context: int = 40) -> tuple[str, str]:
    """Return both texts from a little before the first character that differs."""
    pairs = enumerate(zip(before, after, strict=False))
    start = next((place for place, (old, new) in pairs if old != new), min(len(before), len(after)))
    start = max(0, start - context)
    return before[start:], after[start:]
