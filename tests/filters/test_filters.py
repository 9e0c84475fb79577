"""Each filter drops and keeps the right conversations; the registry refuses filters that would fail later."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import RecipeError
from curate.filters import apply, check, get, load, measure, registry, rules

SCHEMA: dict[str, pl.DataType] = {
    "prompts": pl.List(pl.String),
    "answers": pl.List(pl.String),
    "html_answers": pl.List(pl.Boolean),
    "turns": pl.Int64(),
    "characters": pl.Int64(),
    "model": pl.String(),
    "metadata": pl.String(),
    "language": pl.String(),
    "language_confidence": pl.Float32(),
    **registry.get("benchmark_overlap").columns,
    **registry.get("personal_data").columns,
    **registry.get("secret_values").columns,
    **dict.fromkeys(("mojibake", "hidden_characters", "template_leftovers"), pl.UInt32()),
    **registry.get("likelihood").columns,
    **registry.get("guard").columns,
}


def chat(
    answer: str | Sequence[str] = "It is sunny in Berlin today.",
    prompt: str = "What is the weather like?",
    *,
    html: bool = False,
    model: str | None = None,
    metadata: Mapping[str, object] | None = None,
    language: str = "en",
    overlap: Sequence[object] = (None,) * 6,
    private: Sequence[str] = (),
    secret: Sequence[str] = (),
    ifds: Sequence[float] = (),
    unsafe: float | None = None,
) -> dict[str, object]:
    """Return one row as `clean` passes it to filters: a prompt, then its answers."""
    answers = [answer] if isinstance(answer, str) else list(answer)
    return {
        "prompts": [prompt],
        "answers": answers,
        "html_answers": [html] * len(answers),
        "turns": 1 + len(answers),
        "characters": sum(map(len, [prompt, *answers])),
        "model": model,
        "metadata": json.dumps(metadata) if metadata else None,
        "language": language,
        "language_confidence": 0.99,
        **dict(zip(registry.get("benchmark_overlap").columns, overlap, strict=True)),
        **{f"private_{name}": value for name, value in counts(private).items()},
        **{f"secret_{name}": value for name, value in counts(secret).items()},
        **dict.fromkeys(registry.get("likelihood").columns),
        **dict.fromkeys(("ifd", "worst_ifd"), max(ifds, default=None)),
        "answer_ifds": list(ifds) or None,
        **dict.fromkeys(registry.get("guard").columns),
        "unsafe_probability": unsafe,
        "unsafe_categories": ["Defamation"] if unsafe else None,
    }


def counts(types: Sequence[str]) -> dict[str, object]:
    return {"hits": len(types), "types": list(types), "hashes": [f"{name} 3f2a" for name in types]}


def frame(*rows: dict[str, object]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=SCHEMA)


def verdict(row: dict[str, object], name: str, **chosen: object) -> dict[str, object]:
    return apply(frame(row), {name: check(name, chosen)}).row(0, named=True)


BROKEN_BY_CODE = "Steps:\n\n1. Install it:\n```\npip install x\n```\n1. Run it:\n```\nx\n```"
BROKEN_BY_BULLETS = "1. Enqueue:\n* push\n* count\n1. Dequeue:\n* pop"
BROKEN_BY_PROSE = "1. Paxos:\n\nPaxos reaches agreement.\n\n1. Raft:\n\nRaft elects a leader."
BROKEN_BY_TEXT = "**English:**\n\n1. Choose a verb.\n\na) go\nb) goes\n\n1. Choose a tense.\n\na) past"

OVERLAP = (0.4, 0.67, 56, "mmlu:7 (0.67)", "What is", None)  # the columns of benchmark_overlap

DROPPED: list[tuple[str, dict[str, object], dict[str, object], str]] = [
    ("min_messages", {}, chat([]), "messages: 1, minimum 2"),
    ("min_characters", {}, chat("Hello!", "Hi"), "characters: 8, minimum 16"),
    ("min_characters", {}, chat("不客气", "谢谢你"), "characters: 12, minimum 16"),
    ("min_characters", {}, chat("네, 맞아요", "안녕"), "characters: 14, minimum 16"),
    ("min_characters", {"wide": 1}, chat("巴黎", "法国的首都是哪里？"), "characters: 11, minimum 16"),
    (
        "misaligned",
        {"action": "drop"},
        chat(ifds=[0.5, 1.25]),
        "IFD 1.25, at most 1.0 allowed; the highest is 1.25, of answer 2",
    ),
    ("unsafe", {"action": "drop"}, chat(unsafe=0.75), "unsafe with probability 0.75, at most 0.5 allowed: Defamation"),
    ("plugins", {}, chat(metadata={"plugins": [{"name": "WebPilot"}]}), "made with plugins"),
    ("plugins", {"even_empty": True}, chat(metadata={"plugins": []}), "made with plugins"),
    ("models", {}, chat(model="Model: Default (GPT-3.5)"), "model Model: Default (GPT-3.5), kept are gpt-4"),
    ("models", {}, chat(model=None), "model not recorded, kept are gpt-4"),
    ("models", {"keep": ["claude", "gpt-4"]}, chat(model="bard"), "model bard, kept are claude, gpt-4"),
    ("list_indices", {}, chat(BROKEN_BY_CODE), "items of one list are all numbered 1."),
    ("list_indices", {}, chat(BROKEN_BY_BULLETS), "items of one list are all numbered 1."),
    ("list_indices", {}, chat(BROKEN_BY_TEXT), "items of one list are all numbered 1."),
    ("list_indices", {}, chat(BROKEN_BY_PROSE), "items of one list are all numbered 1."),
    ("list_indices", {}, chat(["Fine.", BROKEN_BY_CODE]), "items of one list are all numbered 1."),
    ("list_indices", {"any_source": True}, chat("Yes.", "So:\n1. a\n1. b"), "items of one list are all numbered 1."),
    ("list_indices", {"any_source": True}, chat(BROKEN_BY_CODE, html=True), "items of one list are all numbered 1."),
    ("vendor_mention", {}, chat("I am ChatGPT."), "names ChatGPT (1 of 1 messages)"),
    ("vendor_mention", {}, chat(["Hi.", "OPENAI's own."]), "names OPENAI (1 of 2 messages)"),
    ("vendor_mention", {}, chat("我是ChatGPT的助手"), "names ChatGPT (1 of 1 messages)"),
    ("vendor_mention", {"any_turn": True}, chat("Yes.", "Is ChatGPT down?"), "names ChatGPT (1 of 2 messages)"),
    ("vendor_mention", {"whole_words": False}, chat("import myopenailib"), "names openai (1 of 1 messages)"),
    ("vendor_mention", {"words": ["c++ corp."]}, chat("From C++ Corp. itself"), "names C++ Corp. (1 of 1 messages)"),
    ("identity", {}, chat("I'm ChatGPT, hello."), "says who it is (1 of 1 answers)"),
    ("identity", {}, chat("I am a large language model trained by OpenAI."), "says who it is"),
    ("identity", {}, chat("As an AI language model developed by OpenAI, I can't."), "says who it is"),
    ("identity", {}, chat("I was created by Anthropic."), "says who it is"),
    ("identity", {}, chat("我是由OpenAI训练的模型"), "says who it is"),
    ("repeated_digits", {}, chat("pi is 3.000000000"), "digit 0 9 times in a row, maximum 8"),
    ("repeated_digits", {"times": 3}, chat("Yes.", "call 7775"), "digit 7 3 times in a row, maximum 2"),
    ("privacy", {"action": "drop"}, chat(private=["email", "ip"]), "2 values of type email, ip"),
    ("privacy", {"action": "drop", "types": ["ip"]}, chat(private=["email", "ip"]), "1 values of type ip"),
    ("secrets", {"action": "drop"}, chat(secret=["jwt"]), "1 values of type jwt"),
    ("contamination", {}, chat(overlap=OVERLAP), "67 % of a benchmark's item, 56 words in a row: mmlu:7 (0.67)"),
    ("contamination", {"roles": ["user"], "coverage": 0.3}, chat(overlap=OVERLAP), "40 % of a benchmark's item"),
    ("languages", {"keep": ["en"]}, chat("안녕하세요", language="ko"), "language ko (0.99), kept are en"),
    ("languages", {"keep": ["zh"]}, chat(language="ja"), "language ja (0.99), kept are zh"),
    ("languages", {"skip": ["nb"]}, chat(language="no"), "language no (0.99), skipped are nb"),
    ("languages", {"keep": ["en"]}, chat(language="mixed"), "language mixed (0.99), kept are en"),
    ("languages", {"skip": ["unknown"]}, chat(language="unknown"), "language unknown (0.99), skipped are unknown"),
]


@pytest.mark.parametrize(("name", "chosen", "row", "reason"), DROPPED, ids=[f"{c[0]}-{c[3][:40]}" for c in DROPPED])
def test_a_filter_drops_with_its_reason(
    name: str, chosen: dict[str, object], row: dict[str, object], reason: str
) -> None:
    outcome = verdict(row, name, **chosen)
    assert outcome["rule"] == name
    assert str(outcome["reason"]).startswith(reason)
    assert outcome["rules"] == [name]


KEPT: list[tuple[str, dict[str, object], dict[str, object]]] = [
    ("min_messages", {}, chat("Hello.")),
    ("min_characters", {}, chat("Hello there!", "Hi..")),
    ("min_characters", {}, chat("一帆风顺", "用成语祝我")),
    ("min_characters", {}, chat("서울", "한국의 수도는?")),
    ("min_characters", {}, chat("東京", "日本の首都は？")),
    ("misaligned", {}, chat(ifds=[1.25])),
    ("unsafe", {}, chat(unsafe=0.75)),
    ("unsafe", {"action": "drop"}, chat(unsafe=0.5)),
    ("unsafe", {"action": "drop"}, chat()),
    ("misaligned", {"action": "drop"}, chat(ifds=[1.0])),
    ("misaligned", {"action": "drop"}, chat()),
    ("plugins", {}, chat()),
    ("plugins", {}, chat(metadata={"plugins": None})),
    ("plugins", {}, chat(metadata={"plugins": []})),
    ("plugins", {}, chat(metadata={"title": 'On "plugins"'})),
    ("models", {}, chat(model="GPT-4")),
    ("models", {}, chat(model="gpt4")),
    ("models", {}, chat(model="Model: GPT-4")),
    ("models", {}, chat(model="gpt-4-0613")),
    ("models", {"unknown": True}, chat(model=None)),
    ("models", {"unknown": True}, chat(model="")),
    ("list_indices", {}, chat(BROKEN_BY_CODE, html=True)),
    ("list_indices", {}, chat("Yes.", BROKEN_BY_CODE)),
    ("list_indices", {}, chat("# Cats\n1. soft\n2. small\n\n# Dogs\n1. loud\n2. loyal")),
    ("list_indices", {}, chat("# Cats\n\n1. soft\n\n# Dogs\n\n1. loud")),
    ("list_indices", {}, chat("**Pre-set (500m)**\n\n1. 5x100m\n\n**Main set**\n\n1. 15x100m")),
    ("list_indices", {}, chat("Advantages:\n\n1. It is fast.\n\nDrawbacks:\n\n1. It is loud.")),
    ("list_indices", {}, chat("A. Base\n1. Mix.\n\nB. Filling\n1. Whip.")),
    (
        "list_indices",
        {},
        chat("Step 1: The board\n1. Unpack it.\n2. Earth it.\nStep 2: The card\n1. Push.\nStep 3: Cables\n1. Plug."),
    ),
    ("list_indices", {}, chat("II. Places\n1. The park.\nIII. Tips\n1. Go early.")),
    ("list_indices", {}, chat("Breakfast\n\n1. Eggs.\n\nLunch (light)\n\n1. Soup.")),
    ("list_indices", {}, chat("早餐\n1. 粥\n\n午餐\n1. 面")),
    ("list_indices", {}, chat("Lazy numbering in code:\n\n```markdown\n1. a\n\n1. b\n```\nrenders as 1, 2.")),
    ("list_indices", {}, chat("````markdown\n1. a\n```sh\nx\n```\n1. b\n```sh\ny\n```\n````")),
    ("list_indices", {}, chat("1. one\n```\nx\n```\n2. two\n```\ny\n```\n3. three")),
    ("list_indices", {}, chat("1. one\n   1. inner of one\n2. two\n   1. inner of two")),
    ("vendor_mention", {}, chat("Yes.", "Is ChatGPT by OpenAI?")),
    ("vendor_mention", {}, chat("set OPENAI_API_KEY first")),
    ("identity", {}, chat("ChatGPT is a product of OpenAI.")),
    ("identity", {}, chat("I am Claudette, your guide.")),
    ("identity", {}, chat("Yes.", "I am ChatGPT")),
    ("repeated_digits", {}, chat("00000000 and 123456789")),
    ("privacy", {}, chat(private=["email"])),
    ("privacy", {"action": "redact"}, chat(private=["email"])),
    ("privacy", {"action": "drop", "types": ["ip"]}, chat(private=["email"])),
    ("secrets", {}, chat(secret=["jwt"])),
    ("contamination", {}, chat()),
    ("contamination", {"roles": ["user"]}, chat(overlap=OVERLAP)),
    ("contamination", {"action": "flag"}, chat(overlap=OVERLAP)),
    ("languages", {"keep": ["en"]}, chat(language="en")),
    ("languages", {"keep": ["en"]}, chat(language="unknown")),
    ("languages", {"keep": ["zh"]}, chat(language="zh-tw")),
    ("languages", {"keep": ["en", "mixed"]}, chat(language="mixed")),
    ("languages", {"skip": ["ko"]}, chat(language="en")),
]


@pytest.mark.parametrize(("name", "chosen", "row"), KEPT, ids=[f"{c[0]}-{i}" for i, c in enumerate(KEPT)])
def test_a_filter_keeps_what_it_should(name: str, chosen: dict[str, object], row: dict[str, object]) -> None:
    assert verdict(row, name, **chosen) == {"rule": None, "reason": None, "evidence": None, "rules": []}


def test_every_filter_of_these_tables_has_a_dropped_and_a_kept_case() -> None:
    assert {case[0] for case in DROPPED} == {case[0] for case in KEPT} <= rules("filter").keys()  # see test_examples


def test_evidence_begins_at_the_match_and_is_cut() -> None:
    outcome = verdict(chat("x" * 500 + " by OpenAI " + "y" * 500), "vendor_mention")
    assert str(outcome["evidence"]).startswith("OpenAI yyy")
    assert len(str(outcome["evidence"])) <= 200
    assert str(verdict(chat(BROKEN_BY_CODE), "list_indices")["evidence"]).startswith("1. Install it:\n[code]\n1. Run")


def test_a_setting_reproduces_the_list_rule_of_fastchat() -> None:
    texts = ["\n1. a\n1. b", "\n1. a 2\n1. b", "1. a\n1. b", "x\n1. a\n\nlong\ntext\n1. b", "\n1. \n1. ", "\n1.a\n1.b"]
    reported = apply(frame(*map(chat, texts)), {"list_indices": {"any_source": True}})["rule"]
    assert [rule is not None for rule in reported] == [bool(re.search(r"\n1\. [^2]*\n1\. ", text)) for text in texts]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="0011a ", max_size=30), max_size=4), st.integers(2, 9))
def test_repeated_digits_equals_a_regex_with_a_back_reference(texts: list[str], times: int) -> None:
    outcome = verdict(chat(texts, "?"), "repeated_digits", times=times)
    expected = any(re.search(rf"(\d)\1{{{times - 1}}}", text) for text in texts)
    assert (outcome["rule"] is not None) == expected


# --- several filters at once


def test_the_first_rule_of_the_recipe_rejects_a_row_and_all_matching_rules_are_listed() -> None:
    rows = frame(chat([], "Hi"), chat("I am ChatGPT."), chat("Hi!", "Hi"))
    chosen = {name: check(name) for name in ("min_characters", "min_messages", "vendor_mention")}
    verdicts = apply(rows, chosen)
    assert verdicts["rule"].to_list() == ["min_characters", "vendor_mention", "min_characters"]
    assert verdicts["rules"].to_list() == [["min_characters", "min_messages"], ["vendor_mention"], ["min_characters"]]
    turned = apply(rows, dict(reversed(chosen.items())))
    assert turned["rule"].to_list() == ["min_messages", "vendor_mention", "min_characters"]
    assert turned["reason"].to_list()[0] == "messages: 1, minimum 2"


def every_filter() -> dict[str, dict[str, object]]:
    needed = {"languages": {"keep": ["en"]}}
    return {name: check(name, needed.get(name)) for name in rules("filter")}


def test_no_filters_or_no_rows_give_an_empty_result() -> None:
    assert apply(frame(chat()), {}).row(0) == (None, None, None, [])
    every = every_filter()
    assert apply(frame(), every).height == 0
    assert apply(frame(), {}).schema == apply(frame(chat()), every).schema


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([case[2] for case in DROPPED + KEPT if isinstance(case[2], dict)]), max_size=8))
def test_a_row_gets_the_same_verdict_alone_and_in_any_batch(rows: list[dict[str, object]]) -> None:
    every = every_filter()
    alone = [apply(frame(row), every).row(0) for row in rows]
    assert apply(frame(*rows), every).rows() == alone


# --- settings


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("min_mesages", {}, "unknown filter 'min_mesages'; did you mean 'min_messages'?"),
        ("min_messages", {"minimun": 2}, "has no setting 'minimun'; did you mean 'minimum'?"),
        ("min_messages", {"minimum": "2"}, "minimum = '2' is not allowed; give a whole number, like 2"),
        ("min_messages", {"minimum": True}, "minimum = True is not allowed"),
        ("plugins", {"even_empty": 1}, "even_empty = 1 is not allowed; give true or false, like false"),
        ("models", {"keep": "gpt-4"}, "keep = 'gpt-4' is not allowed; give a list of texts, like [\"gpt-4\"]"),
        ("models", {"keep": [4]}, "keep = [4] is not allowed"),
        ("models", {"keep": []}, "would drop everything"),
        ("models", {"keep": ["-"]}, "would drop everything"),
        ("min_messages", {"minimum": -1}, "minimum = -1 is not allowed; give 0 or more"),
        ("min_characters", {"minimum": -1}, "minimum = -1 is not allowed; give 0 or more"),
        ("refusals", {"share": 1.5}, "share = 1.5 is not allowed; give a number from 0 to 1"),
        ("refusals", {"share": float("nan")}, "share = nan is not allowed"),
        ("misaligned", {"max_ifd": -0.5}, "max_ifd = -0.5 is not allowed; give 0 or more"),
        ("unsafe", {"above": 50}, "above = 50.0 is not allowed; give a number from 0 to 1"),
        ("identity", {"names": ["claude", "("]}, "none empty or only marks"),
        ("identity", {"makers": []}, "makers = [] must name at least one word"),
        ("identity", {"classes": ["claims"]}, "filter 'identity': classes = ['claims']; did you mean 'claim'?"),
        ("identity", {"action": "cut"}, "filter 'identity': action = 'cut'; known: drop"),
        (
            "near_duplicates",
            {"threshold": "high"},
            "filter 'near_duplicates': threshold = 'high' is not allowed; give a number",
        ),
        ("languages", {"keep": ["EN"]}, "unknown language 'EN' in keep; did you mean 'en'?"),
        ("languages", {}, "filter 'languages' names no language; give keep or skip"),
        ("vendor_mention", {"words": ["openai", " "]}, "none empty"),
        ("privacy", {"action": "mask"}, "action = 'mask' is not allowed; give flag, redact or drop"),
        ("secrets", {"types": ["jwtt"]}, "unknown type 'jwtt'; did you mean 'jwt'"),
        ("contamination", {"action": "mask"}, "action = 'mask' is not allowed; give drop or flag"),
        ("contamination", {"roles": ["system"]}, "roles = ['system'] must be of user, assistant"),
        ("contamination", {"coverage": 0.1}, "coverage = 0.1 is not allowed; give 0.25 or more, below 1"),
        ("contamination", {"benchmarks": []}, "benchmarks = [] names none; curate has "),
        ("contamination", {"benchmarks": ["gsm8"]}, "unknown benchmark 'gsm8'; did you mean 'gsm8k'?"),
        ("contamination", {"benchmarks": ["no/own.fingerprint"]}, "'no/own.fingerprint' does not exist; curate finger"),
        ("repeated_digits", {"times": 1}, "times = 1 is not allowed; give 2 or more"),
        ("languages", {"keep": ["english"]}, "unknown language 'english' in keep"),
        ("languages", {"keep": ["zh-ch"]}, "did you mean 'zh-cn'?"),
        ("languages", {"keep": ["unknown"]}, "unknown language 'unknown' in keep"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(name: str, chosen: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        check(name, chosen)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_are_completed_and_toml_lists_become_tuples() -> None:
    assert check("min_messages") == {"minimum": 2}
    assert check("models", {"keep": ["gpt-4", "claude"]}) == {"keep": ("gpt-4", "claude"), "unknown": False}
    assert check("exact_duplicates", {"prefixes": False})["prefixes"] is False


def test_every_rule_has_a_summary_sentence() -> None:
    for name, rule in rules().items():
        assert re.match(r"[A-Z].*\.", rule.summary), name
        assert name.isidentifier()
    assert get("exact_duplicates").kind == "corpus"
    sides = {"prompt_language": pl.String(), "answer_language": pl.String()}
    assert dict(get("language").columns) == {"language": pl.String(), "language_confidence": pl.Float32(), **sides}


# --- a user's own file

HEAD = "import polars as pl\nfrom curate.filters import rule, signal, reject\n\n"


def write(folder: Path, body: str, name: str = "my_filters.py") -> Path:
    path = folder / name
    path.write_text(HEAD + body)
    return path


def filter_of(body: str, name: str = "mine", doc: str = '"""Drop what I say."""') -> str:
    return f"@rule\ndef {name}(most: int = 3) -> pl.Expr:\n    {doc}\n    return {body}\n\n"


@pytest.fixture(autouse=True)
def forget_users_filters() -> object:
    yield
    for module in {rule.function.__module__ for rule in rules().values()}:
        if module.startswith(registry.USER_MODULE):
            registry.forget(module)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('pl.col("turns") > most', "Drop what I say."),
        ('pl.when(pl.col("turns") > most).then(pl.format("{} turns", "turns"))', "4 turns"),
        ('reject(pl.col("turns") > most, "{n} of {most}", n=pl.col("turns"), most=most)', "4 of 3"),
    ],
    ids=["true", "text", "verdict"],
)
def test_a_users_filter_may_return_true_text_or_a_verdict(tmp_path: Path, body: str, reason: str) -> None:
    assert load(write(tmp_path, filter_of(body))) == ["mine"]
    verdicts = apply(frame(chat("Fine."), chat(["a", "b", "c"])), {"mine": check("mine")})
    assert verdicts["reason"].to_list() == [None, reason]
    assert apply(frame(chat(["a", "b", "c"])), {"mine": check("mine", {"most": 9})})["rule"].to_list() == [None]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('pl.col("turnz") > 3', 'unable to find column "turnz"'),
        ('pl.col("turns") + 1', "gives Int64; allowed are true, text, or a verdict"),
        ("True", "returned bool, not a Polars expression"),
        ('pl.col("turns").mean() > 2', "gives 1 values for 2 rows; give one for each row"),
        ('pl.col("answers").explode().is_null()', "rows"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ('pl.col("turns").str.len_chars() > 3', "expected `String`"),
        ('pl.col("answers").list.get(1) == "c"', "out of bounds"),
    ],
)
def test_a_failing_users_filter_is_reported_with_its_file_in_one_line(tmp_path: Path, body: str, message: str) -> None:
    path = write(tmp_path, filter_of(body))
    load(path)
    with pytest.raises(RecipeError) as error:
        apply(frame(chat(["a", "b"]), chat("only one"), chat(["a", "b", "c"])), {"min_messages": {}, "mine": {}})
    assert message in str(error.value)
    assert f"filter 'mine' in {str(path)!r}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no luck')", "ValueError: no luck"),
        ("def broken(:\n    pass", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = 1", "defines no filter; decorate one with @curate.filters.rule"),
        (filter_of("pl.lit(True)", doc="pass"), "has no docstring"),
        (filter_of("pl.lit(True)", name="plugins"), "filter 'plugins' is already defined"),
        (filter_of("pl.lit(True)") * 2, "filter 'mine' is already defined"),
        ('@rule\ndef mine(most) -> pl.Expr:\n    """Doc."""\n    return pl.lit(True)', "setting 'most' has no default"),
    ],
    ids=["raises", "syntax", "exits", "empty", "no docstring", "built-in name", "twice", "no default"],
)
def test_a_users_file_that_cannot_be_loaded_is_refused_in_one_line(tmp_path: Path, body: str, message: str) -> None:
    path = write(tmp_path, body)
    before = list(rules())
    with pytest.raises(RecipeError) as error:
        load(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert list(rules()) == before


def test_files_are_identified_by_path_and_reloaded_after_a_change(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert load(write(tmp_path / "a", filter_of("pl.lit(True)"))) == ["mine"]
    assert load(write(tmp_path / "b", filter_of("pl.lit(True)", name="other"))) == ["other"]
    with pytest.raises(RecipeError, match="already defined"):
        load(write(tmp_path / "b", filter_of("pl.lit(True)", name="mine")))
    assert load(write(tmp_path / "a", filter_of("pl.lit(True)", name="renamed"))) == ["renamed"]
    assert {"mine", "other"} & set(rules()) == set()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.py", tmp_path, tmp_path / "list.txt"):
        with pytest.raises(RecipeError, match="no file of filters"):
            load(path)


def test_a_users_signal_is_measured_and_a_filter_can_read_it(tmp_path: Path) -> None:
    signal = '@signal(shouts=pl.UInt32)\ndef shouts(frame: pl.DataFrame) -> pl.DataFrame:\n    """Count "!"."""\n'
    signal += '    return frame.select(shouts=pl.col("answers").list.join("").str.count_matches("!"))\n\n'
    load(write(tmp_path, signal + filter_of('pl.col("shouts") > most')))
    measured = measure(frame(chat("Hi!!!!"), chat()), {"shouts": {}})
    assert measured["shouts"].to_list() == [4, 0]
    assert apply(measured, {"shouts": {}, "mine": {}})["rule"].to_list() == ["mine", None]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("frame", "must return a frame of {'shouts': UInt32}"),
        ("None", "not NoneType"),
        ("frame.select(shouts=pl.lit(1, pl.UInt32))", "returned 1 rows for 2 conversations"),
        ("frame.select(pl.col('gone'))", "unable to find column"),
    ],
)
def test_a_users_signal_of_the_wrong_shape_is_reported(tmp_path: Path, body: str, message: str) -> None:
    text = f'@signal(shouts=pl.UInt32)\ndef shouts(frame):\n    """Count."""\n    return {body}\n'
    path = write(tmp_path, text)
    load(path)
    with pytest.raises(RecipeError) as error:
        measure(frame(chat(), chat()), {"shouts": {}})
    assert message in str(error.value)
    assert str(path) in str(error.value)
