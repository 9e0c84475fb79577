"""Personal data and secrets: what is found, with exact spans, what is not, and that no value leaves the texts."""

from __future__ import annotations

import json
import random
import string
import uuid
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curate
from curate.errors import RecipeError
from curate.filters.personal_data import checks, matching, redaction
from curate.filters.personal_data.matching import Family, find
from curate.pipeline import recipe
from tests.support import ROOT

FAMILIES: tuple[Family, ...] = ("privacy", "secrets")


def marked(text: str, family: Family, type_: str | None = None) -> str:
    """Return the text with the values of a family, or of one type, in « »."""
    hits = find(pl.Series([text]), family).get(0, [])
    for hit in reversed([hit for hit in hits if type_ in (None, hit.rule.type)]):
        text = f"{text[: hit.start]}«{text[hit.start : hit.end]}»{text[hit.end :]}"
    return text


def plain(text: str) -> str:
    return text.replace("«", "").replace("»", "")


@pytest.mark.parametrize("family", FAMILIES)
def test_each_rule_finds_its_values_whole_and_spares_its_near_misses(family: Family) -> None:
    rules = matching.load_rules()[family]
    assert len(rules) > 20
    for rule in rules:
        assert rule.hits and rule.misses, rule.type
        for text in (text.replace("¦", "") for text in rule.hits):
            assert marked(plain(text), family, rule.type) == text
        for text in (text.replace("¦", "") for text in rule.misses):
            assert marked(text, family, rule.type) == text


def test_patterns_of_all_rules_are_found_by_the_search_of_all_texts() -> None:
    for family in FAMILIES:  # the examples one by one, and in one series with texts around them
        texts = [plain(text.replace("¦", "")) for rule in matching.load_rules()[family] for text in rule.hits]
        texts = [text for value in texts for text in ("Nothing here.", value, "12 and 34")]
        assert sorted(find(pl.Series(texts), family)) == list(range(1, len(texts), 3))


def with_check_digit(start: str, is_valid: Callable[[str], bool], digits: str = "0123456789") -> str:
    return next((start + digit for digit in digits if is_valid(start + digit)), "")


def number(rng: random.Random, length: int, first: str = "123456789") -> str:
    return rng.choice(first) + "".join(rng.choices(string.digits, k=length - 1))


def grouped(text: str, sizes: tuple[int, ...], mark: str) -> str:
    parts, start = [], 0
    for size in sizes:
        parts.append(text[start : start + size])
        start += size
    return mark.join(part for part in parts if part)


def iban(rng: random.Random) -> str:
    country, length = rng.choice([("DE", 18), ("ES", 20), ("AT", 16), ("PT", 21), ("PL", 24)])
    body = number(rng, length)
    return next(
        grouped(text, (4,) * 8, rng.choice(["", " "]))
        for text in (f"{country}{check:02d}{body}" for check in range(2, 99))
        if checks.iban(text)
    )


def birth(rng: random.Random) -> str:
    return f"{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}"


def key_of(alphabet: str) -> Callable[[random.Random, int], str]:
    return lambda rng, length: "".join(rng.choices(alphabet, k=length))


mixed = key_of(string.ascii_letters + string.digits)
hexadecimal = key_of("0123456789abcdef")

MAKERS: dict[str, Callable[[random.Random], str]] = {
    "email": lambda rng: (
        f"{key_of(string.ascii_lowercase)(rng, 6)}.{rng.randint(1, 99)}@"
        f"{key_of(string.ascii_lowercase)(rng, 7)}{rng.choice(['.com', '.co.kr', '.de', '.org', '.dev', '.cn'])}"
    ),
    "phone": lambda rng: rng.choice(
        [
            f"({rng.choice(['212', '415', '628'])}) {rng.randint(300, 499)}-{number(rng, 4)}",
            f"+1 {rng.choice(['212', '415'])}-{rng.randint(600, 799)}-{number(rng, 4)}",
            f"010-{rng.randint(2300, 8999)}-{number(rng, 4)}",
            f"+49 30 {number(rng, 7)}",
            f"+81 90 {number(rng, 4)} {number(rng, 4)}",
            f"1{rng.choice('3589')}{rng.randint(0, 9)}-{number(rng, 4)}-{number(rng, 4)}",
            f"0{rng.choice('67')} {' '.join(str(rng.randint(11, 99)) for _ in range(4))}",
        ]
    ),
    "card": lambda rng: grouped(
        with_check_digit(rng.choice("45") + str(rng.randint(1, 5)) + number(rng, 13), checks.luhn),
        (4, 4, 4, 4),
        rng.choice(["", " ", "-"]),
    ),
    "iban": iban,
    "ip": lambda rng: (
        f"{rng.choice([23, 45, 62, 91, 178, 203])}.{rng.randint(114, 250)}.{rng.randint(1, 250)}.{rng.randint(1, 250)}"
    ),
    "kr_rrn": lambda rng: with_check_digit(
        f"{rng.randint(50, 99)}{birth(rng)}-{rng.choice('12')}{number(rng, 5)}", checks.kr_rrn
    ),
    "cn_id": lambda rng: with_check_digit(
        f"{rng.choice(['310104', '440305', '510107'])}19{rng.randint(50, 99)}{birth(rng)}{number(rng, 3)}",
        checks.cn_id,
        "0123456789X",
    ),
    "jp_my_number": lambda rng: with_check_digit(number(rng, 11), checks.jp_my_number),
    "de_tax_id": lambda rng: with_check_digit(
        "".join(rng.sample("123456789", 8)) + rng.choice("00") + "0", checks.de_tax_id
    ),
    "us_ssn": lambda rng: f"{rng.randint(100, 665)}-{rng.randint(10, 99)}-{number(rng, 4)}",
    "in_aadhaar": lambda rng: grouped(
        with_check_digit(number(rng, 11, "23456789"), checks.in_aadhaar), (4, 4, 4), rng.choice([" ", "-"])
    ),
    "in_pan": lambda rng: (
        f"{key_of(string.ascii_uppercase)(rng, 3)}P{rng.choice('ABKMZ')}{number(rng, 4)}{rng.choice('FKQ')}"
    ),
    "aws_key_id": lambda rng: "AKIA" + key_of(string.ascii_uppercase + "234567")(rng, 16),
    "github_token": lambda rng: "ghp_" + mixed(rng, 36),
    "openai_key": lambda rng: f"sk-{mixed(rng, 20)}T3BlbkFJ{mixed(rng, 20)}",
    "google_api_key": lambda rng: "AIza" + mixed(rng, 35),
    "stripe_key": lambda rng: "sk_live_" + mixed(rng, 24),
    "sendgrid_key": lambda rng: f"SG.{mixed(rng, 22)}.{mixed(rng, 43)}",
    "digitalocean_token": lambda rng: "dop_v1_" + hexadecimal(rng, 64),
    "telegram_token": lambda rng: f"{number(rng, 10)}:AA{mixed(rng, 33)}",
}
CARRIERS = {
    "jp_my_number": ["マイナンバーは{}です。", "My Number: {}"],
    "de_tax_id": ["Meine Steuer-ID ist {}.", "IdNr. {},"],
    "in_pan": ["PAN {} is mine.", "His PAN: {}"],
}
ANYWHERE = [
    "It is {}.",
    '{{"value": "{}"}}',
    "그것은 {}입니다",
    "x = '{}'  # 3 of 4",
    "({})",
    "see {}\nnext",
    "号码{}。",
]
CODE = [
    lambda rng: f"const id = '{uuid.UUID(int=rng.getrandbits(128))}'",
    lambda rng: f"commit {hexadecimal(rng, 40)}",
    lambda rng: f"t = {rng.randint(1_500_000_000_000, 1_899_999_999_999)}  # ms",
    lambda rng: f"x = {rng.random()}",
    lambda rng: f"pip install foo=={rng.randint(0, 9)}.{rng.randint(0, 30)}.{rng.randint(0, 30)}.{rng.randint(0, 30)}",
    lambda rng: f"npm i @{mixed(rng, 5).lower()}/core@{rng.randint(1, 20)}.{rng.randint(0, 99)}.0",
    lambda rng: f"integrity sha512-{mixed(rng, 86)}==",
    lambda rng: f"array([{', '.join(str(rng.randint(0, 10**9)) for _ in range(6))}])",
    lambda rng: f"0x{hexadecimal(rng, 16)} <main+{rng.randint(1, 500)}>: 0x{hexadecimal(rng, 8)}",
    lambda rng: (
        f"2024-{birth(rng)[:2]}-{birth(rng)[2:]}T10:{rng.randint(10, 59)}:{rng.randint(10, 59)}.{number(rng, 6)}Z"
    ),
    lambda rng: f"y = model.{mixed(rng, 4).lower()}(a@b.T) @ w.sum() - {number(rng, 3)}",
    lambda rng: f"{number(rng, 3)} {number(rng, 3)} {number(rng, 4)} {number(rng, 4)}",
    lambda rng: f"host: 192.168.{rng.randint(0, 255)}.{rng.randint(1, 254)}:{number(rng, 4)}",
    lambda rng: f"api_key = os.environ['{mixed(rng, 6).upper()}_API_KEY']",
    lambda rng: f"password = 'my-password-{rng.randint(1, 99)}'",
    lambda rng: (
        f'<path d="M{rng.random() * 99:.3f} {rng.random() * 99:.3f}-{rng.random() * 99:.4f}c{number(rng, 2)}"/>'
    ),
    lambda rng: f"task-{mixed(rng, 24)} sk-{'x' * rng.randint(20, 48)} ghp_{'*' * 36}",
    lambda rng: f"mail user{rng.randint(1, 9)}@example.com, cc you@yourcompany.com",
    lambda rng: f"call 555-01{number(rng, 2)} or (212) 555-01{number(rng, 2)}",
    lambda rng: f"ISBN 0-306-{number(rng, 5)}-2, 978-3-16-{number(rng, 6)}-0",
]


@pytest.mark.parametrize("type_", MAKERS)
def test_generated_values_are_found_with_their_exact_spans(type_: str) -> None:
    rng = random.Random(f"values of {type_}")
    family: Family = "privacy" if type_ in matching.types("privacy") else "secrets"
    values = [value for value in (MAKERS[type_](rng) for _ in range(60)) if value]
    texts = [
        rng.choice(CARRIERS.get(type_, ANYWHERE)).replace("{}", value).replace("{{", "{").replace("}}", "}")
        for value in values
    ]
    found = find(pl.Series(texts), family)
    expected = {
        (place, text.index(value), value) for place, (text, value) in enumerate(zip(texts, values, strict=True))
    }
    actual = {
        (place, hit.start, texts[place][hit.start : hit.end])
        for place, hits in found.items()
        for hit in hits
        if hit.rule.type == type_
    }
    f1 = 2 * len(expected & actual) / (len(expected) + len(actual))
    assert f1 >= 0.97, sorted(expected ^ actual)[:6]


def test_a_thousand_lines_of_code_have_neither_personal_data_nor_secrets() -> None:
    rng = random.Random("code")
    lines = [rng.choice(CODE)(rng) for _ in range(1000)]
    for family in FAMILIES:
        assert {lines[place]: hits[0].rule.type for place, hits in find(pl.Series(lines), family).items()} == {}


def test_the_programs_own_source_has_no_hits_but_those_of_this_project() -> None:
    texts = pl.Series([path.read_text("utf-8") for path in sorted((ROOT / "curate").rglob("*.py"))])
    for family in FAMILIES:
        assert find(texts, family) == {}


SHAPES = {
    **{
        f"only {text!r}": text
        for text in ("1", "a", "@", "+1 ", "0x", "://", "-----BEGIN ", "eyJ", "sk-", ".", "AKIA", "1.")
    },
    **{
        f"only {text!r}": text
        for text in ("a@", "a.", "12 ", "1-", "DE00 ", ":AA", "secret=", "phone 1", "(212) ", "\\n")
    },
    "addresses": "bo@lumen.io ",
    "numbers": "4539 5787 6362 1486 ",
    "telephones": "+1 212-736-5000, ",
    "urls": "http://a:b12345@",
    "keys": "-----BEGIN PRIVATE KEY-----\nMII",
    "tokens": "eyJhbGciOiJIUzI1.eyJ1aWQiOjgxN.",
    "assignments": "password='aB3",
    "groups": "2001:db8:",
    "letters": "Aé漢😀1",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_hostile_text_takes_linear_time(shape: str) -> None:
    text = SHAPES[shape] * (100_000 // len(SHAPES[shape]))  # minutes, if each place were searched to the end
    for family in FAMILIES:
        find(pl.Series([text]), family)


def test_escapes_of_json_are_no_part_of_a_value() -> None:
    text = json.dumps({"a": "call\nbo@lumen.io\tor\n+1 212-736-5000", "b": "é+82-10-8731-4492"})
    assert marked(text, "privacy") == text.replace("bo@lumen.io", "«bo@lumen.io»").replace(
        "+1 212-736-5000", "«+1 212-736-5000»"
    ).replace("+82-10-8731-4492", "«+82-10-8731-4492»")


def clean(tmp_path: Path, filters: dict[str, object], *texts: str) -> pl.DataFrame:
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    (tmp_path / "dump.jsonl").write_text(json.dumps({"id": "a", "messages": turns}) + "\n", "utf-8")
    curate.clean(tmp_path / "dump.jsonl", tmp_path / "set", recipe=recipe.from_dict({"filters": filters}))
    return pl.read_parquet(tmp_path / "set" / "conversations.parquet")


def test_by_default_values_are_counted_by_type_and_named_by_a_short_hash(tmp_path: Path) -> None:
    answer = "Ask bo@lumen.io or ann@lumen.io, not bo@lumen.io; token ghp_" + mixed(random.Random(1), 36)
    row = clean(tmp_path, {"privacy": True, "secrets": True}, "Whom?", answer).row(0, named=True)
    assert (row["private_hits"], row["private_types"]) == (3, ["email"])
    assert (row["secret_hits"], row["secret_types"]) == (1, ["github_token"])
    assert len(row["private_hashes"]) == 2
    assert all(len(text.split()[1]) == 4 for text in row["private_hashes"] + row["secret_hashes"])


@pytest.mark.parametrize(("types", "kept"), [(("phone",), 1), (("email",), 0), ((), 0)])
def test_only_the_types_of_the_setting_drop_a_conversation(tmp_path: Path, types: tuple[str, ...], kept: int) -> None:
    filters = {"privacy": {"action": "drop", "types": types}}
    turns = [{"role": "user", "content": "Whom?"}, {"role": "assistant", "content": "Ask bo@lumen.io."}]
    fine = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ask nobody at all."}]
    lines = [json.dumps({"id": name, "messages": messages}) for name, messages in (("a", turns), ("b", fine))]
    (tmp_path / "dump.jsonl").write_text("\n".join(lines), "utf-8")
    result = curate.clean(tmp_path / "dump.jsonl", tmp_path / "set", recipe=recipe.from_dict({"filters": filters}))
    assert result.manifest.counts.kept == kept + 1
    rejected = pl.read_parquet(tmp_path / "set" / "rejected.parquet")
    assert all("bo@lumen" not in str(row) for row in rejected.drop("record").iter_rows())


PLANTED = {
    "email": "minsu.kim@naver.com",
    "phone": "+82-10-8731-4492",
    "card": "4539578763621486",
    "us_ssn": "536-22-8174",
    "github_token": "ghp_" + mixed(random.Random(2), 36),
    "password": "q8Zt-41vKs",
}


def planted_chat(**keys: object) -> dict[str, object]:
    """Return a record with the values in every text that a conversation has."""
    all_values = " ".join(value for name, value in PLANTED.items() if name != "password")
    calls = [
        {"name": "send", "arguments": {"to": PLANTED["email"], "card": 4539578763621486, "n": [4539578763621486, 1]}}
    ]
    return {
        "messages": [
            {"role": "system", "content": f"The user is {PLANTED['email']}."},
            {
                "role": "user",
                "content": f"I am {PLANTED['email'].upper()}: {all_values}\n```json\n{json.dumps(PLANTED)}\n```",
            },
            {
                "role": "assistant",
                "content": f'{{"card": {PLANTED["card"]}, "text": "a\\n{PLANTED["email"]}"}}',
                "reasoning_content": f"They gave {PLANTED['us_ssn']}, and postgres://app:{PLANTED['password']}@db.lumen.io/x",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {**call, "arguments": json.dumps(call["arguments"])}}
                    for call in calls
                ],
            },
            {
                "role": "tool",
                "tool_call_id": "c1",
                "content": f"<div>{all_values}</div> {PLANTED['password']}",
                "note": all_values,
            },
            {"role": "assistant", "content": f"Sent to {PLANTED['email']} and {PLANTED['phone']}."},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "send", "description": f"As {PLANTED['email']}", "parameters": {}},
            }
        ],
        "title": f"Chat of {PLANTED['phone']}",
        "contact": {"card": 4539578763621486},
        **keys,
    }


REDACT = {"privacy": {"action": "redact"}, "secrets": {"action": "redact"}}


@pytest.fixture(scope="module")
def redacted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a set of a chat with planted values, its copy, a short one, and records that cannot be parsed."""
    folder = tmp_path_factory.mktemp("redacted")
    email = PLANTED["email"]
    short = {"messages": [{"role": "user", "content": email}, {"role": "assistant", "content": "?"}]}
    odd = {"messages": [{"role": email, "content": f"{email} {PLANTED['card']}"}]}
    html = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": f"<p>It is <b>{email}</b>, of course.</p>"},
    ]
    named = {**planted_chat(title="A chat with an address as its id"), "id": f"{email}_1"}
    records = [
        planted_chat(),
        planted_chat(),
        short,
        {**odd, "id": email},
        {"messages": html},
        {"messages": email},
        named,
    ]
    lines = [*map(json.dumps, records), f'{{"messages": "{email}'.replace("}", ""), json.dumps(records[0])]
    (folder / "dump.jsonl").write_text("\n".join(lines), "utf-8")
    values = {"filters": {**REDACT, "min_characters": {"minimum": 40}, "exact_duplicates": True}}
    settings = {**values, "output": {"originals": False, "redact_rejects": True}}
    curate.clean(folder / "dump.jsonl", folder / "set", recipe=recipe.from_dict(settings))
    return folder / "set"


def everything_in(folder: Path) -> str:
    """Return all that a set holds as text: the tables' values, the manifest and the page."""
    tables = [repr(pl.read_parquet(path).to_dicts()) for path in folder.glob("*.parquet")]
    return "\n".join([*tables, *(path.read_text("utf-8") for path in folder.glob("*.[jh]*"))])


def test_no_planted_value_is_in_any_file_of_a_redacted_set(redacted: Path) -> None:
    text = everything_in(redacted)
    assert "[EMAIL_1]" in text and "[CARD_1]" in text
    assert {name: value for name, value in PLANTED.items() if value.lower() in text.lower()} == {}
    assert pl.read_parquet(redacted / "rejected.parquet").height >= 4


def test_an_id_with_a_value_stays_an_id_of_its_own() -> None:
    ids = ["minsu.kim@naver.com", "minsu.kim@naver.com_2", "bo@lumen.io", "chat_17", "_3", "", None]
    first, piece, other, *rest = redaction.redact_ids(ids, {"privacy": (), "secrets": ()})
    assert first and first.startswith("[EMAIL_") and len(first) == len("[EMAIL_]") + 16
    assert piece == f"{first}_2" and other != first and rest == ids[3:]
    assert redaction.redact_ids([first], {"privacy": ()}) == [first]


def test_ids_of_two_conversations_stay_two() -> None:
    ids = [f"kim{number}@naver.com" for number in range(700)]  # 16 bits would make some equal in 97 of 100 cases
    ids += [ids[0].title(), "+82 10-7281-9046", "+82 10 7281 9046"]
    changed = redaction.redact_ids(ids, {"privacy": ()})
    assert len(set(changed)) == len(ids) and not set(changed) & set(ids)
    assert redaction.redact_ids(changed, {"privacy": (), "secrets": ()}) == changed


def test_a_value_has_one_placeholder_in_all_texts_and_json_stays_json(redacted: Path) -> None:
    row = pl.read_parquet(redacted / "conversations.parquet").row(0, named=True)
    system, user, call, result, answer = row["messages"]
    assert system["content"] == "The user is [EMAIL_1]."
    assert user["content"].startswith("I am [EMAIL_1]: [EMAIL_1] [PHONE_1] [CARD_1] [US_SSN_1] [GITHUB_TOKEN_1]")
    assert answer["content"] == "Sent to [EMAIL_1] and [PHONE_1]."
    assert json.loads(call["content"]) == {"card": "[CARD_1]", "text": "a\n[EMAIL_1]"}
    assert "postgres://app:[URL_PASSWORD_1]@db.lumen.io/x" in call["reasoning"]
    [request] = json.loads(call["tool_calls"])
    arguments = request["function"]["arguments"]
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert arguments == {"to": "[EMAIL_1]", "card": "[CARD_1]", "n": ["[CARD_1]", 1]}
    assert result["content"].endswith("</div> [URL_PASSWORD_1]")
    assert json.loads(row["metadata"])["contact"] == {"card": "[CARD_1]"}
    assert "As [EMAIL_1]" in row["tools"]
    assert {"privacy", "secrets"} <= set(row["edit_names"])


def test_originals_and_rejects_hold_the_text_as_it_was_by_default(tmp_path: Path) -> None:
    email = PLANTED["email"]
    short = {"messages": [{"role": "user", "content": email}, {"role": "assistant", "content": "?"}]}
    (tmp_path / "dump.jsonl").write_text("\n".join(map(json.dumps, [planted_chat(), short])), "utf-8")
    filters = {**REDACT, "min_characters": {"minimum": 40}}
    curate.clean(tmp_path / "dump.jsonl", tmp_path / "set", recipe=recipe.from_dict({"filters": filters}))
    rejected = pl.read_parquet(tmp_path / "set" / "rejected.parquet").row(0, named=True)
    assert email.encode() in rejected["record"]
    assert email not in rejected["reason"] + rejected["evidence"]
    assert email.encode() in pl.read_parquet(tmp_path / "set" / "originals.parquet")["record"][0]
    assert email not in everything_in(tmp_path / "set").replace(repr(rejected["record"]), "").split("b'")[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output": {"redact_rejects": True}, "filters": REDACT}, "needs originals = false"),
        ({"output": {"redact_rejects": True, "originals": False}}, "needs a filter that redacts"),
    ],
    ids=["originals", "filter"],
)
def test_rejects_are_redacted_only_where_that_hides_something(values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe.from_dict(values)


@given(
    st.recursive(
        st.sampled_from([*PLANTED.values(), 4539578763621486, "a\nb", 'say "hi"', "é\\n", 1.5, None, True]),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["card", "phone", "x"]), inner, max_size=3)
        ),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, dict | list)),
    st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_redacted_json_is_json_of_the_same_shape_without_the_values(value: object, nested: bool) -> None:
    text = json.dumps({"arguments": json.dumps(value)} if nested else value)
    [changed] = redaction.redact_texts([text], {"privacy": (), "secrets": ()})
    parsed = json.loads(changed)
    inner = json.loads(parsed["arguments"]) if nested else parsed
    assert str(value).count("[") + str(value).count("{") <= str(inner).count("[") + str(inner).count("{")
    assert all(PLANTED[name] not in changed for name in ("email", "phone", "card", "us_ssn", "github_token"))
    assert redaction.redact_texts([changed], {"privacy": (), "secrets": ()}) == [changed]
