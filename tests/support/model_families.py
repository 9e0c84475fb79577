"""Chat templates of model families, each with a small tokenizer that has its control tokens.

Released templates are those that TRL ships. The others, in `chat_templates`, are ours, after the published formats:
Mistral's after mistral-common (docs.mistral.ai, tokenization and templates), LLaMA 2's after Meta's `llama` repository,
Phi-4's after its model card.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from curate.dataset.arrow import Row
from curate.rendering.chat_template import environment
from curate.rendering.chat_template.environment import ReasoningKey
from curate.rendering.chat_template.renderer import JinjaRenderer
from curate.rendering.factory import make_renderer
from curate.rendering.preparation import ExamplePreparer, PreparedExample
from curate.rendering.renderer import Renderer
from curate.schemas.conversation import Message, with_tools
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.support.tiny_tokenizers import double_newline_tiktoken, folder, sentencepiece_model

OWN = Path(__file__).parent / "chat_templates"
CONTROL = re.compile(
    r"<[|｜][^<>|｜\s]+[|｜]>|<bos>|<eos>|<start_of_turn>|<end_of_turn>|\[gMASK\]|<sop>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT)\]"
)
# Put a space before the text at the start of a prompt only, as Mistral's tokenizers and LLaMA-2's without `legacy` do.
START_ONLY = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


@dataclass(frozen=True)
class Family:
    """Models with one chat template; `end` and `begin` are what their configuration names.

    `pieces`: the vocabulary is SentencePiece's. `marks_are_text`: the template's marks are not tokens. `strips`: the
    flags of control tokens that take in white space.
    """

    title: str
    end: str
    begin: str = "<|begin_of_text|>"
    pieces: bool = False
    marks_are_text: bool = False
    strips: tuple[str, ...] = ()


FAMILIES = {
    "llama2": Family("LLaMA 2", "</s>", "<s>", pieces=True, marks_are_text=True),
    "llama3": Family("LLaMA 3", "<|eot_id|>"),
    "llama3_training": Family("LLaMA 3, TRL's", "<|eot_id|>"),
    "llama3_1": Family("LLaMA 3.1", "<|eot_id|>"),
    "llama3_2": Family("LLaMA 3.2", "<|eot_id|>"),
    "mistral_v1": Family("Mistral v1", "</s>", "<s>", pieces=True, marks_are_text=True),
    "mistral_v3": Family("Mistral v3", "</s>", "<s>", pieces=True),
    "mistral_v7": Family("Mistral v7 (Tekken)", "</s>", "<s>"),
    "qwen2_5": Family("Qwen 2.5", "<|im_end|>"),
    "qwen2_5_training": Family("Qwen 2.5, TRL's", "<|im_end|>"),
    "qwen3": Family("Qwen 3", "<|im_end|>"),
    "qwen3_training": Family("Qwen 3, TRL's", "<|im_end|>"),
    "qwen3_instruct_2507_training": Family("Qwen 3 Instruct 2507, TRL's", "<|im_end|>"),
    "qwen3_5_nothink_training": Family("Qwen 3.5 without thinking, TRL's", "<|im_end|>"),
    "gemma": Family("Gemma, Gemma 2", "<end_of_turn>", "<bos>"),
    "gemma3": Family("Gemma 3", "<end_of_turn>", "<bos>"),
    "gemma3_training": Family("Gemma 3, TRL's", "<end_of_turn>", "<bos>"),
    "phi3": Family("Phi 3", "<|endoftext|>", "<s>", pieces=True, strips=("rstrip",)),
    "phi3_training": Family("Phi 3, TRL's", "<|end|>", "<s>", pieces=True, strips=("rstrip",)),
    "phi3_5": Family("Phi 3.5", "<|endoftext|>", "<s>", pieces=True, strips=("rstrip",)),
    "phi4": Family("Phi 4", "<|im_end|>", strips=("lstrip", "rstrip")),
    "deepseekv3": Family("DeepSeek V3", "<｜end▁of▁sentence｜>"),
    "deepseek_r1_distill": Family("DeepSeek R1 Distill", "<｜end▁of▁sentence｜>"),
    "gptoss": Family("gpt-oss (harmony)", "<|return|>"),
    "glm4moe": Family("GLM 4.5 (MoE)", "<|endoftext|>"),
    "nemotron_3_nano": Family("Nemotron 3 Nano", "<|im_end|>"),
    "lfm2_training": Family("LFM 2, TRL's", "<|im_end|>"),
    "cohere": Family("Aya Expanse", "<|END_OF_TURN_TOKEN|>"),
    "cohere2_training": Family("Tiny Aya, TRL's", "<|END_OF_TURN_TOKEN|>"),
}


@cache
def template_of(name: str) -> str:
    """Return a family's template, with a fixed date; skips a test where TRL does not ship it."""
    own = OWN / f"{name}.jinja"
    spec = importlib.util.find_spec("trl")
    path = (
        own
        if own.is_file()
        else Path(spec.origin if spec and spec.origin else "").parent / f"chat_templates/{name}.jinja"
    )
    if not path.is_file():
        pytest.skip("this TRL does not ship it, or none is installed")
    text = path.read_text("utf-8")  # transformers would write today's date
    return text.replace("strftime_now is defined", "false").replace('strftime_now("%Y-%m-%d")', '"2024-07-26"')


class Families:
    """Makes the small tokenizers and renderers of families; a tokenizer is made once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tokenizers: dict[object, Tokenizer] = {}

    def tokenizer(self, name: str) -> Tokenizer:
        """Return a tokenizer with the control tokens of a family's template."""
        family = FAMILIES[name]
        marks = set() if family.marks_are_text else set(CONTROL.findall(template_of(name)))
        names = tuple(sorted({family.begin, family.end, *marks}))
        key = family.begin, family.end, family.pieces, family.marks_are_text, family.strips, names
        if key not in self._tokenizers:
            self._tokenizers[key] = self._make(self._root / str(len(self._tokenizers)), family, names)
        return self._tokenizers[key]

    def _make(self, root: Path, family: Family, names: Sequence[str]) -> Tokenizer:
        model = sentencepiece_model() if family.pieces else double_newline_tiktoken()
        plain = load_tokenizer(str(folder(root / "plain", tokenizer_model=model)))
        document = json.loads(plain.tokenizer_json())
        if family.pieces and not family.strips:
            document |= {"normalizer": None, "pre_tokenizer": START_ONLY}
        flags = dict.fromkeys(family.strips, True)
        document["added_tokens"] += [
            {
                **document["added_tokens"][-1],
                **flags,
                "id": plain.info.vocab_size + at,
                "content": name,
                "special": True,
            }
            for at, name in enumerate(name for name in names if name not in plain.control_ids)
        ]
        ends = json.dumps({"bos_token": family.begin, "eos_token": family.end})
        own = folder(root / "own", tokenizer_json=json.dumps(document), tokenizer_config_json=ends)
        return load_tokenizer(str(own))

    def renderer(self, name: str) -> Renderer:
        """Return the renderer of a family's own template; raises RecipeError where it cannot be used."""
        return make_renderer(name, self.tokenizer(name), chat_template=template_of(name))


class Server:
    """The ids that transformers makes with a template."""

    def __init__(self, tokenizer: Tokenizer, template: str, key: ReasoningKey | None) -> None:
        self._template, self._key = template, key
        self._tokenizer = _load_transformers(Path(tokenizer.info.source).parent)
        joined = template.replace("['", ".").replace("']", "").replace(" +", " + ").replace("  ", " ")
        self._as_text = "arguments + " in joined  # it joins a call's arguments to text

    def __call__(self, messages: Sequence[Message], *, asks: bool = False) -> list[int]:
        dicts = environment.message_dicts(messages, self._key, arguments_as_text=self._as_text)
        tools = environment.parse_tools(messages[0].tools)
        encoded = self._tokenizer.apply_chat_template(
            dicts, tools=tools, chat_template=self._template, add_generation_prompt=asks, return_dict=True
        )
        return [int(token) for token in encoded["input_ids"]]


@cache
def _load_transformers(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, local_files_only=True)


# ---- conversations

FUNCTION_CALL = {"name": "weather", "arguments": '{"city": "Oslo"}'}
CALL = json.dumps([{"id": "call00001", "type": "function", "function": FUNCTION_CALL}])
CITY = {"type": "string", "description": "Where"}
PARAMETERS = {"type": "object", "properties": {"city": CITY}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather of a city", "parameters": PARAMETERS}
TOOLS = json.dumps([{"type": "function", "function": FUNCTION}])


def user(text: str) -> Message:
    """Return a prompt."""
    return Message("user", text)


def answer(text: str, reasoning: str | None = None, calls: str | None = None) -> Message:
    """Return an answer."""
    return Message("assistant", text, tool_calls=calls, reasoning=reasoning)


RESULT = Message("tool", "4 degrees", name="weather", tool_call_id="call00001")
CALLS = [user("Is it cold?"), answer("", calls=CALL), RESULT, answer("It is cold.")]
SUM = [user("2 + 2?"), answer("It is 4.", "Two and two.")]
CODE = answer("    def f():\n        return 1\n")
SYSTEM = Message("system", "Be brief.")
TURNS = [user("Hello there"), answer("Hi!"), user(" 안녕\n\n"), answer("def main():\n    print(i)\n")]
CONVERSATIONS = {
    "plain": [user("Hi there"), answer("Hello!")],
    "turns": TURNS,
    "system": [SYSTEM, *TURNS],
    "reasoning": SUM,
    "reasoning turns": [*SUM, user("3 + 3?"), answer("It is 6.", "Twice 3.")],
    "some reasoning": [*SUM, user("3 + 3?"), answer("It is 6.")],
    "calls": CALLS,
    "tools": with_tools(CALLS, TOOLS),
    "tools turns": with_tools([SYSTEM, *CALLS, user("And now?"), answer("No."), user("Thanks"), answer("Bye.")], TOOLS),
    "reasoned calls": [user("Is it cold?"), answer("", "I look.", CALL), RESULT, answer("It is cold.", "4 is cold.")],
    "white space": [user("Code, please "), CODE, user("  x\n"), answer("\n\ny\n\n")],
}

# ---- what curate makes of a conversation


@dataclass(frozen=True)
class Outcome:
    """How many rows a conversation gave, and the rule and reason of what is left out, if anything is."""

    rows: int
    rule: str | None = None
    reason: str = ""


def prepare(
    renderer: Renderer, messages: Sequence[Message], check: Callable[[PreparedExample, Sequence[Message]], None]
) -> Outcome:
    """Prepare a conversation for training, and check each of its rows."""
    prepared = ExamplePreparer(renderer, 8_192).prepare([[Row("x", 0, list(messages), None, "train", ("f", 0))]])
    by_answer = {f"x#{number}": row for number, row in enumerate(renderer.answer_rows(messages))}
    for example in prepared.examples:
        check(example, by_answer.get(example.name, messages))
    for _, problem in prepared.left_out:
        return Outcome(len(prepared.examples), problem.rule, problem.reason)
    return Outcome(len(prepared.examples))


def checker(renderer: JinjaRenderer) -> Callable[[PreparedExample, Sequence[Message]], None]:
    """Return a check of a row's ids and mask, by prompts that only transformers makes.

    The ids before each answer that is trained on are those of its prompt; the mask is true from there to the stop
    token, and nowhere else.
    """
    served = Server(renderer.tokenizer, renderer.chat_template, renderer.reasoning_key)
    return partial(_check, renderer, served)


def _check(renderer: Renderer, served: Server, example: PreparedExample, messages: Sequence[Message]) -> None:
    ids, mask = example.ids.tolist(), example.loss_mask.tolist()
    wanted = [False] * len(ids)
    trained = [i for i, message in enumerate(messages) if message.role == "assistant" and message.train]
    for index in trained:
        prompt = served(messages[:index], asks=True)
        assert ids[: len(prompt)] == prompt
        stop = next(at for at in range(len(prompt), len(ids)) if ids[at] in renderer.stop_ids)
        wanted[len(prompt) : stop + 1] = [True] * (stop + 1 - len(prompt))
        text = renderer.tokenizer.decode(ids[len(prompt) : stop])
        assert messages[index].content.strip() in text
        assert (messages[index].reasoning or "") in text
    assert mask == wanted
