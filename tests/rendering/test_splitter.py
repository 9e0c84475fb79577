"""Splitting loses and reorders no exchange, and no rendered piece exceeds the window."""

from __future__ import annotations

import gzip
import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from curate.errors import RecipeError
from curate.rendering.splitter import Piece, SplitResult, TemplateCounter, piece_messages, split_batch
from curate.schemas.conversation import Message, Role
from curate.schemas.prompts import TEMPLATES, Template, exchanges, fit, fold_system, render, system_before
from curate.tokenization import vocabulary
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.support.tiny_tokenizers import folder, sentencepiece_model, tiktoken_file

VICUNA, PLAIN = TEMPLATES["vicuna"], TEMPLATES["plain"]
REFERENCES: dict[str, vocabulary.Encode] = {}


pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Return small tokenizers, one for each way to locate the start of an answer, with their references."""
    root = tmp_path_factory.mktemp("split")
    sp = folder(root / "sp", tokenizer_model=sentencepiece_model())
    tik = folder(root / "tik", tokenizer_model=tiktoken_file())
    words = folder(root / "words", tokenizer_model=sentencepiece_model(lines=False))
    built = {
        name: load_tokenizer(str(path)) for name, path in (("sentencepiece", sp), ("words", words), ("tiktoken", tik))
    }
    assert built["words"].word_counter is not None, "counted word by word, as LLaMA-2's are"
    plain = load_tokenizer(str(tik))
    plain.__dict__["byte_lengths"] = None  # without byte lengths, token starts are unknown
    built["counted"] = plain
    for name, tokenizer in built.items():
        REFERENCES[name] = vocabulary.read(Path(tokenizer.info.source).read_bytes(), name).reference
    return built


def count_with_reference(template: Template, name: str, tokenizer: Tokenizer, messages: list[Message]) -> int:
    """Count the tokens of a whole rendering by the reference library."""
    total, run = 0, ""
    messages = messages if template.mid_system else list(fold_system(messages))
    for segment in render(fit(template, tokenizer.control_ids), messages):
        if segment.control is None:
            run += segment.text
        else:
            total += 1 + (len(REFERENCES[name](run)) if run else 0)
            run = ""
    return total + (len(REFERENCES[name](run)) if run else 0)


def instructions(messages: list[Message], start: int) -> list[Message]:
    """Return the system messages in force at a position."""
    return [messages[index] for index in system_before(messages, start)]


def check(messages: list[Message], result: SplitResult, template: Template, tokenizer: Tokenizer, name: str) -> None:
    """Check the guarantees for one result."""
    head, bounds = exchanges(messages)
    places = sorted(
        [(piece.start, piece.stop) for piece in result.pieces] + [(r.start, r.stop) for r in result.rejected]
    )
    assert [start for start, _ in places] == [head, *[stop for _, stop in places[:-1]]] if places else not bounds
    assert not bounds or places[-1][1] == len(messages)
    assert {edge for place in places for edge in place} <= set(bounds), "whole exchanges only"
    assert result.pieces == sorted(result.pieces, key=lambda piece: piece.start)
    for piece in result.pieces:
        assert piece.tokens == count_with_reference(template, name, tokenizer, piece_messages(messages, piece))
        assert piece.tokens == piece.prompt_tokens + piece.answer_tokens
    for reject in result.rejected:
        assert (reject.rule, [reject.start, reject.stop]) == ("too_long", bounds[bounds.index(reject.start) :][:2])


TEXTS = st.lists(
    st.sampled_from(
        ["the dog", " sleeps.", "\n\n", "  ", "안녕", "你好。", "é", "▁", "</s>", "<|eot_id|>", "%s", "12", "x" * 30]
    ),
    max_size=8,
).map("".join)
ANY_ROLES: list[Role] = ["user", "assistant", "tool", "system"]
ANY_ORDER = st.lists(
    st.builds(
        Message,
        st.sampled_from(ANY_ROLES),
        TEXTS,
        tool_calls=st.sampled_from([None, None, '{"a": 1}']),
        train=st.booleans(),
        stop=st.booleans(),
    ),
    max_size=8,
)
TURN_BY_TURN = st.tuples(st.booleans(), st.lists(st.tuples(TEXTS, TEXTS), max_size=6)).map(
    lambda drawn: [
        *([Message("system", "Be brief.")] if drawn[0] else []),
        *(message for pair in drawn[1] for message in (Message("user", pair[0]), Message("assistant", pair[1]))),
    ]
)


@pytest.mark.parametrize("name", ["sentencepiece", "words", "tiktoken", "counted"])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    batch=st.lists(st.one_of(TURN_BY_TURN, ANY_ORDER), max_size=4),
    template=st.sampled_from(list(TEMPLATES.values())),
    window=st.integers(1, 260),
)
def test_every_exchange_is_in_a_piece_that_fits_or_is_rejected(
    name: str, batch: list[list[Message]], template: Template, window: int, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers[name]
    if not set(template.needs) <= set(tokenizer.control_ids):
        return
    results = split_batch(batch, template, tokenizer, window)
    assert len(results) == len(batch)
    for messages, result in zip(batch, results, strict=True):
        check(messages, result, template, tokenizer, name)
        assert all(piece.tokens <= window for piece in result.pieces)
        for reject in result.rejected:
            alone = [*instructions(messages, reject.start), *messages[reject.start : reject.stop]]
            assert count_with_reference(template, name, tokenizer, alone) > window
        for piece, next_piece in pairwise(result.pieces):
            if piece.stop == next_piece.start:  # each piece is as long as possible
                second_exchange = min(bound for bound in exchanges(messages)[1] if bound > next_piece.start)
                longer = [*instructions(messages, piece.start), *messages[piece.start : second_exchange]]
                assert count_with_reference(template, name, tokenizer, longer) > window


@pytest.mark.parametrize("name", ["sentencepiece", "words", "tiktoken", "counted"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(messages=TURN_BY_TURN, window=st.integers(1, 200))
@example(messages=[Message("user", "q"), Message("assistant", "One. Two.\n```\na. b\n```\nThree.")], window=60)
def test_cut_answers_fit_and_have_no_stop_token(
    name: str, messages: list[Message], window: int, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers[name]
    [result] = split_batch([messages], VICUNA, tokenizer, window, overlong="cut")
    check(messages, result, VICUNA, tokenizer, name)
    for piece in result.pieces:
        assert piece.tokens <= window
        if piece.cut is not None:
            last = piece_messages(messages, piece)[-1]
            assert (last.role, last.stop) == ("assistant", False)
            assert messages[piece.stop - 1].content.startswith(last.content)
            assert 0 < len(last.content) <= len(messages[piece.stop - 1].content)


@pytest.mark.parametrize("template", list(TEMPLATES.values()), ids=list(TEMPLATES))
@pytest.mark.parametrize("name", ["sentencepiece", "tiktoken"])
def test_answer_tokens_count_the_answers_and_their_stop_tokens(
    template: Template, name: str, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers[name]
    if not set(template.needs) <= set(tokenizer.control_ids):
        return
    messages = [Message("user", "안녕 the dog"), Message("assistant", "the dog sleeps."), Message("user", "a")]
    messages.append(Message("assistant", "b"))
    fitted = fit(template, tokenizer.control_ids)
    size = TemplateCounter(template, tokenizer).sizes([(messages, True)])[0]
    quiet = [Message(m.role, m.content, train=False) for m in messages]
    assert TemplateCounter(template, tokenizer).sizes([(quiet, True)])[0] == (size.tokens, 0)
    prompts = 0
    run, supervised = "", False
    for segment in [*render(fitted, messages), None]:
        if segment is not None and segment.control is None:
            if segment.supervised:
                prompts += len(REFERENCES[name](run)) if run else 0
                supervised = True
            run += segment.text
            continue
        if run and not supervised:
            prompts += len(REFERENCES[name](run))
        prompts += segment is not None and not segment.supervised
        run, supervised = "", False
    assert size.answer_tokens == size.tokens - prompts


@pytest.mark.parametrize(("template", "known"), [("vicuna", True), ("alpaca", True), ("llama2", False)])
def test_the_beginning_of_a_prompt_is_counted_once(
    template: str, known: bool, tokenizers: dict[str, Tokenizer]
) -> None:
    counter = TemplateCounter(TEMPLATES[template], tokenizers["words"])
    head = [Message("system", "Be kind. ")]
    own = [Message("user", "  x▁y \n"), Message("assistant", "\n\n z")]
    opening = counter.opening_size(head, own)
    first, follows = counter.sizes([([*head, *own], True), (own, False)])
    assert opening == ((first.tokens - follows.tokens, 0) if known else None)
    assert TemplateCounter(TEMPLATES[template], tokenizers["tiktoken"]).opening_size(head, own) is None


def pair(tokenizer: Tokenizer, count: int, word: str) -> list[Message]:
    """Return an exchange that is `count` tokens in the plain template, its end token included."""
    question = Message("user", "a")
    for repetitions in range(1, 200):
        answer = Message("assistant", word * repetitions)
        if TemplateCounter(PLAIN, tokenizer).sizes([([question, answer], False)])[0].tokens >= count:
            return [question, answer]
    raise AssertionError("no answer is as long")


@pytest.mark.parametrize("name", ["sentencepiece", "tiktoken"])
def test_two_pairs_of_60_tokens_at_window_100_are_two_pieces(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    messages = [*pair(tokenizers[name], 60, " dog"), *pair(tokenizers[name], 60, " fox")]
    [result] = split_batch([messages], PLAIN, tokenizers[name], 100)
    assert [(piece.start, piece.stop) for piece in result.pieces] == [(0, 2), (2, 4)]
    assert result.rejected == []


def test_an_overlong_first_exchange_is_rejected_without_an_empty_piece(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["tiktoken"]
    messages = [*pair(tokenizer, 120, " dog"), *pair(tokenizer, 60, " fox")]
    [result] = split_batch([messages], PLAIN, tokenizer, 100)
    assert [(piece.start, piece.stop) for piece in result.pieces] == [(2, 4)]
    [reject] = result.rejected
    size = TemplateCounter(PLAIN, tokenizer).sizes([(messages[:2], True)])[0].tokens
    assert (reject.start, reject.stop, reject.rule) == (0, 2, "too_long")
    assert reject.reason == f"one exchange alone is {size} tokens as rendered, window 100"
    assert reject.evidence == "a"


def test_the_system_message_is_on_every_piece(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["tiktoken"]
    messages = [Message("system", "Be brief."), *pair(tokenizer, 60, " dog"), *pair(tokenizer, 60, " fox")]
    [result] = split_batch([messages], PLAIN, tokenizer, 100)
    assert [piece_messages(messages, piece)[0].content for piece in result.pieces] == ["Be brief."] * 2


def test_a_system_message_longer_than_the_window_rejects_every_exchange(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["tiktoken"]
    messages = [Message("system", "dog " * 200), *pair(tokenizer, 10, "a"), *pair(tokenizer, 10, "b")]
    [result] = split_batch([messages], PLAIN, tokenizer, 100)
    assert result.pieces == []
    assert [(reject.start, reject.stop) for reject in result.rejected] == [(1, 3), (3, 5)]


def test_tool_messages_stay_in_their_exchange(tokenizers: dict[str, Tokenizer]) -> None:
    messages = [
        Message("user", "weather?"),
        Message("assistant", "", tool_calls='[{"name": "weather"}]'),
        Message("tool", "sunny"),
        Message("assistant", "It is sunny."),
        Message("user", "thanks"),
        Message("assistant", "bye"),
    ]
    assert exchanges(messages) == (0, [0, 4, 6])
    [result] = split_batch([messages], PLAIN, tokenizers["tiktoken"], 10_000)
    assert [(piece.start, piece.stop) for piece in result.pieces] == [(0, 6)]


def cut_of(tokenizer: Tokenizer, answer: str, window: int) -> str | None:
    """Return what is kept of an answer to `q` at a window, or `None` if it is rejected."""
    messages = [Message("user", "q"), Message("assistant", answer)]
    [result] = split_batch([messages], PLAIN, tokenizer, window, overlong="cut")
    return piece_messages(messages, result.pieces[0])[-1].content if result.pieces else None


CUTS = [
    ("One dog sleeps. Two dogs sleep. " + "x" * 300, "One dog sleeps. Two dogs sleep."),
    ("你好。今天天气很好。" + "们" * 300, "你好。今天天气很好。"),
    ('She said "Stop!" And then ' + "x" * 300, 'She said "Stop!"'),
    ("A line\nand more" + "x" * 300, "A line"),
    ("Look.\n\n```c\nint a;\nint b;\n" + "x" * 300 + "\n```", "Look."),
    ("```c\nint a;\nint b;\n" + "x" * 300 + "\n```", "```c\nint a;\nint b;"),
    ("1. " + "x" * 300, None),
]


@pytest.mark.parametrize(
    ("answer", "kept"), CUTS, ids=["sentence", "cjk", "quoted", "line", "before-code", "in-code", "list-number"]
)
def test_an_answer_is_cut_at_a_sentence_end_outside_code(
    answer: str, kept: str | None, tokenizers: dict[str, Tokenizer]
) -> None:
    assert cut_of(tokenizers["tiktoken"], answer, 60) == kept


@pytest.mark.parametrize(
    ("window", "overlong", "says"),
    [(0, "reject", "max_tokens must be at least 1, not 0"), (9, "keep", "overlong must be 'reject' or 'cut'")],
    ids=["window", "overlong"],
)
def test_invalid_settings_are_refused(window: int, overlong: Any, says: str, tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(RecipeError, match=says):
        split_batch([], VICUNA, tokenizers["tiktoken"], window, overlong)


def test_no_conversations_give_no_pieces(tokenizers: dict[str, Tokenizer]) -> None:
    results = split_batch([[], [Message("system", "alone")]], VICUNA, tokenizers["tiktoken"], 100)
    assert results == [SplitResult(), SplitResult()]
    assert split_batch([], VICUNA, tokenizers["tiktoken"], 100) == []


def test_pieces_have_the_number_of_trained_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["tiktoken"]
    [result] = split_batch([[Message("user", "a"), Message("assistant", "the dog")]], PLAIN, tokenizer, 100)
    answer = len(REFERENCES["tiktoken"]("the dog")) + 1
    prompt = 1 + len(REFERENCES["tiktoken"]("a\n\n"))
    assert result.pieces == [Piece(0, 2, prompt + answer, prompt, answer)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2", "llama3"])
def test_real_conversations_are_split_without_loss(name: str, shared: Path) -> None:
    if name == "llama3" and importlib.util.find_spec("llama_models") is None:
        pytest.skip("llama-models, which ships LLaMA-3's tokenizer, is not installed")
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "llama2") if name == "llama2" else None)
    REFERENCES[name] = vocabulary.read(Path(tokenizer.info.source).read_bytes(), name).reference
    roles: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
    records = json.loads(gzip.decompress((shared / "data" / "source_markdown.json.gz").read_bytes()))
    batch = [[Message(roles[t["from"]], t["value"]) for t in record["conversations"]] for record in records[::24]]
    for template in (VICUNA, TEMPLATES["llama3"] if name == "llama3" else TEMPLATES["llama2"]):
        results = split_batch(batch, template, tokenizer, 1024)
        assert sum(len(result.pieces) for result in results) > len(batch) * 0.9
        for messages, result in zip(batch[::4], results[::4], strict=True):
            check(messages, result, template, tokenizer, name)
        assert all(piece.tokens <= 1024 for result in results for piece in result.pieces)
