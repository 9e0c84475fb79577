"""What a run chooses about reasoning and tools. Imports the standard library only, as the settings of a run do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from curate.schemas.conversation import Message

Reasoning = Literal["train", "mask", "drop"]
EmptyThink = Literal["all", "none", "as_template"]
HiddenTools = Literal["leave_out", "train"]


@dataclass(frozen=True)
class Choices:
    """What a run chooses about reasoning and tools.

    `reasoning` is supervised, masked, or left out. `empty_think`: an empty thought before an answer without reasoning,
    where the chat template writes one before the last answer, is written before all answers, before none, or where the
    template does. `hidden_tools`: rows that train calls, of which the template does not show the definitions.
    """

    reasoning: Reasoning = "train"
    empty_think: EmptyThink = "all"
    hidden_tools: HiddenTools = "leave_out"

    def apply(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with their reasoning as chosen."""
        if self.reasoning == "train" or not any(message.reasoning for message in messages):
            return list(messages)
        if self.reasoning == "drop":
            return [replace(message, reasoning=None) if message.reasoning else message for message in messages]
        return [replace(message, train_reasoning=False) if message.reasoning else message for message in messages]


DEFAULT = Choices()
