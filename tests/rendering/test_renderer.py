"""Rendering for training: ids of the reference tokenizer, a proven mask, and prompts that are prefixes."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.errors import CurateError, RecipeError
from curate.rendering import proof
from curate.rendering.encoding import EncodedBatch
from curate.rendering.factory import make_renderer
from curate.rendering.renderer import RenderedBatch, Renderer
from curate.schemas import prompts
from curate.schemas.conversation import Message, Role
from curate.schemas.prompts import TEMPLATES
from curate.tokenization import vocabulary
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.support.tiny_tokenizers import double_newline_tiktoken, folder, sentencepiece_model

TWO = [
    Message("user", "the dog?"),
    Message("assistant", "It sleeps."),
    Message("user", "안녕 the fox?"),
    Message("assistant", "你好。 Bye"),
]


pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Return small tokenizers of each kind, with and without known byte lengths of tokens."""
    root = tmp_path_factory.mktemp("render")
    paths = {
        "sentencepiece": folder(root / "sp", tokenizer_model=sentencepiece_model()),
        "tiktoken": folder(root / "tik", tokenizer_model=double_newline_tiktoken()),
        "words": folder(root / "words", tokenizer_model=sentencepiece_model(lines=False)),
    }
    built = {name: load_tokenizer(str(path)) for name, path in paths.items()}
    for name, path in paths.items():
        built[f"{name}-without-lengths"] = untold = load_tokenizer(str(path))
        untold.__dict__["byte_lengths"] = untold.__dict__["token_bytes"] = None
    return built


NAMES = ["sentencepiece", "words", "tiktoken", "sentencepiece-without-lengths", "tiktoken-without-lengths"]


def fits(template: str, tokenizer: Tokenizer) -> bool:
    return set(TEMPLATES[template].needs) <= set(tokenizer.control_ids)


def trained(renderer: Renderer, messages: list[Message]) -> list[str]:
    """Return each trained span, decoded, with control tokens by name."""
    [rendered] = renderer.render([messages])
    out: list[list[int]] = []
    for before, token, mask in zip(
        [False, *rendered.loss_mask[:-1]], rendered.ids.tolist(), rendered.loss_mask, strict=True
    ):
        if mask and not before:
            out.append([])
        if mask:
            out[-1].append(token)
    pieces = renderer.tokenizer.token_bytes
    assert pieces is not None
    names = {token: name for name, token in renderer.tokenizer.control_ids.items() if name not in ("bos", "eos")}
    return ["".join(names.get(token) or pieces[token].decode() for token in span) for span in out]


# ---- what is trained on


@pytest.mark.parametrize("name", ["sentencepiece", "tiktoken"])
def test_the_answers_and_their_ends_are_trained_on(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    end = tokenizers[name].info.eos_token
    renderer = make_renderer("vicuna", tokenizers[name])
    assert trained(renderer, TWO) == [f" It sleeps.{end}", f" 你好。 Bye{end}"]
    assert renderer.stop_ids == (tokenizers[name].info.eos_id,)


LOSSES = [
    ("all", [" It sleeps.</s>", " 你好。 Bye</s>"]),
    ("last", [" 你好。 Bye</s>"]),
    ("roles:assistant", [" It sleeps.</s>", " 你好。 Bye</s>"]),
    ("roles:user", ["the dog?", "안녕 the fox?"]),
    ("roles:user, assistant", ["the dog?", " It sleeps.</s>", "안녕 the fox?", " 你好。 Bye</s>"]),
]


@pytest.mark.parametrize(("loss", "expected"), LOSSES, ids=[loss for loss, _ in LOSSES])
def test_the_loss_setting_selects_the_trained_messages(
    loss: str, expected: list[str], tokenizers: dict[str, Tokenizer]
) -> None:
    renderer = make_renderer("vicuna", tokenizers["sentencepiece"], loss=loss)
    assert trained(renderer, [Message("system", "Be brief."), *TWO]) == expected


def test_tool_messages_are_trained_on_on_request(tokenizers: dict[str, Tokenizer]) -> None:
    messages = [*TWO[:1], Message("assistant", "", tool_calls="[]"), Message("tool", "the sun"), TWO[1]]
    renderer = make_renderer("llama3", tokenizers["tiktoken"], loss="roles:tool")
    assert trained(renderer, messages) == ["the sun<|eot_id|>"]


@pytest.mark.parametrize(
    ("train", "stop", "expected"),
    [(True, True, ["the fox<|eot_id|>"]), (True, False, ["the fox"]), (False, True, []), (False, False, [])],
    ids=["both", "no-stop", "no-train", "neither"],
)
def test_train_and_stop_of_a_message_are_respected(
    train: bool, stop: bool, expected: list[str], tokenizers: dict[str, Tokenizer]
) -> None:
    renderer = make_renderer("llama3", tokenizers["tiktoken"])
    messages = [TWO[0], Message("assistant", "the fox", train=train, stop=stop)]
    assert trained(renderer, messages) == expected
    assert renderer.render([messages])[0].ids[-1] in renderer.stop_ids, "closed even where its end is not trained on"


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
    renderer = make_renderer("llama3", tokenizers["tiktoken"])
    messages = [Message("user", "<|eot_id|>"), Message("assistant", "<|begin_of_text|><|eot_id|>")]
    ids = renderer.render([messages])[0].ids.tolist()
    controls = tokenizers["tiktoken"].control_ids
    assert (ids.count(controls["bos"]), ids.count(controls["<|eot_id|>"])) == (1, 2)
    assert proof.prove(renderer, [messages], renderer.render_batch([messages])) == {}


@pytest.mark.parametrize("template", [name for name, template in TEMPLATES.items() if not template.needs])
def test_one_token_may_be_both_begin_and_end_token(
    template: str, tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    end = "<|end_of_text|>"  # as in GPT-NeoX's vocabulary
    document = tokenizers["tiktoken"].tokenizer_json()
    named = json.dumps({"bos_token": end, "eos_token": end})
    tokenizer = load_tokenizer(str(folder(tmp_path / "one", tokenizer_json=document, tokenizer_config_json=named)))
    assert tokenizer.info.bos_id == tokenizer.info.eos_id
    renderer = make_renderer(template, tokenizer)
    rendered = renderer.render_batch([TWO, TWO[:2]])
    assert proof.prove(renderer, [TWO, TWO[:2]], rendered) == {}
    assert set(proof.prove(renderer, [TWO, TWO[:2]], without(rendered, 0))) == {0}


@pytest.mark.parametrize("name", NAMES)
def test_lone_surrogates_are_rendered_as_the_replacement_character(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    renderer = make_renderer("vicuna", tokenizers[name])
    messages = [Message("user", "a\ud800b"), Message("assistant", "c\udc00d")]
    rendered = renderer.render_batch([messages])
    assert proof.prove(renderer, [messages], rendered) == {}
    assert proof.prove_stepwise(renderer, [messages], rendered) == {}
    both = [
        Message("user", "a\ud800"),
        Message("assistant", "c▁d"),
        Message("user", "▁▁"),
        Message("assistant", "\udc00 e"),
    ]
    assert proof.prove(renderer, [both], renderer.render_batch([both])) == {}, (
        "a `▁` that counts as a blank makes up for no half"
    )
    mended = [Message("user", "a\ufffdb"), Message("assistant", "c\ufffdd")]
    assert rendered.encoded.ids.tolist() == renderer.render_batch([mended]).encoded.ids.tolist()


# ---- ids


def test_a_token_across_the_start_of_an_answer_is_split(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["tiktoken"]
    [double] = tokenizer.ids(["\n\n"])[0]
    [single] = tokenizer.ids(["\n"])[0]
    renderer = make_renderer("chatml", tokenizer)
    messages = [Message("user", "the dog"), Message("assistant", "\nthe fox")]
    ids = renderer.render([messages])[0].ids.tolist()
    prompt = renderer.generation_prompt(messages[:1]).tolist()
    assert ids[: len(prompt)] == prompt
    assert (prompt[-1], ids[len(prompt)]) == (single, single)
    text = prompts.text(prompts.fit(TEMPLATES["chatml"], tokenizer.control_ids), messages, bos="", eos="")
    assert tokenizer.ids([text])[0].count(double) == ids.count(double) + 1, "one tokenisation would have joined them"
    longer = [*messages, *TWO[:2]]
    assert proof.prove(renderer, [longer], renderer.render_batch([longer])) == {}, (
        "it is cut in what a later answer is asked with too"
    )


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
    renderer = make_renderer(template, tokenizer, loss=loss)
    rendered = renderer.render_batch(batch)
    assert len(rendered.encoded) == len(batch)
    for index, problem in proof.prove(renderer, batch, rendered).items():
        answers = [m for m in renderer.loss.apply(batch[index]) if m.role == "assistant" and m.train]
        nothing = not any(f"{m.content}{m.tool_calls or ''}".strip() for m in answers)
        assert problem.rule == "nothing_trained" and nothing, problem


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(messages=MESSAGES, template=st.sampled_from(list(TEMPLATES)))
def test_the_generation_prompt_is_a_prefix_before_every_answer(
    name: str, messages: list[Message], template: str, tokenizers: dict[str, Tokenizer]
) -> None:
    if not fits(template, tokenizers[name]):
        return
    renderer = make_renderer(template, tokenizers[name])
    ids = renderer.render([messages])[0].ids
    for index, message in enumerate(messages):
        if message.role == "assistant":
            prompt = renderer.generation_prompt(messages[:index])
            assert ids[: len(prompt)].tolist() == prompt.tolist()


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(batch=st.lists(MESSAGES, max_size=3), template=st.sampled_from(list(TEMPLATES)))
def test_the_splitter_counts_the_rendered_tokens(
    name: str, batch: list[list[Message]], template: str, tokenizers: dict[str, Tokenizer]
) -> None:
    if not fits(template, tokenizers[name]):
        return
    renderer = make_renderer(template, tokenizers[name])
    encoded = renderer.render_batch(batch).encoded
    sizes = renderer.counter().sizes([(messages, True) for messages in batch])
    supervised = [
        int(encoded.loss_mask[start:stop].sum())
        for start, stop in zip(encoded.offsets, encoded.offsets[1:], strict=False)
    ]
    assert [(size.tokens, size.answer_tokens) for size in sizes] == list(zip(encoded.lengths, supervised, strict=True))


# ---- the proof


def tampered(rendered: RenderedBatch, **changes: Any) -> RenderedBatch:
    parts = {
        "ids": rendered.encoded.ids.copy(),
        "loss_mask": rendered.encoded.loss_mask.copy(),
        "offsets": rendered.encoded.offsets.copy(),
    }
    return RenderedBatch(EncodedBatch(**{**parts, **changes}))


def without(rendered: RenderedBatch, index: int) -> RenderedBatch:
    encoded = rendered.encoded
    offsets = encoded.offsets - (encoded.offsets > index)
    return RenderedBatch(EncodedBatch(np.delete(encoded.ids, index), np.delete(encoded.loss_mask, index), offsets))


@pytest.fixture(scope="module", params=["vicuna", "llama3"])
def proven(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> tuple[Renderer, RenderedBatch]:
    renderer = make_renderer(request.param, tokenizers["tiktoken"])
    rendered = renderer.render_batch([TWO, TWO])
    assert proof.prove(renderer, [TWO, TWO], rendered) == {}
    return renderer, rendered


def rules(renderer: Renderer, rendered: RenderedBatch) -> dict[int, str]:
    return {index: problem.rule for index, problem in proof.prove(renderer, [TWO, TWO], rendered).items()}


def test_an_empty_mask_is_detected(proven: tuple[Renderer, RenderedBatch]) -> None:
    renderer, rendered = proven
    assert rules(renderer, tampered(rendered, loss_mask=np.zeros_like(rendered.encoded.loss_mask))) == {
        0: "nothing_trained",
        1: "nothing_trained",
    }


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_mask_off_by_one_token_is_detected(shift: int, proven: tuple[Renderer, RenderedBatch]) -> None:
    renderer, rendered = proven
    assert set(rules(renderer, tampered(rendered, loss_mask=np.roll(rendered.encoded.loss_mask, shift)))) == {0, 1}


def test_each_single_token_of_the_mask_counts(proven: tuple[Renderer, RenderedBatch]) -> None:
    renderer, rendered = proven
    border = int(rendered.encoded.offsets[1])
    for index in range(len(rendered.encoded.loss_mask)):
        mask = rendered.encoded.loss_mask.copy()
        mask[index] = ~mask[index]
        assert set(rules(renderer, tampered(rendered, loss_mask=mask))) == {int(index >= border)}


def test_an_answer_without_its_stop_token_is_detected(proven: tuple[Renderer, RenderedBatch]) -> None:
    renderer, rendered = proven
    index = int(rendered.encoded.offsets[1]) - 1
    assert rendered.encoded.ids[index] in renderer.stop_ids
    assert rules(renderer, without(rendered, index)) == {0: "mask_differs"}


def test_an_untrained_stop_token_must_still_be_present(proven: tuple[Renderer, RenderedBatch]) -> None:
    renderer, _ = proven
    messages = [TWO[0], Message("assistant", "the fox", stop=False)]
    rendered = renderer.render_batch([messages])
    assert proof.prove(renderer, [messages], rendered) == {}
    open_ended = without(rendered, len(rendered.encoded.ids) - 1)
    assert [problem.rule for problem in proof.prove(renderer, [messages], open_ended).values()] == ["not_closed"]


def test_a_second_begin_token_is_detected(proven: tuple[Renderer, RenderedBatch]) -> None:
    renderer, rendered = proven
    encoded = rendered.encoded
    double = RenderedBatch(
        EncodedBatch(
            np.insert(encoded.ids, 0, encoded.ids[0]),
            np.insert(encoded.loss_mask, 0, False),
            encoded.offsets + (encoded.offsets > 0),
        )
    )
    assert rules(renderer, double) == {0: "wrong_bos"}
    assert rules(renderer, without(rendered, 0)) == {0: "wrong_bos"}


def test_a_differently_tokenised_prompt_is_detected(proven: tuple[Renderer, RenderedBatch]) -> None:
    renderer, rendered = proven
    ids = rendered.encoded.ids.copy()
    index = int(np.flatnonzero(rendered.encoded.loss_mask)[0]) - 1
    ids[index] = 10 if ids[index] != 10 else 11
    assert rules(renderer, tampered(rendered, ids=ids)) == {0: "prompt_no_prefix"}
    ids = rendered.encoded.ids.copy()
    ids[1] += 1
    assert 0 in rules(renderer, tampered(rendered, ids=ids))


EDITS = st.lists(st.tuples(st.sampled_from(["mask", "ids", "gone"]), st.integers(0, 10_000)), min_size=1, max_size=2)


@pytest.mark.parametrize("name", ["sentencepiece", "words", "tiktoken"])
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(batch=st.lists(MESSAGES, min_size=1, max_size=3), template=st.sampled_from(list(TEMPLATES)), edits=EDITS)
def test_the_fast_check_accepts_only_what_passes_every_step(
    name: str, batch: list[list[Message]], template: str, edits: list[Any], tokenizers: dict[str, Tokenizer]
) -> None:
    if not fits(template, tokenizers[name]):
        return
    renderer = make_renderer(template, tokenizers[name])
    rendered = renderer.render_batch(batch)
    for kind, number in edits:
        if not len(rendered.encoded.ids):
            return
        at = number % len(rendered.encoded.ids)
        ids, mask = rendered.encoded.ids.copy(), rendered.encoded.loss_mask.copy()
        mask[at] ^= kind == "mask"
        ids[at] = ids[at - 1] if kind == "ids" else ids[at]
        rendered = without(rendered, at) if kind == "gone" else tampered(rendered, ids=ids, loss_mask=mask)
    accepted = proof._accept_fast(renderer, batch, rendered)
    steps = proof.prove_stepwise(renderer, batch, rendered)
    assert [index for index in steps if accepted[index]] == []


def test_sound_conversations_pass_the_fast_check(tokenizers: dict[str, Tokenizer]) -> None:
    for name in ("sentencepiece", "words", "tiktoken"):
        for template in TEMPLATES:
            if fits(template, tokenizers[name]):
                renderer = make_renderer(template, tokenizers[name], loss="last")
                batch = [TWO, [Message("system", "Be brief."), *TWO], TWO[:2]]
                assert proof._accept_fast(renderer, batch, renderer.render_batch(batch)).tolist() == [True] * 3


def test_every_rule_of_the_proof_is_explained() -> None:
    assert all(text.endswith(".") for text in proof.RULES.values())


def test_an_answer_that_cannot_be_rendered_gets_one_clear_line(tokenizers: dict[str, Tokenizer]) -> None:
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
    return [
        [Message(roles[turn["from"]], turn["value"]) for turn in record["conversations"]] for record in records[::step]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2", "llama3"])
@pytest.mark.parametrize("template", list(TEMPLATES))
def test_real_conversations_have_the_ids_of_the_reference(name: str, template: str, shared: Path) -> None:
    tokenizer = real(name, shared)
    if not fits(template, tokenizer):
        return
    reference = vocabulary.read(Path(tokenizer.info.source).read_bytes(), name).reference
    fitted = prompts.fit(TEMPLATES[template], tokenizer.control_ids)
    batch = conversations(shared, 160)
    for messages, rendered in zip(batch, make_renderer(template, tokenizer).render(batch), strict=True):
        expected: list[int] = []
        run = ""
        for segment in [*prompts.render(fitted, messages), None]:
            if segment is not None and segment.control is None:
                run += segment.text
                continue
            expected += reference(run) if run else []
            expected += [tokenizer.control_ids[segment.control]] if segment is not None and segment.control else []
            run = ""
        assert rendered.ids.tolist() == expected


@pytest.mark.slow
def test_llama3_ids_equal_tiktoken_on_the_whole_text(shared: Path) -> None:
    import tiktoken

    tokenizer = real("llama3", shared)
    ranks = {
        base64.b64decode(token): int(rank)
        for token, rank in (line.split() for line in Path(tokenizer.info.source).read_bytes().splitlines())
    }
    controls = {name: token for name, token in tokenizer.control_ids.items() if name not in ("bos", "eos")}
    encoding = tiktoken.Encoding(
        "llama3", pat_str=vocabulary.LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=controls
    )
    batch = [
        conversation
        for conversation in conversations(shared, 40)
        if not any("<|" in message.content for message in conversation)
    ]
    for messages, rendered in zip(batch, make_renderer("llama3", tokenizer).render(batch), strict=True):
        text = prompts.text(TEMPLATES["llama3"], messages, bos="<|begin_of_text|>")
        assert rendered.ids.tolist() == encoding.encode(text, allowed_special="all")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "template"), [("llama2", "vicuna"), ("llama2", "llama2"), ("llama3", "llama3")])
def test_real_conversations_are_proven(name: str, template: str, shared: Path) -> None:
    renderer = make_renderer(template, real(name, shared))
    batch = [
        conversation
        for conversation in conversations(shared, 4)
        if any(m.role == "assistant" and m.content for m in conversation)
    ]
    assert len(batch) > 1500
    assert proof.prove(renderer, batch, renderer.render_batch(batch)) == {}


def test_the_page_on_the_mask_describes_every_rule_of_the_proof() -> None:
    text = (Path(__file__).parents[2] / "docs/mask.md").read_text("utf-8")
    assert [rule for rule, says in proof.RULES.items() if f"| `{rule}` | {says} |" not in text] == []
