"""What a text model cannot see takes out the exchanges that need it, or the record; a setting keeps the text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.pipeline.repair_turns import RepairSettings, order
from curate.schemas import Conversation, formats
from curate.schemas.reading.media import remove_placeholders

Record = dict[str, Any]

DEFAULT = RepairSettings()
KEEP = RepairSettings(multimodal="keep")
EXCHANGE = RepairSettings(multimodal="exchange")


def user(text: object, **keys: object) -> Record:
    return {"role": "user", "content": text, **keys}


def answer(text: object, **keys: object) -> Record:
    return {"role": "assistant", "content": text, **keys}


def sharegpt(*texts: str, **keys: object) -> Record:
    return {"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)], **keys}


def texts(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation.messages]


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TEXT = {"type": "text", "text": "What is it?"}
NEEDS_MEDIA = {
    "key": sharegpt("What is it?", "A cup.", image="cup.jpg"),
    "key-and-placeholder": sharegpt("<image>\nWhat is it?", "A cup.", image="cup.jpg"),
    "list": sharegpt("<image><image>What is it?", "A cup.", images=["a.png", "b.png"]),
    "table-cell": sharegpt("What is it?", "A cup.", image={"bytes": None, "path": "cup.jpg"}),
    "video": sharegpt("<video>What is it?", "A dog.", videos=["v.mp4"]),
    "audio": sharegpt("What is said?", "Hello.", audio_path="x.wav"),
    "alpaca": {"instruction": "What is it?", "input": "", "output": "A cup.", "images": ["cup.jpg"]},
    "pairs": {"question": "What is it?", "answer": "A cup.", "image_url": "https://a.example/cup.jpg"},
    "preference": {"prompt": "What is it?", "chosen": "A cup.", "rejected": "A dog.", "images": ["cup.jpg"]},
    "turn-key": {"messages": [user("What is it?", images=["iVBORw0KGgo="]), answer("A cup.")]},
    "answer-key": {"messages": [user("Say hello."), answer("Hello.", audio={"id": "a1", "data": "UklGRg=="})]},
    "part": {"messages": [user([PICTURE, TEXT]), answer("A cup.")]},
    "part-without-type": {"messages": [user([{"text": "What is it?"}, {"image": "cup.png"}]), answer("A cup.")]},
    "part-with-text": {"messages": [user([{**TEXT, "image": "cup.png"}]), answer("A cup.")]},
    "only-part": {"messages": [user(PICTURE), answer("A cup.")]},
    "input-audio": {"messages": [user([TEXT, {"type": "input_audio", "input_audio": {}}]), answer("A cup.")]},
    "file": {"messages": [user([TEXT, {"type": "file", "file": {"file_id": "f1"}}]), answer("A cup.")]},
    "bare-part": {"messages": [user([{"type": "image"}, TEXT]), answer("A cup.")], "images": ["cup.jpg"]},
    "chatgpt": {
        "messages": [
            user({"content_type": "multimodal_text", "parts": [{"content_type": "image_asset_pointer"}, "What?"]}),
            answer("A cup."),
        ]
    },
}
TEXT_ONLY = {
    "word": sharegpt("What does <image> do?", "It marks a place."),
    "code": sharegpt("Write <video>, please.", "<video>\n</video>"),
    "null": sharegpt("<image> is a tag?", "Yes.", image=None, images=[], video="", audio={"bytes": None, "path": None}),
    "words-for-null": sharegpt("<image> is a tag?", "Yes.", image="None", images="[]"),
    "null-in-parts": {
        "messages": [
            user([{"type": "text", "text": "Name a fruit.", "image_url": None}]),
            answer([{"type": "text", "text": "An apple.", "image_url": {"url": None}}]),
        ]
    },
    "null-in-turns": {"messages": [user("Name a fruit.", images=None), answer("An apple.", images=[])]},
    "other-keys": sharegpt("Name a fruit.", "An apple.", imagination="x", audience="children", videogame=True),
}


@pytest.mark.parametrize("record", NEEDS_MEDIA.values(), ids=NEEDS_MEDIA)
def test_a_record_that_needs_media_is_rejected_unless_asked_for(record: Record) -> None:
    with pytest.raises(RecordError) as caught:
        order(formats.parse(record), DEFAULT)
    assert caught.value.rule == "multimodal"
    if record not in (NEEDS_MEDIA["only-part"],):
        kept = formats.parse(record)
        assert order(kept, KEEP) == []
        assert not any("<image>" in text or "<video>" in text for text in texts(kept))
        assert "media_removed" in {edit.rule for edit in kept.edits}


@pytest.mark.parametrize("record", TEXT_ONLY.values(), ids=TEXT_ONLY)
@pytest.mark.parametrize("settings", [DEFAULT, KEEP], ids=["default", "keep"])
def test_a_chat_of_text_alone_stays(record: Record, settings: RepairSettings) -> None:
    conversation = formats.parse(record)
    before = texts(conversation)
    assert order(conversation, settings) == []
    assert texts(conversation) == before
    assert "media_removed" not in {edit.rule for edit in conversation.edits}


def test_a_picture_of_a_turn_takes_its_exchange_out() -> None:
    turns = [
        user("Hi."),
        answer("Hello."),
        user([PICTURE, TEXT]),
        answer("A cup."),
        user("Thanks."),
        answer("Bye."),
    ]
    conversation = formats.parse({"messages": turns})
    lost = order(conversation, DEFAULT)
    assert [(each.rule, each.message_range) for each in lost] == [("multimodal", (2, 4)), ("multimodal", (4, 6))]
    assert "follows turn 2" in lost[1].reason
    assert texts(conversation) == ["Hi.", "Hello."]
    conversation = formats.parse({"messages": turns})
    assert [each.message_range for each in order(conversation, EXCHANGE)] == [(2, 4)]
    assert texts(conversation) == ["Hi.", "Hello.", "Thanks.", "Bye."]


@pytest.mark.parametrize("system", [[], ["Be brief."]], ids=["without-system", "with-system"])
def test_a_picture_of_the_record_is_needed_from_its_placeholder_on(system: list[str]) -> None:
    record = sharegpt("Hi.", "Hello.", "<image>\nWhat is it?", "A cup.", "Which colour?", "Blue.", image="cup.jpg")
    record |= {"system": system[0]} if system else {}
    conversation = formats.parse(record)
    lost = order(conversation, DEFAULT)
    first = len(system)
    assert [each.message_range for each in lost] == [(first + 2, first + 4), (first + 4, first + 6)]
    assert texts(conversation) == [*system, "Hi.", "Hello."]


def test_a_setting_rejects_the_whole_record() -> None:
    turns = [user("Hi."), answer("Hello."), user([PICTURE, TEXT]), answer("A cup.")]
    with pytest.raises(RecordError, match="'image_url'"):
        order(formats.parse({"messages": turns}), RepairSettings(multimodal="record"))


def test_what_is_kept_of_a_picture_chat_is_its_text_with_an_edit() -> None:
    record = sharegpt("<image>\nWhat is it?", "A cup.", "Which colour?", "Blue.", image="cup.jpg")
    conversation = formats.parse(record)
    assert order(conversation, KEEP) == []
    assert texts(conversation) == ["What is it?", "A cup.", "Which colour?", "Blue."]
    assert [(edit.rule, edit.message, edit.before) for edit in conversation.edits] == [("media_removed", 0, "<image>")]
    assert conversation.metadata == {"image": "cup.jpg"}


def test_a_prompt_that_is_only_a_picture_is_empty_where_pictures_are_removed() -> None:
    with pytest.raises(RecordError) as caught:
        order(formats.parse(NEEDS_MEDIA["only-part"]), KEEP)
    assert caught.value.rule == "empty_prompt"


@pytest.mark.parametrize(
    "placeholder",
    ["<image>", "<image_1>", "<|image_pad|>", "<image-placeholder>", "<ImageHere>", "<|audio|>", "<video>", "[IMG]"],
)
def test_placeholders_are_removed_in_their_spellings(placeholder: str) -> None:
    assert remove_placeholders(f"{placeholder}\nWhat?") == "What?"


EXCHANGES = st.lists(st.booleans(), min_size=1, max_size=8)  # whether each exchange has a picture


@given(EXCHANGES)
def test_exactly_the_exchanges_with_a_picture_are_lost(pictures: list[bool]) -> None:
    turns: list[Record] = []
    for number, picture in enumerate(pictures):
        prompt = {"type": "text", "text": f"Question {number}?"}
        turns += [user([PICTURE, prompt] if picture else f"Question {number}?"), answer(f"Answer {number}.")]
    expected = [number for number, picture in enumerate(pictures) if not picture]
    conversation = formats.parse({"messages": turns})
    if not expected:
        with pytest.raises(RecordError):
            order(conversation, EXCHANGE)
        return
    lost = order(conversation, EXCHANGE)
    assert len(lost) == sum(pictures)
    assert texts(conversation) == [text for n in expected for text in (f"Question {n}?", f"Answer {n}.")]
