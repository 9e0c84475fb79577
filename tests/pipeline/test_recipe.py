"""Recipes: reading, clear errors, and the round trip through TOML."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from curate.cli import cli
from curate.errors import RecipeError
from curate.pipeline import recipe
from curate.pipeline.overrides import read_declarations
from curate.pipeline.recipe import Recipe, load, override


def written(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_the_default_recipe_turns_on_the_documented_rules() -> None:
    vicuna = load("vicuna")
    on = {"min_messages", "min_characters", "plugins", "list_indices", "exact_duplicates", "privacy", "secrets"}
    on |= {"mojibake", "hidden_characters", "template_leftovers", "truncated"}
    assert set(vicuna.filters) == on
    assert vicuna.filters["exact_duplicates"]["prefixes"] is True
    assert (vicuna.tokens.max_tokens, vicuna.tokens.template, vicuna.tokens.tokenizer) == (2048, "vicuna", "llama3")
    assert (vicuna.eval.fraction, vicuna.eval.minimum) == (0.01, 200)


def test_the_dataclass_defaults_equal_vicuna() -> None:
    vicuna = load("vicuna")
    for name, kind in recipe.SECTIONS.items():
        assert getattr(vicuna, name) == kind()


def test_vicuna_names_every_setting() -> None:
    values = tomllib.loads(recipe.RECIPES.source("vicuna"))
    for name, kind in recipe.SECTIONS.items():
        assert list(values[name]) == [item.name for item in dataclasses.fields(kind)]


def test_strict_turns_on_rules_that_vicuna_leaves_off() -> None:
    added = set(load("strict").filters) - set(load("vicuna").filters)
    on = {"vendor_mention", "identity", "refusals", "repeated_digits", "near_duplicates"}
    assert added == on | {"repetition", "empty_talk", "continuations"}


def test_answers_are_joined_before_they_are_judged_by_their_ends() -> None:
    on = list(load("strict").filters)
    assert on.index("continuations") < on.index("truncated")


def test_the_fastchat_recipe_decides_like_fastchat() -> None:
    fastchat = load("fastchat")
    assert fastchat.filters["vendor_mention"]["any_turn"] is True
    assert fastchat.filters["vendor_mention"]["whole_words"] is False
    assert (fastchat.repair.rate_limit, fastchat.repair.empty_answer, fastchat.repair.join_turns) == (
        "record",
        "cut",
        False,
    )


def test_built_in_recipes_are_listed_with_the_default_first() -> None:
    assert list(recipe.RECIPES.summaries()) == ["vicuna", "fastchat", "strict"]
    assert all(recipe.RECIPES.summaries().values())


@pytest.mark.parametrize("name", ["vicuna", "strict", "fastchat"])
def test_a_built_in_recipe_round_trips_through_toml(name: str, tmp_path: Path) -> None:
    first = load(name)
    assert load(written(tmp_path, first.to_toml())) == first
    assert load(first) == first


def test_a_users_recipe_changes_only_the_settings_it_names(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        base = "vicuna"
        [tokens]
        max_tokens = 4096
        [filters]
        plugins = false
        min_characters = { minimum = 40 }
        """,
    )
    mine, vicuna = load(path), load("vicuna")
    assert mine.name == "mine"
    assert mine.tokens == dataclasses.replace(vicuna.tokens, max_tokens=4096)
    assert mine.filters["min_characters"] == {"minimum": 40, "wide": 2}
    assert set(mine.filters) == set(vicuna.filters) - {"plugins"}


def test_a_base_can_be_a_file_next_to_the_recipe(tmp_path: Path) -> None:
    written(tmp_path, 'base = "strict"\n[tokens]\nmax_tokens = 512', "first.toml")
    second = load(written(tmp_path, 'base = "first.toml"\n[eval]\nfraction = 0', "second.toml"))
    assert (second.tokens.max_tokens, second.eval.fraction) == (512, 0.0)
    assert "identity" in second.filters


def test_true_keeps_the_settings_of_the_base(tmp_path: Path) -> None:
    path = written(tmp_path, 'base = "strict"\n[filters]\nmin_characters = true')
    assert load(path).filters["min_characters"] == load("strict").filters["min_characters"]


WRONG = {
    "unknown section": ("[token]\nmax_tokens = 1", "unknown section 'token'; did you mean 'tokens'?"),
    "unknown key": ("[tokens]\nmax_token = 1", "unknown setting 'tokens.max_token'; did you mean 'max_tokens'?"),
    "wrong type": ("[tokens]\nmax_tokens = '2k'", "tokens.max_tokens = '2k' must be a whole number"),
    "true is no number": ("[tokens]\nmax_tokens = true", "tokens.max_tokens = True must be a whole number"),
    "too small": ("[tokens]\nmax_tokens = 0", "tokens.max_tokens = 0 must be at least 1"),
    "too large": ("[eval]\nfraction = 1.0", "eval.fraction = 1.0 must be less than 1"),
    "not a number": ("[eval]\nfraction = nan", "eval.fraction = nan must be a finite number"),
    "unknown choice": (
        "[repair]\nempty_answer = 'exchang'",
        "must be one of 'exchange', 'cut', 'record'; did you mean 'exchange'?",
    ),
    "section is no table": ("tokens = 3", "tokens = 3 must be a section, [tokens]"),
    "filters is no table": ("filters = ['plugins']", "filters = ['plugins'] must be a section"),
    "filter is a number": ("[filters]\nplugins = 1", "filters.plugins = 1 must be true, false or a table"),
    "unknown filter": ("[filters]\nplugin = true", "unknown filter 'plugin'; did you mean 'plugins'?"),
    "unknown filter, off": ("[filters]\nplugin = false", "unknown filter 'plugin'; did you mean 'plugins'?"),
    "unknown setting of a filter": ("[filters]\nmin_messages = { minimun = 2 }", "did you mean 'minimum'?"),
    "wrong type of a filter's setting": ("[filters]\nmin_messages = { minimum = 'two' }", "'two'"),
    "files is no list": ("[filters]\nfiles = 'mine.py'", "filters.files = 'mine.py' must be a list"),
    "missing file of filters": ("[filters]\nfiles = ['nowhere.py']", "nowhere.py"),
    "unknown template": ("[tokens]\ntemplate = 'vicunna'", "'vicunna'; did you mean 'vicuna'?"),
    "name is a number": ("name = 3", "name = 3 must be text"),
    "base is a number": ("base = 3", "base = 3 must be the name of a recipe"),
    "not TOML": ("[tokens", "not valid TOML"),
    "its own base": ("base = 'mine.toml'", "check `base` for a cycle"),
}


@pytest.mark.parametrize(("text", "problem"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_recipe_is_refused_in_one_line_with_its_file(text: str, problem: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load(path)
    message = str(caught.value)
    assert problem in message
    assert "mine.toml" in message
    assert "\n" not in message


def test_a_mistake_in_the_base_is_reported_with_the_bases_name(tmp_path: Path) -> None:
    written(tmp_path, "[tokens]\nmax_tokens = -1", "first.toml")
    with pytest.raises(RecipeError, match=r"first\.toml: tokens\.max_tokens"):
        load(written(tmp_path, 'base = "first.toml"'))


@pytest.mark.parametrize(
    ("name", "problem"),
    [("vicunna", "did you mean 'vicuna'"), ("nowhere.toml", "cannot read"), (".", "cannot read")],
)
def test_a_missing_recipe_gets_one_clear_line(name: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load(name)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load(path)


def test_flags_override_the_recipe_and_change_nothing_else() -> None:
    vicuna = load("vicuna")
    changed = override(vicuna, language=["en,ko", "de"], max_tokens=512, eval_fraction=0.0, limit=7, originals=False)
    assert changed.filters["languages"]["keep"] == ("en", "ko", "de")
    assert (changed.tokens.max_tokens, changed.eval.fraction, changed.input.limit) == (512, 0.0, 7)
    assert changed.output.originals is False
    assert changed.tokens.tokenizer == vicuna.tokens.tokenizer
    assert override(vicuna) == vicuna


def test_a_wrong_flag_is_refused_like_a_setting() -> None:
    with pytest.raises(RecipeError, match=r"flags: unknown tokens\.template 'lama3'; did you mean 'llama3'"):
        override(load("vicuna"), template="lama3")


OWN = '''
import polars as pl
from curate.filters import rule

@rule
def {name}(word: str = "foo") -> pl.Expr:
    """Drop what says a word."""
    return pl.col("answers").list.join(" ").str.contains(word, literal=True)
'''


def test_paths_of_user_filters_are_relative_to_the_recipe_and_the_filters_are_on(tmp_path: Path) -> None:
    written(tmp_path, OWN.format(name="says_foo"), "own_recipe.py")
    mine = load(written(tmp_path, '[filters]\nfiles = ["own_recipe.py"]'))
    assert mine.filters == {"says_foo": {"word": "foo"}}
    assert mine.filter_files == (str(tmp_path / "own_recipe.py"),)
    assert load(written(tmp_path, mine.to_toml())) == mine


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_listing_a_recipe_runs_no_file_that_it_names(tmp_path: Path, flags: list[str]) -> None:
    written(tmp_path, f"open({str(tmp_path / 'trace')!r}, 'w')", "unsafe.py")
    recipe = written(tmp_path, '[filters]\nfiles = ["unsafe.py"]\nsays_foo = { word = "bar" }\nmin_messages = true')
    listed = CliRunner().invoke(cli, ["recipes", str(recipe), *flags])
    assert listed.exit_code == 0, listed.output
    assert "says_foo" in listed.output
    assert "unsafe.py" in listed.output
    assert not (tmp_path / "trace").exists()


def test_user_filters_from_a_flag_are_added(tmp_path: Path) -> None:
    file = written(tmp_path, OWN.format(name="says_bar"), "own_flag.py")
    changed = override(load("vicuna"), filters=[file])
    assert set(changed.filters) == {*load("vicuna").filters, "says_bar"}


def test_recipes_are_read_without_polars() -> None:
    code = (
        "import sys; from curate.pipeline.recipe import RECIPES; RECIPES.summaries(); RECIPES.source('strict'); "
        "print('polars' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
settings = st.dictionaries(texts, st.booleans() | numbers | texts | st.lists(texts).map(tuple), max_size=3)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Generate any valid recipe: numbers within their limits, any texts and filters."""
    sections: dict[str, Any] = {
        "input": recipe.InputSettings(*draw(st.tuples(*[st.integers(1, 2**62)] * 4))),
        "repair": recipe.RepairSettings(
            chrome=draw(st.booleans()), empty_answer=draw(st.sampled_from(["exchange", "cut", "record"]))
        ),
        "tokens": recipe.TokenSettings(tokenizer=draw(texts), max_tokens=draw(st.integers(1, 2**62))),
        "eval": recipe.EvalSettings(fraction=draw(st.floats(0, 1, exclude_max=True)), seed=draw(texts)),
        "output": recipe.OutputSettings(originals=draw(st.booleans())),
    }
    filters = draw(st.dictionaries(texts.filter(lambda name: name != "files"), settings, max_size=3))
    files = tuple(draw(st.lists(texts, max_size=2)))
    return Recipe(name=draw(texts), summary=draw(texts), filters=filters, filter_files=files, **sections)


@given(recipes())
def test_any_recipe_round_trips_through_toml_and_plain_values(generated: Recipe) -> None:
    read = tomllib.loads(generated.to_toml())
    assert recipe.from_dict(read, check_filters=False) == generated
    assert recipe.from_dict(generated.to_dict(), check_filters=False) == generated


def test_an_unknown_setting_is_a_type_error_with_the_nearest_name() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'max_token'; did you mean 'max_tokens'\?"):
        recipe.override(recipe.load("vicuna"), max_token=5)  # type: ignore[call-arg]


def test_every_override_is_a_setting_of_a_recipe() -> None:
    values = recipe.load("vicuna").to_dict()
    for name, (_, declaration) in read_declarations().items():
        section, _, key = declaration.key.partition(".")
        assert key.split(".")[0] in values[section] or section == "filters", name  # type: ignore[operator]
