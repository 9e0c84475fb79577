"""A user's own filter over a frame, repair and signal, from a file to the set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl
import pytest

import curate
from curate.errors import RecipeError
from curate.filters import registry
from curate.pipeline import recipe
from curate.pipeline.run import CleanResult

RULES = '''
import polars as pl
from curate.filters import repair, repair_texts, rule, signal

@rule
def odd(frame: pl.DataFrame, length: int = 5) -> list[str | None]:
    """Drop conversations whose first answer has exactly `length` characters."""
    return [f"{length} characters" if len(answers[0]) == length else None for answers in frame["answers"]]

@signal(shouts=pl.UInt32)
def shouts(frame: pl.DataFrame) -> pl.DataFrame:
    """Count the exclamation marks of the answers."""
    return frame.select(shouts=pl.col("answers").list.join("").str.count_matches("!"))

@rule
def loud(most: int = 2, action: str = "drop") -> pl.Expr:
    """Drop conversations that shout; with `action = "mask"` loud answers are not trained on."""
    return pl.when(pl.lit(action == "drop") & (pl.col("shouts") > most)).then(pl.lit("loud"))

@repair(of="loud")
def mask_loud(conversations, most: int = 2, action: str = "drop"):
    """Do not train on loud answers, or remove their exchanges."""
    for conversation in conversations:
        for index, message in enumerate(conversation.messages):
            if message.role == "assistant" and message.content.count("!") > most:
                if action == "mask":
                    message.train = False
                    conversation.edit("loud", index, message.content, message.content)
                if action == "exchange":
                    conversation.flaw("loud", index, "it shouts", message.content)

@repair
def swears(conversations, word: str = "darn"):
    """Replace a word by asterisks."""
    repair_texts(conversations, "swears", lambda texts: [text.replace(word, "*" * len(word)) for text in texts])
'''


def turns(*texts: str) -> dict[str, object]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]}


@pytest.fixture
def rules(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mine.py"
    path.write_text(RULES, "utf-8")
    yield path
    for rule in list(registry.rules().values()):
        if rule.is_users:
            registry.forget(rule.function.__module__)


def clean(
    tmp_path: Path, filters: Mapping[str, object], *records: dict[str, object], **sections: object
) -> CleanResult:
    dump = tmp_path / "dump.jsonl"
    dump.write_text("\n".join(map(json.dumps, records)), "utf-8")
    chosen = recipe.from_dict({"filters": filters, **sections})
    return curate.clean(dump, tmp_path / "set", recipe=chosen, force=True)


def rows(result: CleanResult, name: str = "conversations") -> pl.DataFrame:
    return pl.read_parquet(result.output / f"{name}.parquet")


def test_a_filter_that_takes_the_frame_gives_its_reason(rules: Path, tmp_path: Path) -> None:
    result = clean(tmp_path, {"files": [str(rules)], "odd": {"length": 3}}, turns("Hi", "Yes"), turns("Hi", "Indeed"))
    assert rows(result, "rejected").select("rule", "reason").rows() == [("odd", "3 characters")]
    assert result.manifest.counts.rules["odd"].alone == 1


def test_a_filter_of_the_wrong_length_ends_the_run_by_name(rules: Path, tmp_path: Path) -> None:
    rules.write_text(RULES.replace('in frame["answers"]]', 'in frame["answers"].head(1)]'), "utf-8")
    with pytest.raises(RecipeError, match=r"filter .odd. in .* returned 1 values for 2 conv"):
        clean(tmp_path, {"files": [str(rules)], "odd": True}, turns("Hi", "Yes"), turns("Hi", "Indeed"))


def test_a_repair_changes_answers_with_an_edit(rules: Path, tmp_path: Path) -> None:
    result = clean(tmp_path, {"files": [str(rules)], "swears": True}, turns("darn?", "Well, darn it!"))
    (row,) = rows(result).to_dicts()
    assert [message["content"] for message in row["messages"]] == ["darn?", "Well, **** it!"]
    assert row["edit_names"] == ["swears"]
    assert rows(result, "originals").height == 1


def test_a_filter_can_drop_the_record_mask_the_answer_or_remove_its_exchange(rules: Path, tmp_path: Path) -> None:
    record = turns("Say hi", "Hi!!!", "And bye", "Bye.")
    files = {"files": [str(rules)]}
    dropped = clean(tmp_path, {**files, "loud": True}, record, turns("Hi", "Hello"))
    assert rows(dropped, "rejected")["rule"].to_list() == ["loud"]
    masked = clean(tmp_path, {**files, "loud": {"action": "mask"}}, record)
    assert [message["train"] for message in rows(masked)["messages"][0]] == [True, False, True, True]
    removed = clean(tmp_path, {**files, "loud": {"action": "exchange"}}, record)
    assert [message["content"] for message in rows(removed)["messages"][0]] == ["And bye", "Bye."]
    assert rows(removed, "rejected").select("scope", "rule", "reason").rows() == [("exchange", "loud", "it shouts")]


def test_alone_counts_a_record_that_a_repair_of_a_filter_empties(rules: Path, tmp_path: Path) -> None:
    filters = {"files": [str(rules)], "loud": {"action": "exchange"}, "min_characters": {"minimum": 100}}
    result = clean(tmp_path, filters, turns("Say hi", "Hi!!!"), turns("A long chat " * 9, "Yes."))
    counts = result.manifest.counts.rules
    assert (counts["loud"].first, counts["loud"].alone) == (1, 1)
    assert (counts["min_characters"].first, counts["min_characters"].alone) == (0, 1)


def test_a_signal_runs_where_a_filter_reads_it_or_the_recipe_names_it(rules: Path, tmp_path: Path) -> None:
    registry.load(rules)
    assert "shouts" in rows(clean(tmp_path, {"files": [str(rules)], "loud": True}, turns("Hi", "Hello!"))).columns


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"languages": True}, "unknown signal 'languages'; did you mean 'language'?"),
        ({"language": 1}, "signals.language = 1 must be true, false or a table"),
        ([], "signals = [] must be a section"),
    ],
)
def test_a_wrong_signal_is_named(section: object, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe.from_dict({"signals": section})
    assert message in str(error.value)


def test_a_recipe_with_signals_survives_toml(tmp_path: Path) -> None:
    chosen = recipe.from_dict({"filters": {"plugins": True}, "signals": {"language": True}})
    (tmp_path / "mine.toml").write_text(chosen.to_toml(), "utf-8")
    assert recipe.load(tmp_path / "mine.toml") == chosen
