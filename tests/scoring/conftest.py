"""A small set that `clean` has written, for all tests of scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import curate
from curate.pipeline import recipe as recipes
from curate.pipeline.recipe import Recipe
from curate.schemas.conversation import Message
from tests.support.small_runs import talk
from tests.support.tiny_tokenizers import folder, sentencepiece_model

WINDOW = 96
COUNT = 12  # conversations


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a set that `clean` has written: some chats are in pieces, one has lost an exchange, one is a copy."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("data")
    folder(root / "tokenizer", tokenizer_model=sentencepiece_model())
    chats = [[turn(message) for message in talk(index)] for index in range(COUNT - 1)]
    lost = [*chats[0][:2], {"from": "human", "value": "And now?"}, {"from": "gpt", "value": ""}]
    long = [each for index in range(3, 9) for each in chats[index][:2]]
    records = [*chats[1:], lost, long, chats[1]]
    dump = [{"id": f"chat{index}", "conversations": turns} for index, turns in enumerate(records)]
    (root / "dump.json").write_text(json.dumps(dump))
    curate.clean(root / "dump.json", root / "set", recipe=recipe(root / "set", {}), workers=1)
    return root / "set"


def turn(message: Message) -> dict[str, str]:
    return {"from": {"user": "human", "assistant": "gpt"}[message.role], "value": message.content}


def recipe(data: Path, filters: dict[str, Any]) -> Recipe:
    """Return a recipe that differs from the set's in its filters alone."""
    tokens = {"tokenizer": str(data.parent / "tokenizer"), "template": "plain", "max_tokens": WINDOW}
    return recipes.from_dict({"filters": {"exact_duplicates": True, **filters}, "tokens": tokens})
