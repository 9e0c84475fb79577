"""What two formats can both hold is the same after a way through one and the other."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.schemas import Conversation, Message, formats, writing

WRITTEN = [
    name for name, form in formats.FORMATS.items() if form.dump and form.reads and form.writes and name != "parquet"
]
TEXT = st.sampled_from(["Which tea?", "It is hot.\n\nVery.", "  차 ", "a: b", "1", "<b>bold</b>", '{"x": 1}', "émile"])
CALL = '[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\\"x\\":1}"}}]'
TOOLS = '[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{}}}}]'
EXCHANGE = st.tuples(
    st.builds(Message, st.just("user"), TEXT),
    st.builds(Message, st.just("assistant"), TEXT, train=st.booleans(), reasoning=st.none() | st.just("I think.")),
).map(list)
CALLS = st.builds(
    lambda prompt, text: [
        Message("user", prompt),
        Message("assistant", "", tool_calls=CALL),
        Message("tool", "4", tool_call_id="c1"),
        Message("assistant", text),
    ],
    TEXT,
    TEXT,
)
SYSTEM = st.lists(st.builds(Message, st.just("system"), TEXT), max_size=1)
CONVERSATIONS = st.builds(
    lambda system, exchanges, tools, name, model: Conversation(
        name, [*system, *(message for exchange in exchanges for message in exchange)], model, tools
    ),
    SYSTEM,
    st.lists(EXCHANGE | CALLS, min_size=1, max_size=3),
    st.none() | st.just(TOOLS),
    st.none() | st.just("id-1"),
    st.none() | st.just("m"),
)


def written(name: str, conversation: Conversation) -> Conversation | None:
    """Return a conversation after it is written in a format and read again; None if the format does not hold all."""
    form = formats.get(name)
    assert form.dump is not None
    puts_system_in_prompt = name == "vicuna" and conversation.messages[0].role == "system"
    if puts_system_in_prompt or writing.find_lost(conversation, form.lacks):
        return None
    try:
        record = form.dump(conversation)
    except RecordError:
        return None
    return formats.parse(json.loads(json.dumps(record)))


def held(conversation: Conversation) -> object:
    messages = [
        (m.role, m.content.strip(), m.tool_calls, m.tool_call_id, m.reasoning, m.train, m.stop)
        for m in conversation.messages
    ]
    return conversation.source_id, messages, conversation.model, conversation.tools


@pytest.mark.parametrize(("first", "second"), list(permutations(WRITTEN, 2)))
@given(CONVERSATIONS)
def test_what_two_formats_hold_is_the_same_through_both(first: str, second: str, conversation: Conversation) -> None:
    direct = written(second, conversation)
    through = written(first, conversation)
    if direct is None or through is None:
        return
    both = written(second, through)
    assert both is not None
    assert held(both) == held(direct)
