"""Convert the HTML of answers to markdown, and remove what ChatGPT's page left around prompts and answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import unescape

from curate import markdown
from curate.pipeline.repair_turns import RAW_HTML, RepairSettings
from curate.schemas.conversation import Conversation, Message

Answer = tuple[Conversation, int]  # and the position of the message


def convert(conversations: Iterable[Conversation], settings: RepairSettings) -> None:
    """Convert the HTML answers of all conversations to markdown, in one call and in place.

    Prompts are text: only the markup of a message bubble around one is removed.
    """
    answers: list[Answer] = []
    for conversation in conversations:
        for position, message in enumerate(conversation.messages):
            if message.role == "assistant":
                if _convert_or_strip(conversation, position, settings):
                    answers.append((conversation, position))
            elif message.content[:1] == "<" and _may_be_bubble(message) and settings.html != "never":
                _unwrap(conversation, position)
    html = [conversation.messages[position].content for conversation, position in answers]
    _replace(answers, markdown.to_markdown(html, citations=settings.citations))


def _convert_or_strip(conversation: Conversation, position: int, settings: RepairSettings) -> bool:
    """Return whether an answer is to be converted as a whole; if not, remove what is not of the answer."""
    message = conversation.messages[position]
    text = message.content
    if message.is_html is not None:  # its format says so
        return message.is_html and settings.html != "never"
    if settings.html != "never" and markdown.looks_like_html(text):
        if settings.chrome and text[-1:] != ">" and (words := markdown.page_words_after(text)):
            message.content = text[: -len(words)]
            conversation.edit("chrome", position, words, "")
        return True
    if settings.html != "never" and markdown.has_wrapper(text):
        return not _convert_wrappers(conversation, position, settings)
    if settings.html == "always" and markdown.has_html(text):
        return True
    if settings.html == "always" and "&" in text and "`" not in text:
        _edit(conversation, position, "html_to_markdown", unescape(text))
    if settings.chrome:
        _edit(conversation, position, "chrome", markdown.strip_chrome(message.content))
    return False


def _convert_wrappers(conversation: Conversation, position: int, settings: RepairSettings) -> bool:
    """Convert what is in ChatGPT's wrappers, cut the page's words around them, and keep other text.

    A wrapper that cannot be converted is a flaw; return False if it is to be converted as any other HTML.
    """
    message = conversation.messages[position]
    segments = markdown.split_wrappers(message.content)
    if not segments and settings.html == "always":
        return False
    if not segments:
        reason = (
            f"message {position} holds ChatGPT's wrapper in a text that it is not around, so it cannot be converted"
        )
        conversation.flaw(RAW_HTML, position, reason, _around_wrapper(message.content))
        return True
    texts: list[str] = []
    for segment in segments:
        if segment.is_html:
            texts += markdown.to_markdown([segment.text], citations=settings.citations)
        elif settings.chrome and markdown.is_of_the_page(segment.text):
            conversation.edit("chrome", position, segment.text, "")
        else:
            texts.append(segment.text)
    _edit(conversation, position, "html_to_markdown", "\n\n".join(text for text in texts if text))
    message.was_html = True
    return True


def _around_wrapper(text: str) -> str:
    return text[max(0, text.lower().find("<div") - 80) :]


def _may_be_bubble(message: Message) -> bool:
    return message.role == "user" and message.is_html is None


def _unwrap(conversation: Conversation, position: int) -> None:
    _edit(conversation, position, "prompt_markup", markdown.unwrap_prompt(conversation.messages[position].content))


def _edit(conversation: Conversation, position: int, rule: str, text: str) -> None:
    """Replace a message's text, if it differs."""
    message: Message = conversation.messages[position]
    if text != message.content:
        conversation.edit(rule, position, message.content, text)
        message.content = text


def _replace(answers: Sequence[Answer], texts: Sequence[str]) -> None:
    """Replace HTML with markdown; one edit per conversation shows its first answer and counts them all."""
    counts = Counter(id(conversation) for conversation, _ in answers)
    for (conversation, position), text in zip(answers, texts, strict=True):
        message = conversation.messages[position]
        if count := counts.pop(id(conversation), 0):
            conversation.edit("html_to_markdown", position, message.content, text, count)
        message.content = text
        message.was_html = True
