"""A curated set as training data: every exchange proven, split again where need be, or named as left out."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.dataset import arrow
from curate.dataset.arrow import Row
from curate.errors import CurateError, SetError
from curate.rendering import preparation
from curate.rendering.factory import make_renderer
from curate.rendering.mask_view import decode_masked
from curate.rendering.resplit import join_pieces, resplit
from curate.rendering.splitter import TemplateCounter, piece_messages, split_batch
from curate.schemas.conversation import Message
from curate.schemas.prompts import TEMPLATES, exchanges
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from curate.train import examples as train_examples
from curate.train.examples import RenderSettings
from tests.support.small_set import MANIFEST, kept, lost, write_set
from tests.support.tiny_tokenizers import folder, sentencepiece_model, tiktoken_file

pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(folder(tmp_path_factory.mktemp("data") / "tik", tokenizer_model=tiktoken_file())))


def manifest_for(tokenizer: Tokenizer, window: int = 200, template: str = "plain") -> dict[str, Any]:
    """Return the manifest of a set that was cleaned for a tokenizer."""
    return {**MANIFEST, "tokenizer": tokenizer.info.to_dict(), "template": template, "window": window}


def plain(message: Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in ("role", "content", "name", "tool_calls", "train", "stop")}


def pair(number: int, count: int = 3) -> list[Message]:
    return [Message("user", f"the fox {number}?"), Message("assistant", f"{number}" + " dog" * count)]


def row(index: int, name: str, messages: list[Message], **columns: Any) -> dict[str, Any]:
    return kept(index, name, messages=[plain(message) for message in messages], turns=len(messages), **columns)


def decoded(tokenizer: Tokenizer, examples: train_examples.Examples, index: int) -> str:
    ids = examples.ids[examples.offsets[index] : examples.offsets[index + 1]].tolist()
    assert tokenizer.token_bytes is not None
    return b"".join(tokenizer.token_bytes[token] for token in ids).decode()


def test_a_set_for_the_same_tokenizer_and_template_is_read_unchanged(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [
        row(0, "a", [*pair(1), *pair(2)], language="ko"),
        row(1, "b", pair(3), split="eval"),
        row(2, "c", [Message("system", "Be brief."), *pair(4)]),
    ]
    path = write_set(tmp_path / "set", rows, [], manifest_for(tokenizer))
    prepared = train_examples.load(path, tokenizer)
    assert (prepared.train.names, prepared.eval.names) == (["a", "c"], ["b"])
    assert prepared.train.exchanges.tolist() == [2, 1]
    assert prepared.train.languages == ["ko", "en"]
    assert (prepared.changed, prepared.failures) == (None, [])
    assert decoded(tokenizer, prepared.train, 1) == "Be brief.\n\nthe fox 4?\n\n4 dog dog dog"
    assert prepared.train.lengths.sum() == len(prepared.train.ids) == prepared.facts["tokens"]
    assert 0 < prepared.train.supervised < len(prepared.train.ids)
    assert (prepared.facts["template"], prepared.facts["window"]) == ("plain", 200)
    assert len(train_examples.load(path, tokenizer, limit=1).train) == 1


def test_pieces_are_joined_for_a_larger_window_and_keep_their_split(tokenizer: Tokenizer, tmp_path: Path) -> None:
    system = Message("system", "Be brief.")
    rows = [
        row(0, "long_0", [system, *pair(1)], piece=0, split="eval"),
        row(0, "long_1", [system, *pair(2), *pair(3)], piece=1, split="eval"),
        row(1, "short", pair(4)),
    ]
    rejects = [lost(0, "too_long", scope="exchange"), lost(2, "min_messages")]
    path = write_set(tmp_path / "set", rows, rejects, manifest_for(tokenizer, window=60))
    prepared = train_examples.load(path, tokenizer, RenderSettings(max_tokens=500))
    assert (prepared.train.names, prepared.eval.names) == (["short"], ["long"])
    text = decoded(tokenizer, prepared.eval, 0)
    assert text.count("Be brief.") == 1
    assert [text.index(f"the fox {number}?") for number in (1, 2, 3)] == sorted(
        text.index(f"the fox {number}?") for number in (1, 2, 3)
    )
    assert str(prepared.changed) == (
        "split again (window 60 → 500): 3 pieces became 2, 1 of them changed; "
        "1 that cleaning rejected as too long are not in the set"
    )
    assert prepared.facts["split_again"] == str(prepared.changed)


def test_a_smaller_window_splits_again_and_lists_what_no_longer_fits(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_set(
        tmp_path / "set", [row(0, "a", [*pair(1), *pair(2, 90), *pair(3)])], [], manifest_for(tokenizer, 500)
    )
    prepared = train_examples.load(path, tokenizer, RenderSettings(max_tokens=50))
    assert prepared.train.names == ["a_0", "a_1"]
    assert int(prepared.train.lengths.max()) <= 50
    [failure] = prepared.failures
    assert (failure.name, failure.rule) == ("a", "too_long")
    assert failure.reason.startswith("messages 2 to 3: one exchange alone is ")
    assert (failure.source_file, failure.source_index) == ("dump.json", 0)
    train_examples.write_left_out(tmp_path / "left-out.jsonl", prepared.failures)
    assert json.loads((tmp_path / "left-out.jsonl").read_text()) == failure.to_dict()


def test_another_template_or_tokenizer_is_reported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_set(tmp_path / "set", [row(0, "a", pair(1))], [], manifest_for(tokenizer))
    sentencepiece = load_tokenizer(str(folder(tmp_path / "sp", tokenizer_model=sentencepiece_model())))
    prepared = train_examples.load(path, sentencepiece, RenderSettings(template="vicuna"))
    assert prepared.changed is not None
    assert prepared.changed.reasons == ("template plain → vicuna", "tokenizer tik → sp")
    assert prepared.changed.changed == 0


def test_a_conversation_that_fails_the_proof_is_left_out_and_listed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [row(number, f"c{number}", pair(number)) for number in range(200)]
    rows[7] = row(7, "silent", [Message("user", "a"), Message("assistant", "b", train=False)])
    path = write_set(tmp_path / "set", rows, [], manifest_for(tokenizer))
    prepared = train_examples.load(path, tokenizer)
    assert len(prepared.train) == 199
    assert [(failure.name, failure.rule) for failure in prepared.failures] == [("silent", "nothing_trained")]


def test_more_than_one_failure_in_a_hundred_stops_the_run(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [row(number, f"c{number}", pair(number)) for number in range(50)]
    rows[7] = row(7, "silent", [Message("user", "a"), Message("assistant", "b", train=False)])
    path = write_set(tmp_path / "set", rows, [], manifest_for(tokenizer))
    with pytest.raises(
        train_examples.ProofError, match=r"1 of 50 pieces fail the proof \(nothing_trained 1\)"
    ) as caught:
        train_examples.load(path, tokenizer)
    assert "'silent'" in str(caught.value) and "all have `train: false`" in str(caught.value)
    assert [failure.name for failure in caught.value.failures] == ["silent"]


def test_a_set_with_nothing_to_train_on_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_set(tmp_path / "set", [row(0, "a", pair(1, 90))], [], manifest_for(tokenizer, 500))
    with pytest.raises(
        CurateError, match=r"with a window of 20: left out are too_long 1; .*; give a larger --max-tokens"
    ):
        train_examples.load(path, tokenizer, RenderSettings(max_tokens=20))


def test_nothing_to_train_on_is_explained_by_the_rule_that_left_most_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    call = '[{"type":"function","function":{"name":"look","arguments":"{}"}}]'
    tools = '[{"type":"function","function":{"name":"look"}}]'
    messages = [Message("user", "a"), Message("assistant", "", tool_calls=call)]
    path = write_set(tmp_path / "set", [row(0, "a", messages, tools=tools)], [], manifest_for(tokenizer))
    with pytest.raises(CurateError, match=r"left out are hidden_tools 1; 'a': .*--setting data\.hidden_tools=train"):
        train_examples.load(path, tokenizer)


def test_a_folder_that_is_not_a_set_is_refused_with_a_suggestion(tokenizer: Tokenizer, tmp_path: Path) -> None:
    dump = tmp_path / "dump.json"
    dump.write_text("[]")
    with pytest.raises(SetError, match=rf"curate clean {dump} -o {tmp_path / 'dump'}"):
        train_examples.load(dump, tokenizer)
    (tmp_path / "chats").mkdir()
    with pytest.raises(SetError, match=r"is not a curated set .*; make one: curate clean"):
        train_examples.load(tmp_path / "chats", tokenizer)
    with pytest.raises(SetError, match="no curated set at"):
        train_examples.load(tmp_path / "nothing", tokenizer)


# ---- in batches


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.integers(0, 4), min_size=1, max_size=8), limit=st.none() | st.integers(1, 9))
def test_no_batch_separates_the_pieces_of_a_source(
    size: int, pieces: list[int], limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "BATCH_ROWS", size)
    rows = []
    for index, count in enumerate(pieces):  # a count of 0 stands for a piece without a source
        if count == 0:
            rows.append(row(0, f"s{index}", pair(index), source_file=None, source_index=None))
        rows += [row(index, f"s{index}_{number}", pair(index), piece=number) for number in range(count)]
    path = write_set(tmp_path / "set", rows, [])
    names = [
        [piece.name for piece in source]
        for batch in arrow.read_batches(path, limit)
        for source in arrow.decode_batch(batch)
    ]
    expected = [[f"s{i}"] if not count else [f"s{i}_{n}" for n in range(count)] for i, count in enumerate(pieces)]
    assert names == expected[:limit]


@pytest.mark.slow
def test_workers_give_the_results_of_one_process(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(number, f"c{number}", [*pair(number), *pair(number, 30)]) for number in range(250)]
    rows[7] = row(7, "silent", [Message("user", "a"), Message("assistant", "b", train=False)])
    path = write_set(tmp_path / "set", rows, [], manifest_for(tokenizer))
    monkeypatch.setattr(arrow, "BATCH_ROWS", 40)
    header = "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>' + m.content + '<|eot_id|>' }}"
    asks = "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>' }}{% endif %}"
    own = "{% for m in messages %}" + header + "{% endfor %}" + asks
    for rendering in (
        RenderSettings(max_tokens=60),
        RenderSettings(template="llama3", max_tokens=70),
        RenderSettings(chat_template=own),
    ):
        single, two = (train_examples.load(path, tokenizer, rendering, workers=workers) for workers in (1, 2))
        assert (single.failures, single.changed, single.facts) == (two.failures, two.changed, two.facts)
        for mine, theirs in ((single.train, two.train), (single.eval, two.eval)):
            assert (mine.names, mine.languages) == (theirs.names, theirs.languages)
            for name in ("ids", "loss_mask", "offsets", "exchanges"):
                assert np.array_equal(getattr(mine, name), getattr(theirs, name))


# ---- the mask as text


@pytest.mark.parametrize("kind", ["tiktoken", "sentencepiece"])
def test_the_text_that_is_trained_on_can_be_shown(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    own = tokenizer
    if kind == "sentencepiece":
        own = load_tokenizer(str(folder(tmp_path / "sp", tokenizer_model=sentencepiece_model())))
    messages = [Message("user", "안녕 </s>?"), Message("assistant", "Fine 🦊."), Message("user", "a  b"), *pair(1)[1:]]
    path = write_set(tmp_path / "set", [row(0, "a", messages)], [], manifest_for(own, template="vicuna"))
    examples = train_examples.load(path, own).train
    shown = decode_masked(own, *examples.rendering(0))
    end = own.info.eos_token
    assert shown == [
        (f"{own.info.bos_token}{TEMPLATES['vicuna'].system} USER: 안녕 </s>? ASSISTANT:", False),
        (f" Fine 🦊.{end}", True),
        ("USER: a  b ASSISTANT:", False),
        (f" 1 dog dog dog{end}", True),
    ]


TURNS = st.lists(st.integers(1, 25), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(TURNS, st.booleans(), st.integers(40, 200), st.integers(40, 300))
def test_no_exchange_is_lost_by_splitting_again(
    tokenizer: Tokenizer, sizes: list[int], system: bool, old: int, new: int
) -> None:
    head = [Message("system", "Be brief.")] if system else []
    messages = [*head, *(message for number, size in enumerate(sizes) for message in pair(number, size))]
    template = TEMPLATES["plain"]
    [split] = split_batch([messages], template, tokenizer, old)
    if not split.pieces:
        return
    rows = [
        Row(f"x_{number}", number, piece_messages(messages, piece), "en", "train", ("f", 0))
        for number, piece in enumerate(split.pieces)
    ]
    survived = [*head, *(m for piece in split.pieces for m in messages[piece.start : piece.stop])]
    assert join_pieces(rows) == survived
    counter = TemplateCounter(template, tokenizer)
    again = resplit(counter, [rows], new)
    assert (
        sum(len(exchanges(piece.messages)[1]) - 1 for piece in again.pieces) + len(again.rejected)
        == len(exchanges(survived)[1]) - 1
    )
    told_again = [m for piece in again.pieces for m in piece.messages[len(head) :]]
    assert [m for m in survived[len(head) :] if m in told_again] == told_again
    assert all(size.tokens <= new for size in counter.sizes([(piece.messages, True) for piece in again.pieces]))
    if old == new:
        assert [piece.messages for piece in again.pieces] == [piece.messages for piece in rows] or len(
            split.rejected
        ) > 0
        assert again.changed == 0 or split.rejected


MESSAGE_TEXT = re.compile(r"the fox \d+\?|\d+(?: dog)+")  # the messages that `pair` makes


@pytest.fixture(scope="module")
def kinds(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    sentencepiece = folder(tmp_path_factory.mktemp("kinds") / "sp", tokenizer_model=sentencepiece_model())
    return {"tiktoken": tokenizer, "sentencepiece": load_tokenizer(str(sentencepiece))}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    sources=st.lists(TURNS, min_size=1, max_size=3),
    system=st.booleans(),
    before=st.tuples(st.sampled_from(["tiktoken", "sentencepiece"]), st.sampled_from(["plain", "vicuna", "chatml"])),
    after=st.tuples(st.sampled_from(["tiktoken", "sentencepiece"]), st.sampled_from(["llama2", "vicuna", "alpaca"])),
    windows=st.tuples(st.integers(60, 300), st.integers(60, 300)),
    loss=st.sampled_from(["all", "last"]),
)
def test_with_another_model_each_exchange_is_trained_on_whole_or_listed(
    kinds: dict[str, Tokenizer],
    sources: list[list[int]],
    system: bool,
    before: tuple[str, str],
    after: tuple[str, str],
    windows: tuple[int, int],
    loss: str,
) -> None:
    head = [Message("system", "Be brief.")] if system else []
    groups: list[list[Row]] = []
    there: list[str] = []
    for index, sizes in enumerate(sources):
        messages = [*head, *(m for n, size in enumerate(sizes) for m in pair(100 * index + n, size))]
        [split] = split_batch([messages], TEMPLATES[before[1]], kinds[before[0]], windows[0])
        pieces = [piece_messages(messages, piece) for piece in split.pieces]
        there += [m.content for piece in pieces for m in piece[len(head) :]]
        rows = [Row(f"x{index}_{n}", n, piece, "en", "train", ("f", index)) for n, piece in enumerate(pieces)]
        groups += [rows] if rows else []
    renderer = make_renderer(after[1], kinds[after[0]], loss=loss)
    prepared = preparation.ExamplePreparer(renderer, windows[1], ("template",)).prepare(groups)
    assert {problem.rule for _, problem in prepared.left_out} <= {"too_long"}
    named = [m.content for row, _ in prepared.left_out for m in row.messages]
    texts = [
        "".join(text for text, _ in decode_masked(renderer.tokenizer, example.ids, example.loss_mask))
        for example in prepared.examples
    ]
    manifest_for = [match[0] for text in texts for match in MESSAGE_TEXT.finditer(text)]
    assert [content for content in there if content not in named] == manifest_for, (
        "once each, in order, to its last word"
    )
    assert set(named) <= set(there)
    assert all(len(example.ids) <= windows[1] and example.loss_mask.any() for example in prepared.examples)
    assert prepared.resplit is not None and prepared.resplit.before == sum(map(len, groups))


def test_preparation_needs_only_the_training_packages() -> None:
    absent = ("polars", "msgspec", "fastokens", "sentencepiece", "torch", "transformers", "pyarrow")
    code = (
        "import sys\nimport curate.rendering.preparation, curate.rendering.renderer, curate.rendering.proof\n"
        f"print([name for name in {absent!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- real conversations


@pytest.fixture(scope="module")
def real_set(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole real dump, cleaned with LLaMA-2's tokenizer."""
    from curate import clean

    target = tmp_path_factory.mktemp("real") / "set"
    dump = shared / "data" / "sharegpt_dirty.json.gz"
    return clean([dump], target, tokenizer=str(shared / "tokenizers" / "llama2"), workers=1).output


@pytest.mark.slow
def test_no_real_conversation_fails_the_proof_with_llama2(real_set: Path, shared: Path) -> None:
    prepared = train_examples.load(real_set, load_tokenizer(str(shared / "tokenizers" / "llama2")))
    manifest = json.loads((real_set / "manifest.json").read_text())
    assert (prepared.failures, prepared.changed) == ([], None)
    assert len(prepared.train.ids) + len(prepared.eval.ids) == manifest["counts"]["tokens"]
    assert prepared.train.supervised + prepared.eval.supervised == manifest["counts"]["answer_tokens"]


@pytest.mark.slow
def test_no_real_conversation_fails_the_proof_with_llama3(real_set: Path) -> None:
    if importlib.util.find_spec("llama_models") is None:
        pytest.skip("llama-models, which ships LLaMA-3's tokenizer, is not installed")
    prepared = train_examples.load(real_set, load_tokenizer(), RenderSettings(template="llama3"))
    assert prepared.changed is not None and prepared.changed.changed > 0
    assert {failure.rule for failure in prepared.failures} <= {"too_long"}
    assert int(np.max(prepared.train.lengths)) <= 2048
    assert len(prepared.failures) == prepared.changed.rejected < 10
