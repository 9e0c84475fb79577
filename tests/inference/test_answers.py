"""An answer's tokens become parts of text: whole characters, nothing of a stop, each token where its text is."""

from __future__ import annotations

import json

import pytest

from curate.inference.answers import AnswerReader, Part, read_answer
from curate.inference.batch import ScoredToken
from curate.inference.sampling import TextDecoder
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer

STOP = 2


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: str) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


def read(tokenizer: Tokenizer, text: str, *, stops: tuple[str, ...] = (), room: int = 99) -> tuple[list[Part], int]:
    """Return the parts of an answer that is a text and the stop token, and the number of its tokens."""
    reader = AnswerReader(TextDecoder(tokenizer), [STOP], stops, room=room)
    parts: list[Part] = []
    for token in [*tokenizer.ids([text])[0], STOP]:
        parts.append(reader.add(ScoredToken(token)))
        if parts[-1].ending:
            break
    return parts, reader.count


def test_a_stop_token_ends_an_answer_and_is_not_counted(tokenizer: Tokenizer) -> None:
    text = "안녕 🙂 漢"
    parts, count = read(tokenizer, text)
    assert "".join(part.text for part in parts) == text
    assert (parts[-1].ending, count) == ("stop", len(tokenizer.ids([text])[0]))
    placed = [each for part in parts for each in part.tokens]
    assert [each.token.id for each in placed] == tokenizer.ids([text])[0]
    assert [each.start for each in placed] == sorted(each.start for each in placed)


def test_a_stop_string_across_tokens_ends_an_answer_without_its_tokens(tokenizer: Tokenizer) -> None:
    text = "the dog and the fox"
    parts, count = read(tokenizer, text, stops=("d the",))
    assert ("".join(part.text for part in parts), parts[-1].ending) == ("the dog an", "stop")
    assert count <= len(tokenizer.ids([text])[0])
    assert all(each.start < len("the dog an") for part in parts for each in part.tokens)


def test_the_limit_ends_an_answer_amid_a_character(tokenizer: Tokenizer) -> None:
    parts, count = read(tokenizer, "🙂", room=2)  # of its bytes
    assert (parts[-1].ending, count) == ("length", 2)
    assert sum(len(part.tokens) for part in parts) == 2


def test_a_held_beginning_of_a_stop_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    parts, _ = read(tokenizer, "the dog", stops=("dogs",))
    assert "".join(part.text for part in parts) == "the dog"


def test_a_continuation_keeps_the_space_at_its_start(tokenizer: Tokenizer) -> None:
    context = tokenizer.ids(["the"])[0]
    reader = AnswerReader(TextDecoder(tokenizer, context=context), [STOP], room=9)
    ids = tokenizer.ids(["the dog"])[0][len(context) :]
    assert "".join(reader.add(ScoredToken(token)).text for token in [*ids, STOP]) == " dog"


def test_calls_get_ids_that_no_earlier_call_has() -> None:
    call = '{"name": "f", "arguments": {"x": 1}}'
    first = read_answer(call, [])
    second = read_answer(f"Again.\n{call}", [Message("user", "?"), first])
    ids = [json.loads(message.tool_calls or "")[0]["id"] for message in (first, second)]
    assert (ids, second.content) == (["call00000", "call00100"], "Again.")
    assert read_answer("No call.", [first]) == Message("assistant", "No call.")
