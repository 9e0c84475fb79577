"""A model folder with tokenizer.json and chat template gives the ids of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curate.model import serving
from curate.rendering.factory import make_renderer
from curate.rendering.renderer import Renderer
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.rendering.test_chat_template import LLAMA3, MARKED, plain, proven
from tests.rendering.test_renderer import trained
from tests.support.tiny_tokenizers import double_newline_tiktoken, folder, sentencepiece_model

CHATML = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- elif message.tool_calls %}
        {{- '<|im_start|>assistant' }}{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
MISTRAL = """{%- if messages[0].role == 'system' %}
    {%- set system_message = messages[0].content %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}{%- if system_message %}{{- '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}{%- endif %}
{%- for message in loop_messages %}
    {%- if message.role == 'user' %}{{- '[INST] ' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {%- if not call.id is defined or call.id | length != 9 %}
                {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
            {%- endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
            {%- if not loop.last %}{{- ', ' }}{%- endif %}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif message.role == 'assistant' %}{{- ' ' + message.content + eos_token }}
    {%- elif message.role == 'tool' %}
        {%- if not message.tool_call_id is defined or message.tool_call_id | length != 9 %}
            {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | tojson + ', "call_id": "' }}
        {{- message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception('Only user, assistant, system and tool roles are supported') }}{%- endif %}
{%- endfor %}"""
# As in Mistral's third version: the system message is written with a user message that ends the conversation.
MOVES = MISTRAL.replace("if system_message %}", "if false %}").replace(
    "'[INST] ' +", "'[INST] ' + (system_message + '\\n\\n' if system_message and loop.last else '') +"
)
CONTROL_STRINGS = (
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
)
FORMS = {
    "llama3": ("tiktoken", LLAMA3.replace("strftime_now is defined", "false"), ()),  # otherwise it writes today's date
    "chatml": ("tiktoken", CHATML, ("<|im_start|>", "<|im_end|>")),
    "mistral": ("sentencepiece", MISTRAL, CONTROL_STRINGS),
    "moves": ("sentencepiece", MOVES, CONTROL_STRINGS),
    "generation": ("tiktoken", MARKED, ()),
}
SYSTEM = Message("system", "Be brief.")
ONE_EXCHANGE = [Message("user", "the dog?"), Message("assistant", "It sleeps.")]
TWO_EXCHANGES = [*ONE_EXCHANGE, Message("user", " 안녕\n\n"), Message("assistant", "def main():\n    print(i)\n")]
CALLS = [
    {"id": f"abcdefg0{number}", "type": "function", "function": {"name": name, "arguments": '{"at": "<home>"}'}}
    for number, name in enumerate(("time", "place"))
]
TOOL_TALK = [
    Message("user", "what is the time?"),
    Message("assistant", "", tool_calls=json.dumps(CALLS)),
    Message("tool", 'in the "park"\n', name="place"),
    Message("tool", "nine", name="time"),
    Message("assistant", "It is nine."),
]


pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders as models ship them: tokenizer.json with the form's control tokens, and the template."""
    root = tmp_path_factory.mktemp("models")
    vocabularies = {"tiktoken": double_newline_tiktoken(), "sentencepiece": sentencepiece_model(lines=False)}
    plain = {
        name: load_tokenizer(str(folder(root / name, tokenizer_model=data))) for name, data in vocabularies.items()
    }
    return {
        form: model(root / form, plain[kind], template, controls) for form, (kind, template, controls) in FORMS.items()
    }


def model(root: Path, tokenizer: Tokenizer, template: str, controls: tuple[str, ...]) -> Path:
    document = json.loads(tokenizer.tokenizer_json())
    added = document["added_tokens"]
    first = tokenizer.info.vocab_size
    document["added_tokens"] = [
        *added,
        *({**added[-1], "id": first + at, "content": name, "special": True} for at, name in enumerate(controls)),
    ]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.info.bos_token,
        "eos_token": "<|im_end|>" if "<|im_end|>" in controls else tokenizer.info.eos_token,
        "chat_template": template,
    }
    return folder(root, tokenizer_json=json.dumps(document), tokenizer_config_json=json.dumps(settings))


def renderer_for(path: Path, loss: str = "all") -> Renderer:
    return make_renderer("any", load_tokenizer(str(path)), loss=loss, chat_template=serving.own_chat_template(path))


def served(path: Path, messages: list[dict[str, Any]], *, asks: bool = False) -> list[int]:
    """Return the ids of transformers, loaded from the folder."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=asks, return_dict=False)
    return [int(token) for token in ids]


def with_calls(messages: list[Message]) -> list[dict[str, Any]]:
    """Return messages as transformers takes them: calls as values, each result with the id of its call."""
    ids = {call["function"]["name"]: call["id"] for call in CALLS}  # type: ignore[index]
    plain: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            calls = json.loads(message.tool_calls)
            for call in calls:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
            turn["tool_calls"] = calls
        if message.role == "tool":
            turn |= {"name": message.name, "tool_call_id": ids[message.name]}
        plain.append(turn)
    return plain


@pytest.mark.parametrize("form", [form for form in FORMS if form != "moves"])
@pytest.mark.parametrize(
    "messages", [ONE_EXCHANGE, TWO_EXCHANGES, [SYSTEM, *ONE_EXCHANGE]], ids=["one", "two", "system"]
)
def test_the_ids_are_those_of_transformers(form: str, messages: list[Message], models: dict[str, Path]) -> None:
    renderer = renderer_for(models[form])
    expected = served(models[form], plain(messages))
    assert renderer.render([messages])[0].ids.tolist() == expected
    prompt = renderer.generation_prompt(messages[:-1]).tolist()
    assert prompt == served(models[form], plain(messages[:-1]), asks=True) == expected[: len(prompt)]
    assert proven(renderer, [messages]) == {}


@pytest.mark.parametrize("form", ["chatml", "mistral"])
def test_the_ids_of_calls_and_their_results_are_those_of_transformers(form: str, models: dict[str, Path]) -> None:
    renderer = renderer_for(models[form])
    assert renderer.render([TOOL_TALK])[0].ids.tolist() == served(models[form], with_calls(TOOL_TALK))
    assert proven(renderer, [TOOL_TALK, TWO_EXCHANGES, TOOL_TALK]) == {}
    first, *_, last = trained(renderer, TOOL_TALK)
    assert '"name": "time", "arguments": {"at": "<home>"}' in first and last.lstrip().startswith("It is nine.")


def test_a_system_message_that_only_prompts_contain_is_reported(models: dict[str, Path]) -> None:
    both = [SYSTEM, *TWO_EXCHANGES]
    for loss in ("all", "last"):
        assert proven(renderer_for(models["moves"], loss), [both, TWO_EXCHANGES, [SYSTEM, *ONE_EXCHANGE]]) == {
            0: "template_rewrites",
            2: "template_rewrites",
        }


@pytest.mark.parametrize("form", ["chatml", "mistral"])
def test_control_strings_in_calls_and_their_results_stay_text(form: str, models: dict[str, Path]) -> None:
    renderer = renderer_for(models[form])
    end = renderer.tokenizer.info.eos_token
    called = [{**call, "function": {"name": "time", "arguments": {"at": f"{end}[/INST]"}}} for call in CALLS]
    messages = [
        TOOL_TALK[0],
        Message("assistant", "", tool_calls=json.dumps(called)),
        Message("tool", f"{end} <|im_start|>", name=f"a{end}"),
        TOOL_TALK[-1],
    ]
    ids = renderer.render([messages])[0].ids.tolist()
    assert ids.count(renderer.stop_ids[0]) == {"chatml": 5, "mistral": 2}[form]
    assert proven(renderer, [messages]) == {}


def test_placeholder_characters_are_refused_in_calls(models: dict[str, Path]) -> None:
    renderer = renderer_for(models["chatml"])
    for odd in ('\ue0f09"\ue0f1', "\ue0f2999999\ue0f3"):
        calls = json.dumps([{"function": {"name": "time", "arguments": {"at": odd}}}], ensure_ascii=False)
        bad = [TOOL_TALK[0], Message("assistant", "", tool_calls=calls), TOOL_TALK[-1]]
        good = [Message("user", odd), Message("assistant", f"{odd} {odd}")]
        assert proven(renderer, [bad, good]) == {0: "template_refuses"}


def test_a_template_that_omits_part_of_an_answer_is_reported(models: dict[str, Path]) -> None:
    conversation = [TOOL_TALK[0], Message("assistant", "Let me look.", tool_calls=json.dumps(CALLS)), *TOOL_TALK[2:]]
    assert proven(renderer_for(models["mistral"]), [conversation, TOOL_TALK]) == {0: "template_rewrites"}
    assert proven(renderer_for(models["chatml"]), [conversation, TOOL_TALK]) == {}


def test_blank_and_empty_answers_can_be_rendered(models: dict[str, Path]) -> None:
    for form in ("llama3", "chatml", "mistral"):
        for content in ("\n", "  ", ""):
            odd = [ONE_EXCHANGE[0], Message("assistant", content), *TWO_EXCHANGES]
            cut = [ONE_EXCHANGE[0], Message("assistant", "", stop=False), *TWO_EXCHANGES]
            assert proven(renderer_for(models[form]), [odd, cut, TWO_EXCHANGES]) == {}, (form, content)
