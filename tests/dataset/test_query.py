"""Conditions in SQL select rows; an invalid condition gets one clear line."""

from __future__ import annotations

import re

import polars as pl
import pytest

from curate.dataset.condition import is_row_by_row, parse_condition
from curate.dataset.curated_set import CuratedSet, open_set
from curate.errors import InputError
from tests.support import ROOT
from tests.support.small_set import write_set


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> CuratedSet:
    return open_set(write_set(tmp_path_factory.mktemp("where") / "set"))


MATCHES = {  # docs/show.md shows these in a table
    "tokens > 100": ["abc_0", "abc_1", "deadbeef"],
    "tokens between 100 and 300": ["abc_1", "deadbeef"],
    "language = 'ko'": ["deadbeef"],
    "language in ('ko', 'de')": ["deadbeef"],
    "language is null": ["twice"],
    "model like 'gpt-4%'": ["deadbeef"],
    "split = 'eval' or piece > 0": ["abc_1"],
    "array_contains(edit_names, 'html_to_markdown')": ["abc_0", "abc_1"],
    "array_length(edit_names) = 0": ["deadbeef", "twice"],
    "answer_tokens > 0.5 * tokens": ["abc_0"],
    "tokens = max(tokens)": ["abc_0"],
    "regexp_like(id, '^abc')": ["abc_0", "abc_1"],
    "not (language = 'en')": ["deadbeef"],
}


@pytest.mark.parametrize("sql", MATCHES)
def test_a_condition_selects_its_rows(small: CuratedSet, sql: str) -> None:
    rows = small.conversations()
    assert rows.filter(parse_condition(sql, rows)).collect()["id"].to_list() == MATCHES[sql]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("cast(source_id as int) is null and tokens > 500", ["abc_0"]),  # no error for a text that is no number
        ("CAST(tokens AS varchar) = '600' AND Upper (id) like 'ABC%'", ["abc_0"]),
        ("language is distinct from 'en'", ["deadbeef", "twice"]),
        ("case when piece > 0 then false else tokens in (600, 80) end", ["abc_0", "twice"]),
        ("id in (" + ", ".join(f"'{n}'" for n in range(9_000)) + ", 'twice')", ["twice"]),
        ("\"tokens\" != -1 and id != 'select '' from -- /* ' and tokens % 600 = 0", ["abc_0"]),
        (r"id = 'twice' or id = '\'", ["twice"]),  # a backslash escapes nothing
        ("  not(tokens>=80.5e0)\n", ["twice"]),
    ],
)
def test_longer_conditions_select_their_rows(small: CuratedSet, sql: str, expected: list[str]) -> None:
    rows = small.conversations()
    assert rows.filter(parse_condition(sql, rows)).collect()["id"].to_list() == expected


@pytest.mark.parametrize("sql", MATCHES)
def test_only_the_largest_is_a_condition_across_rows(small: CuratedSet, sql: str) -> None:
    assert is_row_by_row(parse_condition(sql, small.conversations())) == (sql != "tokens = max(tokens)")


@pytest.mark.parametrize(
    "sql",
    [
        *("tokens > avg(tokens)", "count(*) > 1", "tokens > median(tokens)", "tokens > quantile_cont(tokens, 0.5)"),
        *("row_number() over (order by tokens) = 1", "tokens > lag(tokens) over (order by id)", "first(id) = id"),
        *("sum(tokens) over (partition by split) > 1", "corr(tokens, turns) > 0"),
    ],
)
def test_conditions_across_rows_are_recognised(sql: str) -> None:
    assert not is_row_by_row(pl.sql_expr(sql))
    text = sql.replace("'", "")
    assert is_row_by_row(pl.sql_expr(f"""id = '"Agg" {text}'"""))


INVALID = {
    "misspelt": ("token > 100", "no column 'token'; did you mean 'tokens'?"),
    "far off": ("elephants > 100", "no column 'elephants'; known: "),
    "double quotes": ('language = "ko"', "write text in single quotes: 'ko'"),
    "unfinished": ("tokens >", "unable to parse"),
    "empty": ("", "unable to parse"),
    "a number": ("tokens", "it gives a number, not true or false"),
    "text": ("upper(language)", "it gives text"),
    "a query": ("select 1", "'select' belongs to a query"),
    "a subquery": ("id in (select id from read_csv('/etc/passwd'))", "'select' belongs to a query"),
    "all values of one": ("tokens > all (values (1))", "'all' belongs to a query"),
    "two": ("tokens > 1; drop table x", "';"),
    "a comment that hides a quote": ("true --'\n or id in (select 1) --'", "--"),
    "a comment in the middle": ("true /*'*/ or id in (select 1) /*'*/", "/*"),
    "a text with escapes": (r"id = E'\' or id in (select 1) --'", "E'"),
    "a file": ("read_csv('/etc/passwd') is null", "there is no function 'read_csv'"),
    "a long text": ("lpad(id, 2000000000, 'x') = ''", "there is no function 'lpad'"),
    "no function": ("loud(id)", "there is no function 'loud'"),
    "a pattern of the data": ("regexp_like(id, model)", "the pattern of regexp_like is not a text"),
    "no pattern": ("regexp_like(id, '(')", "regex parse error: unclosed group"),
    "too long": ("id = '" + "x" * 100_000 + "'", "100,007 characters, at most 100,000"),
    "too many parts": (" and ".join(["tokens > 1"] * 200), "599 parts besides values, at most 400"),
    "too deep": ("(" * 190 + "true" + ")" * 190, "unable to parse"),
    "text as number": ("tokens > 'many'", "cannot compare"),
    "inside messages": ("messages[1].role = 'user'", "[1].role"),
    "a field": ("messages.role = 'user'", ".role"),
    "no such field": ("edits is null", "no column 'edits'"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_condition_gets_one_clear_line(small: CuratedSet, case: str) -> None:
    sql, message = INVALID[case]
    with pytest.raises(InputError) as error:
        parse_condition(sql, small.conversations())
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 800


def test_a_literal_condition_selects_all_rows(small: CuratedSet) -> None:
    rows = small.conversations()
    assert rows.filter(parse_condition("true", rows)).select(pl.len()).collect().item() == 4


def test_the_conditions_on_the_page_of_show_are_valid(small: CuratedSet) -> None:
    table = (ROOT / "docs" / "show.md").read_text("utf-8").split("| condition | matches |")[1].split("\n\n")[0]
    conditions = re.findall(r"^\| `(.+?)` \|", table, re.M)
    assert len(conditions) >= 8
    for sql in conditions:
        parse_condition(sql, small.conversations())
