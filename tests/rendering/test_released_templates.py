"""Chat templates of released models (shipped with TRL) are rendered as in transformers, or refused with a reason."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from curate.errors import RecipeError
from curate.rendering import jinja_env, proof
from curate.rendering.factory import make_renderer
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.model.test_model_folder import SYSTEM, TOOL_TALK, TWO_EXCHANGES
from tests.rendering.test_renderer import with_double_newline
from tests.support.tiny_tokenizers import folder

CONTROL = re.compile(r"<[|｜][^<>|｜\s]+[|｜]>|<bos>|<eos>|<start_of_turn>|<end_of_turn>|\[gMASK\]|<sop>")
ENDS = {  # the end token that each model's configuration names
    "llama3": "<|eot_id|>",
    "llama3_training": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "llama3_2": "<|eot_id|>",
    "qwen2_5": "<|im_end|>",
    "qwen2_5_training": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_training": "<|im_end|>",
    "qwen3_instruct_2507_training": "<|im_end|>",
    "qwen3_5_nothink_training": "<|im_end|>",
    "lfm2_training": "<|im_end|>",
    "nemotron_3_nano": "<|im_end|>",
    "phi3": "<|endoftext|>",
    "phi3_training": "<|end|>",
    "gemma": "<end_of_turn>",
    "gemma3_training": "<end_of_turn>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2_training": "<|END_OF_TURN_TOKEN|>",
    "deepseekv3": "<｜end▁of▁sentence｜>",
    "glm4moe": "<|endoftext|>",
    "gptoss": "<|return|>",
}
THINKING = [TWO_EXCHANGES[0], Message("assistant", "<think>\nhm\n</think>\n\nYes."), *TWO_EXCHANGES[2:]]
CONVERSATIONS = {"two": TWO_EXCHANGES, "system": [SYSTEM, *TWO_EXCHANGES], "calls": TOOL_TALK, "thinking": THINKING}
# Why conversations are refused, by conversation or for `all` of them.
REFUSED = {
    "llama3_1": {"calls": "template_refuses"},  # one call at a time
    "llama3_2": {"calls": "template_refuses"},
    "qwen3": {"thinking": "template_rewrites"},  # takes the thoughts out of all but the last answer
    "qwen3_training": {"thinking": "template_rewrites"},
    "qwen3_5_nothink_training": {"thinking": "template_rewrites"},
    "nemotron_3_nano": {
        **dict.fromkeys(("two", "system", "calls"), "prompt_no_prefix"),  # asks with an open thought
        "thinking": "template_rewrites",
    },
    "gemma": {"system": "template_refuses", "calls": "template_refuses"},
    "gemma3_training": {"calls": "template_refuses"},
    "cohere": {"calls": "template_refuses"},
    "cohere2_training": {"calls": "template_refuses"},
    "deepseekv3": {
        **dict.fromkeys(("two", "system"), "prompt_no_prefix"),
        "calls": "template_refuses",
        "thinking": "template_rewrites",
    },
    "gptoss": dict.fromkeys(
        ("two", "system", "calls", "thinking"), "mask_differs"
    ),  # earlier answers end differently from the last one
}


pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def templates() -> dict[str, str]:
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("TRL, which ships released chat templates, is not installed")
    files = Path(spec.origin).parent / "chat_templates"
    return {name: (files / f"{name}.jinja").read_text("utf-8") for name in ENDS if (files / f"{name}.jinja").is_file()}


@pytest.fixture(scope="module")
def tokenizers(templates: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Return a vocabulary with the control tokens of all templates, for each end token."""
    root = tmp_path_factory.mktemp("released")
    plain = load_tokenizer(str(folder(root / "plain", tokenizer_model=with_double_newline())))
    document = json.loads(plain.tokenizer_json())
    named = {"<bos>", *ENDS.values(), *(name for text in templates.values() for name in CONTROL.findall(text))}
    document["added_tokens"] += [
        {**document["added_tokens"][-1], "id": plain.info.vocab_size + at, "content": name, "special": True}
        for at, name in enumerate(sorted(named - set(plain.control_ids)))
    ]
    loaded = {}
    for number, end in enumerate(sorted(set(ENDS.values()))):
        ends = json.dumps({"bos_token": "<bos>" if "turn" in end else "<|begin_of_text|>", "eos_token": end})
        path = folder(root / str(number), tokenizer_json=json.dumps(document), tokenizer_config_json=ends)
        loaded[end] = load_tokenizer(str(path))
    return loaded


def served(tokenizer: Tokenizer, template: str, messages: list[Message]) -> tuple[list[int], list[int] | None]:
    """Return the ids of transformers, and its mask if the template marks generated text."""
    from transformers import AutoTokenizer

    fast: Any = AutoTokenizer.from_pretrained(Path(tokenizer.info.source).parent, local_files_only=True)
    marked = re.search(r"\{%-?\s*generation", template) is not None
    encoded = fast.apply_chat_template(
        jinja_env.message_dicts(messages), chat_template=template, return_dict=True, return_assistant_tokens_mask=marked
    )
    return encoded["input_ids"], encoded["assistant_masks"] if marked else None


@pytest.mark.parametrize("name", list(ENDS))
def test_a_released_template_is_rendered_as_in_transformers_or_refused(
    name: str, templates: dict[str, str], tokenizers: dict[str, Tokenizer]
) -> None:
    if name not in templates:
        pytest.skip("this TRL does not ship it")
    tokenizer = tokenizers[ENDS[name]]
    template = templates[name].replace("strftime_now is defined", "false")  # transformers writes today's date
    if name == "glm4moe":
        with pytest.raises(RecipeError, match="ends an answer with no control token"):
            make_renderer("any", tokenizer, chat_template=template)
        return
    renderer = make_renderer("any", tokenizer, chat_template=template)
    refused = {}
    for kind, messages in CONVERSATIONS.items():
        rendered = renderer.render_batch([messages])
        problems = proof.prove(renderer, [messages], rendered)
        if problems:
            refused[kind] = problems[0].rule
            continue
        ids, mask = served(tokenizer, template, messages)
        assert rendered.encoded.ids.tolist() == ids
        assert mask is None or not [at for at, ours in enumerate(rendered.encoded.loss_mask) if ours and not mask[at]]
    assert refused == REFUSED.get(name, {})


def test_an_answer_ends_with_the_end_token_if_it_follows_every_answer(
    templates: dict[str, str], tokenizers: dict[str, Tokenizer]
) -> None:
    for name, stop in {"cohere2_training": "<|END_OF_TURN_TOKEN|>", "phi3": "<|end|>", "qwen3": "<|im_end|>"}.items():
        tokenizer = tokenizers[ENDS[name]]
        renderer = make_renderer("any", tokenizer, chat_template=templates[name])
        assert renderer.stop_ids == (tokenizer.control_ids[stop],), name
        assert proof.prove(renderer, [TWO_EXCHANGES], renderer.render_batch([TWO_EXCHANGES])) == {}
