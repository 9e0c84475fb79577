"""Control tokens that take in white space, such as Phi-3's, are rendered as a server reads them, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from curate.dataset.arrow import Row
from curate.errors import RecipeError
from curate.model import serving
from curate.rendering import proof
from curate.rendering.chat_template.environment import message_dicts
from curate.rendering.chat_template.renderer import JinjaRenderer
from curate.rendering.factory import make_renderer
from curate.rendering.preparation import ExamplePreparer
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.model.test_model_folder import SYSTEM, TWO_EXCHANGES
from tests.support.tiny_tokenizers import double_newline_tiktoken, folder, sentencepiece_model

# Written after Phi-3's and Phi-4's published formats.
PHI3 = """{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""
PHI4 = """{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>\\n' + m.content + '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>\\n' }}{% endif %}"""
MISTRAL = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}
{%- else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""
ROLES = ("<|user|>", "<|system|>", "<|assistant|>", "<|end|>")
IM = ("<|im_start|>", "<|im_sep|>", "<|im_end|>")
CONVERSATIONS = {
    "plain": TWO_EXCHANGES,
    "system": [SYSTEM, *TWO_EXCHANGES],
    "white space": [
        Message("user", "  x\n"),
        Message("assistant", "\tdef f():\n        return 1\n"),
        Message("user", "\u3000y\u00a0"),
        Message("assistant", " z "),
    ],
}


def load(root: Path, vocabulary: str, names: tuple[str, ...], **flags: bool) -> Tokenizer:
    """Return a small tokenizer with these control tokens, which have these flags of `AddedToken`."""
    model = sentencepiece_model() if vocabulary == "sentencepiece" else double_newline_tiktoken()
    plain = load_tokenizer(str(folder(root / "plain", tokenizer_model=model)))
    document = json.loads(plain.tokenizer_json())
    entry = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **flags}
    document["added_tokens"] += [
        {**entry, "id": plain.info.vocab_size + at, "content": name} for at, name in enumerate(names)
    ]
    ends = json.dumps({"bos_token": plain.info.bos_token, "eos_token": names[-1]})
    path = folder(root / "own", tokenizer_json=json.dumps(document), tokenizer_config_json=ends)
    return load_tokenizer(str(path))


def set_metaspace(path: Path, scheme: str) -> None:
    """Let a tokenizer put a space before texts by this scheme of the tokenizers library."""
    document = json.loads((path / "tokenizer.json").read_text("utf-8"))
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    document |= {"normalizer": None, "pre_tokenizer": metaspace}
    (path / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    (path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')


class Server:
    """The ids that transformers makes of a template's text."""

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        folder_name = Path(tokenizer.info.source).parent
        self.template = template
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder_name, local_files_only=True)

    def __call__(self, messages: list[Message], *, asks: bool = False) -> list[int]:
        encoded = self.tokenizer.apply_chat_template(
            message_dicts(messages), chat_template=self.template, add_generation_prompt=asks, return_dict=True
        )
        return [int(token) for token in encoded["input_ids"]]


@pytest.mark.parametrize(
    ("template", "names", "vocabulary", "flags"),
    [
        pytest.param(PHI3, ROLES, "sentencepiece", ["rstrip"], id="phi3"),
        pytest.param(PHI3, ROLES, "tiktoken", ["lstrip"], id="left"),
        pytest.param(PHI4, IM, "tiktoken", ["lstrip", "rstrip"], id="phi4"),
        pytest.param(None, IM, "sentencepiece", ["lstrip", "rstrip"], id="chatml"),
        pytest.param(None, IM, "tiktoken", ["rstrip"], id="chatml-right"),
    ],
)
def test_ids_are_those_of_the_served_text(
    tmp_path: Path, template: str | None, names: tuple[str, ...], vocabulary: str, flags: list[str]
) -> None:
    tokenizer = load(tmp_path, vocabulary, names, **dict.fromkeys(flags, True))
    renderer = make_renderer("chatml", tokenizer, chat_template=template)
    assert isinstance(renderer, JinjaRenderer)
    served = Server(tokenizer, renderer.chat_template)
    for kind, messages in CONVERSATIONS.items():
        prepared = ExamplePreparer(renderer, 8_192).prepare([[Row(kind, 0, messages, None, "train", ("f", 0))]])
        [example] = prepared.examples
        ids = example.ids.tolist()
        assert ids == served(messages), kind
        for index, message in enumerate(messages):
            if message.role == "assistant":
                prompt = served(messages[:index], asks=True)
                assert ids[: len(prompt)] == prompt
                assert example.loss_mask[len(prompt)] and not example.loss_mask[len(prompt) - 1]
        trained = tokenizer.decode(example.ids[example.loss_mask].tolist())
        answers = [message.content.strip() for message in messages if message.role == "assistant"]
        assert [part.strip() for part in trained.split(names[-1])[: len(answers)]] == answers


@pytest.mark.parametrize(("template", "names"), [(PHI3, ROLES), (PHI4, IM)], ids=["phi3", "phi4"])
def test_white_space_next_to_a_control_string_in_a_message_stays(
    tmp_path: Path, template: str, names: tuple[str, ...]
) -> None:
    tokenizer = load(tmp_path, "tiktoken", names, lstrip=True, rstrip=True)
    renderer = make_renderer("any", tokenizer, chat_template=template)
    text = f"a {names[0]} b\n{names[-1]}\n c{names[1]}"
    messages = [Message("user", text), Message("assistant", text), Message("user", "x"), Message("assistant", "y")]
    rendered = renderer.render_batch([messages])
    assert proof.prove(renderer, [messages], rendered) == {}
    ids = rendered.encoded.ids[rendered.encoded.loss_mask].tolist()
    assert tokenizer.decode(ids) == f"{text}{names[-1]}y{names[-1]}"
    assert tokenizer.decode(rendered.encoded.ids.tolist()).count(text) == 2


@pytest.mark.parametrize("template", [MISTRAL, None], ids=["mistral", "vicuna"])
def test_no_space_is_put_before_a_text_after_a_control_token_where_a_server_puts_none(
    tmp_path: Path, template: str | None
) -> None:
    """The tokenizers of LLaMA-2 and Mistral are such where their `legacy` is false."""
    load(tmp_path, "sentencepiece", ("[INST]", "[/INST]"))
    set_metaspace(tmp_path / "own", "first")
    tokenizer = load_tokenizer(str(tmp_path / "own"))
    renderer = make_renderer("vicuna", tokenizer, chat_template=template)
    served = Server(tokenizer, template or serving.from_template(tokenizer, "vicuna").chat_template)
    for messages in (TWO_EXCHANGES, [Message("user", " x"), Message("assistant", "y  z")]):
        rendered = renderer.render_batch([messages])
        assert proof.prove(renderer, [messages], rendered) == {}
        assert rendered.encoded.ids.tolist() == served(messages)
        prompt = served(messages[:-1], asks=True)
        assert rendered.encoded.ids[: len(prompt)].tolist() == prompt


@pytest.mark.parametrize("template", [PHI3, PHI4, MISTRAL, None], ids=["phi3", "phi4", "mistral", "vicuna"])
def test_a_space_that_the_tokenizer_cannot_tell_from_its_own_is_not_a_changed_answer(
    tmp_path: Path, template: str | None
) -> None:
    """Metaspace puts a space before each text after a control token, unless it has one: both have the same ids."""
    load(tmp_path, "sentencepiece", (*ROLES, *IM, "[INST]", "[/INST]"))
    set_metaspace(tmp_path / "own", "always")
    tokenizer = load_tokenizer(str(tmp_path / "own"))
    renderer = make_renderer("vicuna", tokenizer, chat_template=template)
    served = Server(tokenizer, template or serving.from_template(tokenizer, "vicuna").chat_template)
    for text in (" z", "z", "  z", " ", "\n z ", " <|end|> z"):
        messages = [Message("user", " x"), Message("assistant", text), Message("user", "y"), Message("assistant", text)]
        rendered = renderer.render_batch([messages])
        assert proof.prove(renderer, [messages], rendered) == {}, text
        ids, prompt = rendered.encoded.ids.tolist(), served(messages[:-1], asks=True)
        if "<|" not in text:
            assert ids[: len(prompt)] == prompt or not template
            # Vicuna's prompt ends in a text, and no token joins that and the answer.
            assert ids == served(messages) or (not template and text[0].isspace())


def test_a_template_whose_tokens_a_server_does_not_read_is_refused_with_the_cause(tmp_path: Path) -> None:
    template = PHI3.replace("\\n", "")
    tokenizer = load(tmp_path, "sentencepiece", ROLES, single_word=True)
    cause = r"`single_word`: it is no token next to a letter or digit"
    with pytest.raises(RecipeError, match=rf"differently by a server, because .*{cause}"):
        make_renderer("any", tokenizer, chat_template=template)


@pytest.mark.parametrize("template", [MISTRAL, None], ids=["mistral", "vicuna"])
def test_an_end_token_that_is_looked_for_in_normalized_text_is_a_token_to_the_server_of_the_result(
    tmp_path: Path, template: str | None
) -> None:
    """Older conversions of LLaMA-2 and Vicuna have `normalized` on `</s>`."""
    load(tmp_path, "sentencepiece", ("[INST]", "[/INST]"))
    base, result = tmp_path / "own", tmp_path / "result"
    document = json.loads((base / "tokenizer.json").read_text("utf-8"))
    for token in document["added_tokens"]:
        token["normalized"] = True
    (base / "tokenizer.json").write_text(json.dumps(document, separators=(",", ":")), "utf-8")
    pad = {"__type": "AddedToken", "content": "</s>", "normalized": True}
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": pad, "tokenizer_class": "PreTrainedTokenizerFast"}
    (base / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    assert 2 not in AutoTokenizer.from_pretrained(base, local_files_only=True)("It is.</s>")["input_ids"]

    tokenizer = load_tokenizer(str(base))
    renderer = make_renderer("vicuna", tokenizer, chat_template=template)
    prompt_format = (
        serving.from_chat_template(tokenizer, template, renderer.stop_ids)
        if template
        else serving.from_template(tokenizer, "vicuna")
    )
    result.mkdir()
    note = serving.Note("model", "base", "full", None if template else "vicuna")
    serving.write_files(result, prompt_format, note, positions=2048, origin=base)
    served = Server(load_tokenizer(str(result)), prompt_format.chat_template)
    rendered = renderer.render_batch([TWO_EXCHANGES])
    assert proof.prove(renderer, [TWO_EXCHANGES], rendered) == {}
    assert rendered.encoded.ids.tolist() == served(TWO_EXCHANGES)
