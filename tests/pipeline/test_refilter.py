"""`refilter`: the set that cleaning the dump again would give, without the dump."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import curate
from curate.cli import cli
from curate.dataset import curated_set
from curate.dataset.manifest import Manifest
from curate.errors import InputError, RecipeError, SetError
from curate.filters import registry, verdicts
from curate.filters.fingerprints import catalogue
from curate.pipeline import recipe as recipes
from curate.pipeline import run
from curate.pipeline.parts.execution import Execution
from curate.pipeline.recipe import Recipe
from curate.pipeline.run import MaskSpans
from curate.pipeline.sets.changes import with_signals
from curate.pipeline.sets.make import Output
from curate.pipeline.sets.refilter import refilter
from curate.pipeline.sets.step import Asked

OWN = b'"piece":null'  # in a record that curate wrote, since its bytes in the dump are not known
WINDOW = 90  # tokens, so that longer chats have pieces
WORDS = "The river was wide, and slow, and nobody knew how deep it was that year. "


def chat(name: str | None, *texts: str, **keys: object) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {**({"id": name} if name else {}), "conversations": turns, **keys}


LONG = [text for n in range(6) for text in (f"Tell me part {n} of the story.", f"Part {n}. {WORDS}")]
KO = ("큰 강의 이름을 하나 말해 주세요.", "나일강입니다. 아프리카에 있는 아주 긴 강입니다.")
_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
POOL: list[dict[str, Any] | str] = [
    chat("plain", "Name a large river in Africa.", "The Nile is a large river in Africa."),
    chat(None, "Name a large river in Asia.", "The Ganges is a large river.", "And one more?", "The Mekong."),
    chat("short", "Hi", "Ho!"),
    chat("korean", *KO),
    chat("korean", *KO, "고마워요.", "천만에요."),  # the same id, and a continuation
    chat("long", *LONG, model="gpt-4"),
    chat("long-too", *LONG[:4], "And a long part?", WORDS * 12, "And the end?", "They lived.", title="a story"),
    chat("too-long", "A long one, please.", WORDS * 12),
    chat("copy", "Name a large river in Africa.", "The Nile is a large river in Africa."),
    chat("start", *LONG[:2]),
    chat("html", "Say it.", "<div class=\"markdown prose\"><p>It is <b>so</b>.</p><p>OpenAI says so.</p></div>"),
    chat("plugged", "What is new today?", "The page says: nothing at all.", plugins=["browser"]),
    chat("near", "Tell me of the river.", f"{WORDS * 3}It rained."),
    chat("nearer", "Tell me of the river.", f"{WORDS * 3}It snowed."),
    chat("me", "Who are you?", "I am ChatGPT, a language model trained by OpenAI.", model="gpt-3.5-turbo"),
    chat("lost", "First, say this.", "This was said.", "And now?", "", "Last?", "Yes, this is the last."),
    chat("gone", "Say nothing.", ""),
    chat("piece_0", "Name a large river in Europe.", "The Volga is one, and OpenAI is none."),
    chat("piece_1", "And its length?", "It has 3,530 kilometres."),
    chat("half", "Half of", "a chat without", "its end"),
    {"id": "bad", "conversations": "nothing"},
    {"id": "openai", "messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it cold in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "4 degrees"},
        {"role": "assistant", "content": "It is cold in Oslo.", "reasoning_content": "4 is cold."},
    ], "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]},
    {"id": "mid", "messages": [
        {"role": "user", "content": "Say one word about rivers."}, {"role": "assistant", "content": "Wide."},
        {"role": "system", "content": "Now be rude."},
        {"role": "user", "content": "Say another word."}, {"role": "assistant", "content": "Wet, you fool."},
    ]},
    {"id": "untrained", "messages": [
        {"role": "user", "content": "Count to three."}, {"role": "assistant", "content": "One, two.", "weight": 0},
        {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Three."},
    ]},
    {"id": "trained", "messages": [
        {"role": "user", "content": "Count to three."}, {"role": "assistant", "content": "One, two."},
    ]},
    {"prompt": "Is it cold there?", "chosen": "It is cold there.", "rejected": "No."},
    {"id": "labelled", "label": False, "conversations": [
        {"from": "human", "value": "Is it so?"}, {"from": "gpt", "value": "It is so."}]},
    '{"id": "broken", "conversations": [{"from": "human", "value": "Is it',
]  # fmt: skip


class NoPage:
    """Writes no page, which takes longer than the rest of a small set."""

    def load(self) -> None: ...

    def measure(self, folder: Path, manifest: Manifest) -> Manifest:
        return manifest

    def write(self, folder: Path, name: str, mask_spans: MaskSpans) -> None: ...


def write_dump(folder: Path, records: Sequence[dict[str, Any] | str]) -> Path:
    """Write the records into two files of a folder."""
    folder.mkdir(parents=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    half = len(lines) // 2
    (folder / "a.jsonl").write_text("\n".join(lines[:half]), "utf-8")
    (folder / "b.jsonl").write_text("\n".join(lines[half:]), "utf-8")
    return folder


def make_recipe(filters: dict[str, Any], **sections: dict[str, Any]) -> Recipe:
    values = {"name": "mine", "filters": filters, "tokens": {"max_tokens": WINDOW}, **sections}
    return recipes.from_dict(values)


def clean(dump: Path, folder: Path, recipe: Recipe) -> curate.CuratedSet:
    run.clean([dump], folder, recipe, page=NoPage(), execution=Execution(workers=1))
    return curate.open_set(folder)


NOTHING = Asked()


def again(source: curate.CuratedSet, folder: Path, recipe: Recipe | None, asked: Asked = NOTHING) -> curate.CuratedSet:
    refilter(source, recipe, asked, {}, Output(folder, None, NoPage()), 1)
    return curate.open_set(folder)


def tables(curated: curate.CuratedSet) -> dict[str, pl.DataFrame]:
    names = (curated_set.CONVERSATIONS, curated_set.REJECTED, curated_set.ORIGINALS)
    return {name: pl.read_parquet(curated.path / name) for name in names}


def check_equal(made: curate.CuratedSet, cleaned: curate.CuratedSet) -> None:
    """Check that two sets have the same tables, but for records of which the first set has no bytes."""
    for name, left in tables(made).items():
        right = tables(cleaned)[name]
        if "record" in left.columns:
            own = left["record"].bin.contains(OWN).fill_null(False)
            assert left["record"].is_null().equals(right["record"].is_null())
            left, right = (rows.with_columns(record=pl.when(~own).then("record")) for rows in (left, right))
        assert_frame_equal(left, right)
    facts = [curated.manifest.counts.__dict__.copy() for curated in (made, cleaned)]
    rules = [counts.pop("rules") for counts in facts]
    assert facts[0] == facts[1]
    assert {name: count.first for name, count in rules[0].items() if count.first} == {
        name: count.first for name, count in rules[1].items() if count.first
    }
    for name, count in rules[0].items():
        assert count.alone is None or count.alone == rules[1][name].alone, name


FILTERS: dict[str, st.SearchStrategy[Any]] = {
    "min_messages": st.sampled_from([{"minimum": 2}, {"minimum": 4}]),
    "min_characters": st.sampled_from([{"minimum": 1}, {"minimum": 16}, {"minimum": 60}]),
    "plugins": st.just({}),
    "languages": st.sampled_from([{"keep": ["en"]}, {"keep": ["ko"]}, {"skip": ["ko"]}]),
    "models": st.sampled_from([{"keep": ["gpt-4"]}, {"keep": ["gpt-4"], "unknown": True}]),
    "vendor_mention": st.sampled_from([{}, {"any_turn": True}]),
    "identity": st.just({}),
    "near_duplicates": st.sampled_from([{}, {"of": "prompts"}, {"threshold": 0.5}]),
    "cap": st.sampled_from([{"cluster": 1}, {"cluster": 2, "language": 3}, {"cluster": 0, "model": 1}]),
    "exact_duplicates": st.sampled_from([{}, {"prefixes": False}, {"first_exchange": True, "ids": True}]),
}


@st.composite
def drawn_filters(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(FILTERS)), unique=True, max_size=5))
    return {name: draw(FILTERS[name]) for name in names}


@pytest.mark.slow
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    records=st.lists(st.sampled_from(range(len(POOL))), min_size=4, max_size=40),
    old=drawn_filters(),
    new=drawn_filters(),
    fraction=st.sampled_from([0.0, 0.3]),
    template=st.sampled_from(["vicuna", "llama3"]),
)
def test_a_refiltered_set_is_that_of_the_dump(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[int],
    old: dict[str, Any],
    new: dict[str, Any],
    fraction: float,
    template: str,
) -> None:
    folder = tmp_path_factory.mktemp("refilter")
    dump = write_dump(folder / "dump", [POOL[0], *(POOL[index] for index in records)])
    tokens = {"max_tokens": WINDOW, "template": template}
    eval_ = {"fraction": fraction, "minimum": 2}
    signals = {"identity_answers": True}  # measured by all, since a set that lacks a filter's signal is refused
    before, after = (make_recipe(filters, tokens=tokens, eval=eval_, signals=signals) for filters in (old, new))
    try:
        first, expected = clean(dump, folder / "first", before), clean(dump, folder / "expected", after)
    except InputError:
        return  # nothing is kept
    made = again(first, folder / "made", after)
    check_equal(made, expected)
    check_equal(again(made, folder / "back", before), first)


BASE = {"min_characters": {"minimum": 16}, "plugins": True, "exact_duplicates": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> curate.CuratedSet:
    """The set of all records of the pool."""
    folder = tmp_path_factory.mktemp("base")
    return clean(write_dump(folder / "dump", POOL), folder / "curated", make_recipe(BASE))


def rejected(curated: curate.CuratedSet) -> dict[str, str]:
    """Return the rule that rejects each record with an id of its own."""
    rows = curated.rejected().filter(pl.col("scope") == "record").select("source_id", "rule").drop_nulls().collect()
    return dict(rows.iter_rows())


def kept(curated: curate.CuratedSet) -> set[str]:
    return set(curated.conversations().select("source_id").collect().to_series().drop_nulls())


def test_the_same_recipe_gives_the_same_set_and_names_the_first_one(base: curate.CuratedSet, tmp_path: Path) -> None:
    made = again(base, tmp_path / "made", None)
    check_equal(made, base)
    assert {name: count.alone for name, count in made.manifest.counts.rules.items()} == {
        name: count.alone for name, count in base.manifest.counts.rules.items()
    }
    [use] = made.manifest.sets
    digest = hashlib.sha256((base.path / "manifest.json").read_bytes()).hexdigest()
    assert (use.path, use.sha256, use.use, use.kept) == (str(base.path), digest, "refilter", base.manifest.counts.kept)
    assert [use.path for use in again(made, tmp_path / "third", None).manifest.sets] == [str(made.path), str(base.path)]


def test_what_the_user_drops_and_keeps(base: curate.CuratedSet, tmp_path: Path) -> None:
    asked = Asked(
        drop=frozenset({"long", "korean"}), keep=frozenset({"short", "plugged", "a.jsonl:8", "gone", "nobody"})
    )
    made = again(base, tmp_path / "made", None, asked)
    before, after = rejected(base), rejected(made)
    assert (before["short"], before["plugged"], before["copy"]) == ("min_characters", "plugins", "exact_duplicates")
    assert {"short", "plugged", "copy"} <= kept(made)
    assert {name for name, rule in after.items() if rule == "dropped_by_user"} == {"long", "korean"}
    assert made.manifest.warnings[1:] == [
        "1 id not found: nobody",
        "1 record cannot be kept, since no filter rejects it: gone (empty_answer)",
    ]
    edits = made.conversations().filter(source_id="plugged").select("edits").collect().item().to_list()
    assert [(edit["rule"], edit["before"], edit["after"]) for edit in edits] == [
        ("kept_by_user", "plugins", "made with plugins")
    ]
    later = again(made, tmp_path / "later", make_recipe({**BASE, "min_messages": {"minimum": 4}}))
    assert not [text for text in later.manifest.warnings if "nobody" in text or "gone" in text]  # said once
    assert {"short", "plugged", "copy"} <= kept(later)  # the user's word holds
    assert rejected(later)["long"] == "dropped_by_user"
    assert rejected(later)["plain"] == "min_messages"
    with pytest.raises(InputError, match="'long' is to be dropped and to be kept; name it in one of the two"):
        curate.refilter(base.path, tmp_path / "both", drop=["long", "korean"], keep=["long"])


def test_a_condition_is_on_whole_conversations(base: curate.CuratedSet, tmp_path: Path) -> None:
    pieces = base.conversations().filter(source_id="long").select("tokens", "turns").collect()
    assert pieces.height > 1 and max(pieces["tokens"]) <= WINDOW
    made = again(base, tmp_path / "made", None, Asked(where=f"tokens > {WINDOW} AND turns = 12"))
    assert kept(made) == {"long"}
    row = made.rejected().filter(source_id="plain").collect().row(0, named=True)
    assert (row["rule"], row["reason"]) == ("where", f"not selected by tokens > {WINDOW} AND turns = 12")
    assert json.loads(row["record"])["messages"][0]["content"] == "Name a large river in Africa."
    with pytest.raises(InputError, match="compares conversations with each other"):
        again(base, tmp_path / "other", None, Asked(where="tokens = max(tokens)"))


SIGNALS = """
import polars as pl
from curate.filters import rule, signal

@signal(commas=pl.Int64)
def commas(frame):
    "Count commas."
    return frame.select(commas=pl.col("answers").list.join("").str.count_matches(",").cast(pl.Int64))

@rule
def many_commas(most: int = 2) -> pl.Expr:
    "Drop conversations with many commas."
    return pl.col("commas") > most
"""


def test_what_only_the_dump_has_is_refused_by_name(base: curate.CuratedSet, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SIGNALS)
    cases = {
        "tokens.max_tokens is 100, and the set has 90": make_recipe(BASE, tokens={"max_tokens": 100}),
        "repair.html is 'never', and the set has 'auto'": make_recipe(BASE, repair={"html": "never"}),
        "the filter 'list_indices' reads 'html_answers'": make_recipe({**BASE, "list_indices": True}),
    }
    for text, recipe in cases.items():
        with pytest.raises(RecipeError, match=re.escape(text)):
            again(base, tmp_path / "made", recipe)
    own = make_recipe({**BASE, "files": [str(tmp_path / "own.py")]})
    with pytest.raises(RecipeError, match=re.escape("the signal 'commas' (column 'commas') is not in the set")):
        again(base, tmp_path / "made", own)
    assert not (tmp_path / "made").exists()
    registry.forget(registry.get("commas").function.__module__)


MEASURED: dict[str, st.SearchStrategy[Any]] = {  # filters whose settings change what a signal's columns mean
    "contamination": st.fixed_dictionaries(
        {"benchmarks": st.sampled_from([["example"], ["mt_bench"]]), "action": st.sampled_from(["flag", "drop"])}
    ),
    "identity": st.fixed_dictionaries(
        {"names": st.sampled_from([["chatgpt"], ["hal"]]), "action": st.sampled_from(["flag", "drop", "mask"])}
    ),
    "few_letters": st.fixed_dictionaries({"letter": st.sampled_from(["e", "o"]), "least": st.sampled_from([1, 4])}),
    "min_messages": st.sampled_from([{"minimum": 2}, {"minimum": 4}]),
}
NAMED_SIGNALS: dict[str, st.SearchStrategy[Any]] = {
    "benchmark_overlap": st.sampled_from([True, {"benchmarks": ["example"]}]),
    "identity_answers": st.sampled_from([True, {"names": ["hal"]}]),
    "letters": st.sampled_from([True, {"letter": "o"}]),
}
LETTERS = """
import polars as pl
from curate.filters import rule, signal

@signal(letters=pl.Int64)
def letters(frame, letter: str = "e"):
    "Count a letter."
    text = pl.col("answers").list.join("")
    return frame.select(letters=text.str.count_matches(letter, literal=True).cast(pl.Int64))

@rule
def few_letters(least: int = 1, letter: str = "e") -> pl.Expr:
    "Drop conversations with few of them."
    return pl.col("letters") < least
"""


def _drawn(data: st.DataObject, values: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    return {name: data.draw(values[name]) for name in values if data.draw(st.booleans())}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """A user's file with a signal that has a setting, forgotten after the test."""
    file = tmp_path / "own.py"
    file.write_text(LETTERS)
    yield file
    registry.forget(registry.get("letters").function.__module__)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_column_is_used_that_other_settings_measured(
    tmp_path_factory: pytest.TempPathFactory, own: Path, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("measured")
    dump = write_dump(folder / "dump", [*POOL[:5], *POOL[13:16]])
    try:
        old, new = (
            make_recipe(
                {"few_letters": False, **_drawn(data, MEASURED), "files": [str(own)]},
                signals=_drawn(data, NAMED_SIGNALS),
            )
            for _ in range(2)
        )
        first = clean(dump, folder / "first", old)
        expected = clean(dump, folder / "expected", with_signals(new, first))
    except (InputError, RecipeError) as error:
        assert isinstance(error, InputError) or "is measured once" in str(error)
        return
    try:
        made = again(first, folder / "made", new)
    except RecipeError as error:
        assert re.search("the signal '.*' .*(other settings|is not in the set)|the repair", str(error))
    else:
        check_equal(made, expected)


def test_changed_code_or_files_of_a_signal_are_refused(own: Path, tmp_path: Path) -> None:
    benchmark = tmp_path / "mine.fingerprint"
    shutil.copy(catalogue.FOLDER / "example.fingerprint", benchmark)
    filters = {"files": [str(own)], "contamination": {"benchmarks": [str(benchmark)]}}
    first = clean(write_dump(tmp_path / "dump", POOL[:4]), tmp_path / "first", make_recipe(filters))
    assert sorted(first.manifest.sources) == ["benchmark_overlap", "letters"]
    own.write_text(LETTERS.replace("< least", "<= least"))  # only the filter, which is applied again
    assert again(first, tmp_path / "made", make_recipe(filters)).manifest.sources == first.manifest.sources
    own.write_text(LETTERS.replace("literal=True", "literal=False"))
    with pytest.raises(RecipeError, match="the signal 'letters' has changed: its code, or a file"):
        again(first, tmp_path / "other", make_recipe(filters))
    own.write_text(LETTERS)
    shutil.copy(catalogue.FOLDER / "mt_bench.fingerprint", benchmark)
    with pytest.raises(RecipeError, match="the signal 'benchmark_overlap' has changed: its code, or a file"):
        again(first, tmp_path / "other", make_recipe(filters))


def test_a_signal_is_not_measured_for_two_settings() -> None:
    contamination = {"contamination": {"benchmarks": ["example"]}}
    recipe = make_recipe(contamination, signals={"benchmark_overlap": True})
    needed = verdicts.needed_signals(recipe.filters, recipe.signals)
    assert needed["benchmark_overlap"] == {"benchmarks": ("example",)}  # not the default of the signal
    text = "signal 'benchmark_overlap' is measured once, but filter 'contamination' has benchmarks = ['example']"
    with pytest.raises(RecipeError, match=re.escape(text)):
        make_recipe(contamination, signals={"benchmark_overlap": {"benchmarks": ["mt_bench"]}})


def test_a_users_signal_is_measured_once(base: curate.CuratedSet, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SIGNALS)
    files = {"files": [str(tmp_path / "own.py")]}
    dump = base.path.parent / "dump"
    loose, tight = (make_recipe({**BASE, **files, "many_commas": {"most": most}}) for most in (20, 2))
    first, expected = clean(dump, tmp_path / "loose", loose), clean(dump, tmp_path / "tight", tight)
    check_equal(again(first, tmp_path / "made", tight), expected)
    check_equal(again(expected, tmp_path / "back", loose), first)
    assert (
        again(expected, tmp_path / "off", make_recipe(BASE, signals={})).manifest.counts.kept
        == base.manifest.counts.kept
    )
    registry.forget(registry.get("commas").function.__module__)


def test_a_set_is_not_lost_to_a_wrong_output(base: curate.CuratedSet, tmp_path: Path) -> None:
    with pytest.raises(SetError, match="is read, and would be overwritten"):
        again(base, base.path, None)
    other = again(base, tmp_path / "made", None)
    with pytest.raises(SetError, match="is a set that was not made from"):
        again(other, tmp_path / "third", None) and again(base, tmp_path / "third", None)


def test_the_command_makes_a_set_and_stats_and_explain_name_the_first(
    base: curate.CuratedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("short\n")
    arguments = ["refilter", str(base.path), "-o", str(tmp_path / "made"), "--keep", str(tmp_path / "ids.txt"), "-q"]
    for command in (
        arguments,
        ["stats", str(tmp_path / "made")],
        ["explain", "short", "--set", str(tmp_path / "made")],
    ):
        cli.main(command, standalone_mode=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "kept_by_user" in shown and shown.count("refilter") == 2
    assert (tmp_path / "made" / "report.html").exists()
