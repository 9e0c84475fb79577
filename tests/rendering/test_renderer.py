"""Rendering for training: ids of the reference tokenizer, a mask that is proven, and prompts that are prefixes."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.errors import CurateError, RecipeError
from curate.rendering import proof
from curate.rendering.encode import Rows
from curate.rendering.factory import make_renderer
from curate.rendering.renderer import Renderer, Written
from curate.schemas import prompts
from curate.schemas.conversation import Message, Role
from curate.schemas.prompts import TEMPLATES
from curate.tokenization import vocabulary
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.support.tiny_tokenizers import folder, sentencepiece_model, tiktoken_file

TWO = [
    Message("user", "the dog?"),
    Message("assistant", "It sleeps."),
    Message("user", "안녕 the fox?"),
    Message("assistant", "你好。 Bye"),
]


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def with_double_newline() -> bytes:
    """A tiktoken file in which two line breaks are one token, as in LLaMA-3's."""
    plain = tiktoken_file()
    return plain + b"%s %d\n" % (base64.b64encode(b"\n\n"), len(plain.splitlines()))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Small tokenizers: each kind, and each with ids that do not tell where a token begins."""
    root = tmp_path_factory.mktemp("render")
    paths = {
        "sentencepiece": folder(root / "sp", tokenizer_model=sentencepiece_model()),
        "tiktoken": folder(root / "tik", tokenizer_model=with_double_newline()),
        "words": folder(root / "words", tokenizer_model=sentencepiece_model(lines=False)),
    }
    built = {name: load_tokenizer(str(path)) for name, path in paths.items()}
    for name, path in paths.items():
        built[f"{name}-untold"] = untold = load_tokenizer(str(path))
        untold.__dict__["byte_lengths"] = untold.__dict__["token_bytes"] = None
    return built


NAMES = ["sentencepiece", "words", "tiktoken", "sentencepiece-untold", "tiktoken-untold"]


def fits(template: str, tokenizer: Tokenizer) -> bool:
    return set(TEMPLATES[template].needs) <= set(tokenizer.control_ids)


def trained(made: Renderer, messages: list[Message]) -> list[str]:
    """Return each trained stretch, decoded, control tokens by name."""
    [one] = made.render([messages])
    out: list[list[int]] = []
    for before, token, mask in zip([False, *one.mask[:-1]], one.ids.tolist(), one.mask, strict=True):
        if mask and not before:
            out.append([])
        if mask:
            out[-1].append(token)
    pieces = made.tokenizer.token_bytes
    assert pieces is not None
    names = {token: name for name, token in made.tokenizer.control_ids.items() if name not in ("bos", "eos")}
    return ["".join(names.get(token) or pieces[token].decode() for token in stretch) for stretch in out]


# ---- what is trained on


@pytest.mark.parametrize("name", ["sentencepiece", "tiktoken"])
def test_the_answers_and_their_ends_are_trained_on(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    end = tokenizers[name].info.eos_token
    made = make_renderer("vicuna", tokenizers[name])
    assert trained(made, TWO) == [f" It sleeps.{end}", f" 你好。 Bye{end}"]
    assert made.stop_ids == (tokenizers[name].info.eos_id,)


LOSSES = [
    ("all", [" It sleeps.</s>", " 你好。 Bye</s>"]),
    ("last", [" 你好。 Bye</s>"]),
    ("roles:assistant", [" It sleeps.</s>", " 你好。 Bye</s>"]),
    ("roles:user", ["the dog?", "안녕 the fox?"]),
    ("roles:user, assistant", ["the dog?", " It sleeps.</s>", "안녕 the fox?", " 你好。 Bye</s>"]),
]


@pytest.mark.parametrize(("loss", "expected"), LOSSES, ids=[loss for loss, _ in LOSSES])
def test_the_loss_says_whose_words_count(loss: str, expected: list[str], tokenizers: dict[str, Tokenizer]) -> None:
    made = make_renderer("vicuna", tokenizers["sentencepiece"], loss=loss)
    assert trained(made, [Message("system", "Be brief."), *TWO]) == expected


def test_what_tools_say_is_trained_on_where_it_is_asked_for(tokenizers: dict[str, Tokenizer]) -> None:
    messages = [*TWO[:1], Message("assistant", "", tool_calls="[]"), Message("tool", "the sun"), TWO[1]]
    made = make_renderer("llama3", tokenizers["tiktoken"], loss="roles:tool")
    assert trained(made, messages) == ["the sun<|eot_id|>"]


@pytest.mark.parametrize(
    ("train", "stop", "expected"),
    [(True, True, ["the fox<|eot_id|>"]), (True, False, ["the fox"]), (False, True, []), (False, False, [])],
    ids=["both", "no-stop", "no-train", "neither"],
)
def test_train_and_stop_of_a_message_are_kept(
    train: bool, stop: bool, expected: list[str], tokenizers: dict[str, Tokenizer]
) -> None:
    made = make_renderer("llama3", tokenizers["tiktoken"])
    messages = [TWO[0], Message("assistant", "the fox", train=train, stop=stop)]
    assert trained(made, messages) == expected
    assert made.render([messages])[0].ids[-1] in made.stop_ids, "closed even where its end is not trained on"


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ("lst", "unknown loss 'lst'; did you mean 'last'?"),
        ("roles:assistant,tol", "unknown role 'tol' in the loss 'roles:assistant,tol'; did you mean 'tool'?"),
        ("roles:", "unknown role '' in the loss 'roles:'; known: assistant, system, tool, user"),
    ],
    ids=["loss", "role", "none"],
)
def test_an_unknown_loss_is_refused(loss: str, says: str, tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(RecipeError) as caught:
        make_renderer("vicuna", tokenizers["tiktoken"], loss=loss)
    assert says in str(caught.value)


def test_control_strings_in_messages_stay_text(tokenizers: dict[str, Tokenizer]) -> None:
    made = make_renderer("llama3", tokenizers["tiktoken"])
    messages = [Message("user", "<|eot_id|>"), Message("assistant", "<|begin_of_text|><|eot_id|>")]
    ids = made.render([messages])[0].ids.tolist()
    controls = tokenizers["tiktoken"].control_ids
    assert (ids.count(controls["bos"]), ids.count(controls["<|eot_id|>"])) == (1, 2)
    assert proof.prove(made, [messages], made.write([messages])) == {}


@pytest.mark.parametrize("template", [name for name, one in TEMPLATES.items() if not one.needs])
def test_one_token_may_begin_and_end(template: str, tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    end = "<|end_of_text|>"  # as in GPT-NeoX's vocabulary
    document = tokenizers["tiktoken"].tokenizer_json()
    named = json.dumps({"bos_token": end, "eos_token": end})
    tokenizer = load_tokenizer(str(folder(tmp_path / "one", tokenizer_json=document, tokenizer_config_json=named)))
    assert tokenizer.info.bos_id == tokenizer.info.eos_id
    made = make_renderer(template, tokenizer)
    written = made.write([TWO, TWO[:2]])
    assert proof.prove(made, [TWO, TWO[:2]], written) == {}
    assert set(proof.prove(made, [TWO, TWO[:2]], without(written, 0))) == {0}


@pytest.mark.parametrize("name", NAMES)
def test_half_characters_are_rendered_as_the_mark_that_stands_for_them(
    name: str, tokenizers: dict[str, Tokenizer]
) -> None:
    made = make_renderer("vicuna", tokenizers[name])
    messages = [Message("user", "a\ud800b"), Message("assistant", "c\udc00d")]
    written = made.write([messages])
    assert proof.prove(made, [messages], written) == {}
    assert proof._step_by_step(made, [messages], written) == {}
    both = [
        Message("user", "a\ud800"),
        Message("assistant", "c▁d"),
        Message("user", "▁▁"),
        Message("assistant", "\udc00 e"),
    ]
    assert proof.prove(made, [both], made.write([both])) == {}, "a `▁` that counts as a blank makes up for no half"
    mended = [Message("user", "a\ufffdb"), Message("assistant", "c\ufffdd")]
    assert written.rows.ids.tolist() == made.write([mended]).rows.ids.tolist()


# ---- ids


def test_a_token_that_would_reach_into_an_answer_is_cut_at_its_border(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["tiktoken"]
    [double] = tokenizer.ids(["\n\n"])[0]
    [single] = tokenizer.ids(["\n"])[0]
    made = make_renderer("chatml", tokenizer)
    messages = [Message("user", "the dog"), Message("assistant", "\nthe fox")]
    ids = made.render([messages])[0].ids.tolist()
    prompt = made.generation_prompt(messages[:1]).tolist()
    assert ids[: len(prompt)] == prompt
    assert (prompt[-1], ids[len(prompt)]) == (single, single)
    whole = prompts.text(prompts.fit(TEMPLATES["chatml"], tokenizer.control_ids), messages, bos="", eos="")
    assert tokenizer.ids([whole])[0].count(double) == ids.count(double) + 1, "one tokenisation would have joined them"
    longer = [*messages, *TWO[:2]]
    assert proof.prove(made, [longer], made.write([longer])) == {}, "it is cut in what a later answer is asked with too"


CONTENT = st.lists(
    st.sampled_from(
        ["the dog", " sleeps.", "\n", "\n\n", "  ", " ", "안녕", "é", "▁", "</s>", "<|eot_id|>", "%s", "12", ":"]
    ),
    max_size=6,
).map("".join)
ROLES: list[Role] = ["user", "assistant", "tool", "system"]
MESSAGES = st.lists(
    st.builds(
        Message,
        st.sampled_from(ROLES),
        CONTENT,
        tool_calls=st.sampled_from([None, None, '{"a": 1}']),
        train=st.booleans(),
        stop=st.booleans(),
    ),
    max_size=7,
)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    batch=st.lists(MESSAGES, max_size=3),
    template=st.sampled_from(list(TEMPLATES)),
    loss=st.sampled_from(["all", "last"]),
)
def test_every_rendering_is_proven(
    name: str, batch: list[list[Message]], template: str, loss: str, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers[name]
    if not fits(template, tokenizer):
        return
    made = make_renderer(template, tokenizer, loss=loss)
    written = made.write(batch)
    assert len(written.rows) == len(batch)
    for index, problem in proof.prove(made, batch, written).items():
        answers = [m for m in made.loss.select(batch[index]) if m.role == "assistant" and m.train]
        nothing = not any(f"{m.content}{m.tool_calls or ''}".strip() for m in answers)
        assert problem.rule == "nothing_trained" and nothing, problem


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(messages=MESSAGES, template=st.sampled_from(list(TEMPLATES)))
def test_the_generation_prompt_is_a_prefix_wherever_an_answer_follows(
    name: str, messages: list[Message], template: str, tokenizers: dict[str, Tokenizer]
) -> None:
    if not fits(template, tokenizers[name]):
        return
    made = make_renderer(template, tokenizers[name])
    ids = made.render([messages])[0].ids
    for index, message in enumerate(messages):
        if message.role == "assistant":
            prompt = made.generation_prompt(messages[:index])
            assert ids[: len(prompt)].tolist() == prompt.tolist()


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(batch=st.lists(MESSAGES, max_size=3), template=st.sampled_from(list(TEMPLATES)))
def test_the_splitter_counts_what_is_rendered(
    name: str, batch: list[list[Message]], template: str, tokenizers: dict[str, Tokenizer]
) -> None:
    if not fits(template, tokenizers[name]):
        return
    made = make_renderer(template, tokenizers[name])
    rows = made.write(batch).rows
    sizes = made.counter().sizes([(messages, True) for messages in batch])
    supervised = [int(rows.mask[start:stop].sum()) for start, stop in zip(rows.offsets, rows.offsets[1:], strict=False)]
    assert [(size.tokens, size.answers) for size in sizes] == list(zip(rows.lengths, supervised, strict=True))


# ---- the proof


def tampered(written: Written, **changes: Any) -> Written:
    parts = {"ids": written.rows.ids.copy(), "mask": written.rows.mask.copy(), "offsets": written.rows.offsets.copy()}
    return Written(Rows(**{**parts, **changes}))


def without(written: Written, place: int) -> Written:
    rows = written.rows
    offsets = rows.offsets - (rows.offsets > place)
    return Written(Rows(np.delete(rows.ids, place), np.delete(rows.mask, place), offsets))


@pytest.fixture(scope="module", params=["vicuna", "llama3"])
def proven(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> tuple[Renderer, Written]:
    made = make_renderer(request.param, tokenizers["tiktoken"])
    written = made.write([TWO, TWO])
    assert proof.prove(made, [TWO, TWO], written) == {}
    return made, written


def rules(made: Renderer, written: Written) -> dict[int, str]:
    return {index: problem.rule for index, problem in proof.prove(made, [TWO, TWO], written).items()}


def test_a_mask_of_nothing_is_found(proven: tuple[Renderer, Written]) -> None:
    made, written = proven
    assert rules(made, tampered(written, mask=np.zeros_like(written.rows.mask))) == {
        0: "nothing_trained",
        1: "nothing_trained",
    }


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_mask_off_by_one_token_is_found(shift: int, proven: tuple[Renderer, Written]) -> None:
    made, written = proven
    assert set(rules(made, tampered(written, mask=np.roll(written.rows.mask, shift)))) == {0, 1}


def test_each_single_token_of_the_mask_counts(proven: tuple[Renderer, Written]) -> None:
    made, written = proven
    border = int(written.rows.offsets[1])
    for place in range(len(written.rows.mask)):
        mask = written.rows.mask.copy()
        mask[place] = ~mask[place]
        assert set(rules(made, tampered(written, mask=mask))) == {int(place >= border)}


def test_an_answer_without_its_end_is_found(proven: tuple[Renderer, Written]) -> None:
    made, written = proven
    place = int(written.rows.offsets[1]) - 1
    assert written.rows.ids[place] in made.stop_ids
    assert rules(made, without(written, place)) == {0: "mask_differs"}


def test_an_answer_whose_end_is_not_trained_must_still_be_closed(proven: tuple[Renderer, Written]) -> None:
    made, _ = proven
    messages = [TWO[0], Message("assistant", "the fox", stop=False)]
    written = made.write([messages])
    assert proof.prove(made, [messages], written) == {}
    open_ended = without(written, len(written.rows.ids) - 1)
    assert [one.rule for one in proof.prove(made, [messages], open_ended).values()] == ["not_closed"]


def test_a_second_begin_token_is_found(proven: tuple[Renderer, Written]) -> None:
    made, written = proven
    rows = written.rows
    double = Written(
        Rows(np.insert(rows.ids, 0, rows.ids[0]), np.insert(rows.mask, 0, False), rows.offsets + (rows.offsets > 0))
    )
    assert rules(made, double) == {0: "wrong_bos"}
    assert rules(made, without(written, 0)) == {0: "wrong_bos"}


def test_a_prompt_that_is_tokenised_otherwise_is_found(proven: tuple[Renderer, Written]) -> None:
    made, written = proven
    ids = written.rows.ids.copy()
    place = int(np.flatnonzero(written.rows.mask)[0]) - 1
    ids[place] = 10 if ids[place] != 10 else 11
    assert rules(made, tampered(written, ids=ids)) == {0: "prompt_no_prefix"}
    ids = written.rows.ids.copy()
    ids[1] += 1
    assert 0 in rules(made, tampered(written, ids=ids))


EDITS = st.lists(st.tuples(st.sampled_from(["mask", "ids", "gone"]), st.integers(0, 10_000)), min_size=1, max_size=2)


@pytest.mark.parametrize("name", ["sentencepiece", "words", "tiktoken"])
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(batch=st.lists(MESSAGES, min_size=1, max_size=3), template=st.sampled_from(list(TEMPLATES)), edits=EDITS)
def test_what_is_accepted_at_once_passes_every_step(
    name: str, batch: list[list[Message]], template: str, edits: list[Any], tokenizers: dict[str, Tokenizer]
) -> None:
    if not fits(template, tokenizers[name]):
        return
    made = make_renderer(template, tokenizers[name])
    written = made.write(batch)
    for what, place in edits:
        if not len(written.rows.ids):
            return
        at = place % len(written.rows.ids)
        ids, mask = written.rows.ids.copy(), written.rows.mask.copy()
        mask[at] ^= what == "mask"
        ids[at] = ids[at - 1] if what == "ids" else ids[at]
        written = without(written, at) if what == "gone" else tampered(written, ids=ids, mask=mask)
    accepted = proof._at_once(made, batch, written)
    steps = proof._step_by_step(made, batch, written)
    assert [index for index in steps if accepted[index]] == []


def test_sound_conversations_are_accepted_at_once(tokenizers: dict[str, Tokenizer]) -> None:
    for name in ("sentencepiece", "words", "tiktoken"):
        for template in TEMPLATES:
            if fits(template, tokenizers[name]):
                made = make_renderer(template, tokenizers[name], loss="last")
                batch = [TWO, [Message("system", "Be brief."), *TWO], TWO[:2]]
                assert proof._at_once(made, batch, made.write(batch)).tolist() == [True] * 3


def test_every_rule_of_the_proof_is_explained() -> None:
    assert all(text.endswith(".") for text in proof.RULES.values())


def test_an_answer_that_cannot_be_rendered_is_said_in_one_line(tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(CurateError, match="template 'llama3' needs the control token"):
        make_renderer("llama3", tokenizers["sentencepiece"])


# ---- real conversations


def real(name: str, shared: Path) -> Tokenizer:
    if name == "llama2":
        return load_tokenizer(str(shared / "tokenizers" / "llama2"))
    if importlib.util.find_spec("llama_models") is None:
        pytest.skip("llama-models, which ships LLaMA-3's tokenizer, is not installed")
    return load_tokenizer()


def conversations(shared: Path, step: int = 1) -> list[list[Message]]:
    roles: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
    records = json.loads(gzip.decompress((shared / "data" / "source_markdown.json.gz").read_bytes()))
    return [[Message(roles[turn["from"]], turn["value"]) for turn in one["conversations"]] for one in records[::step]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2", "llama3"])
@pytest.mark.parametrize("template", list(TEMPLATES))
def test_real_conversations_have_the_references_ids(name: str, template: str, shared: Path) -> None:
    tokenizer = real(name, shared)
    if not fits(template, tokenizer):
        return
    reference = vocabulary.read(Path(tokenizer.info.source).read_bytes(), name).reference
    fitted = prompts.fit(TEMPLATES[template], tokenizer.control_ids)
    batch = conversations(shared, 160)
    for messages, one in zip(batch, make_renderer(template, tokenizer).render(batch), strict=True):
        expected: list[int] = []
        run = ""
        for segment in [*prompts.render(fitted, messages), None]:
            if segment is not None and segment.control is None:
                run += segment.text
                continue
            expected += reference(run) if run else []
            expected += [tokenizer.control_ids[segment.control]] if segment is not None and segment.control else []
            run = ""
        assert one.ids.tolist() == expected


@pytest.mark.slow
def test_llama3s_ids_are_tiktokens_for_the_whole_text(shared: Path) -> None:
    import tiktoken

    tokenizer = real("llama3", shared)
    ranks = {
        base64.b64decode(token): int(rank)
        for token, rank in (line.split() for line in Path(tokenizer.info.source).read_bytes().splitlines())
    }
    controls = {name: token for name, token in tokenizer.control_ids.items() if name not in ("bos", "eos")}
    whole = tiktoken.Encoding(
        "llama3", pat_str=vocabulary.LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=controls
    )
    batch = [one for one in conversations(shared, 40) if not any("<|" in message.content for message in one)]
    for messages, one in zip(batch, make_renderer("llama3", tokenizer).render(batch), strict=True):
        text = prompts.text(TEMPLATES["llama3"], messages, bos="<|begin_of_text|>")
        assert one.ids.tolist() == whole.encode(text, allowed_special="all")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "template"), [("llama2", "vicuna"), ("llama2", "llama2"), ("llama3", "llama3")])
def test_real_conversations_are_proven(name: str, template: str, shared: Path) -> None:
    made = make_renderer(template, real(name, shared))
    batch = [one for one in conversations(shared, 4) if any(m.role == "assistant" and m.content for m in one)]
    assert len(batch) > 1500
    assert proof.prove(made, batch, made.write(batch)) == {}


def test_the_page_on_the_mask_tells_every_rule_of_the_proof_in_its_own_words() -> None:
    text = (Path(__file__).parents[2] / "docs/mask.md").read_text("utf-8")
    assert [rule for rule, says in proof.RULES.items() if f"| `{rule}` | {says} |" not in text] == []
