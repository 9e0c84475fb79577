"""The documentation matches the code: generated parts, names, command lines, Python blocks, links, the tree."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import polars as pl
import pytest

import curate
from curate.cli import COMMANDS, cli
from curate.dataset import columns, curated_set
from curate.filters import registry
from curate.pipeline import recipe
from curate.pipeline.repair_turns import LOSSES, REPAIRS
from curate.schemas.formats import FORMATS, PROBLEMS
from curate.schemas.prompts import TEMPLATES
from scripts import docs
from tests.support import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
BY_NAME = {str(page.relative_to(ROOT)): page for page in sorted(PAGES)}
LISTS = ("filters", "recipes", "formats", "presets")  # commands whose page is the page of what they list


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def command_lines() -> Iterator[tuple[str, str]]:
    """Yield each `curate` command line in the shell blocks, with the name of its page."""
    for name, path in BY_NAME.items():
        for block in blocks(path.read_text("utf-8"), "sh"):
            for line in block.splitlines():
                if match := re.search(r"(?:^|\| )(curate [^|>]*)", line):
                    yield name, match[1].strip()


def parsed(line: str) -> click.Context:
    """Parse a command line as the real program does, without running it."""
    _, name, *arguments = shlex.split(line, comments=True)
    with click.Context(cli, info_name="curate") as parent:
        command = cli.get_command(parent, name)
        assert command is not None, f"there is no command {name!r}"
        return command.make_context(name, arguments, parent=parent)


def built_in(*kinds: registry.Kind) -> list[registry.Rule]:
    """Return curate's own rules; other tests register more from their own files."""
    return [rule for rule in registry.rules(*kinds).values() if rule.function.__module__.startswith("curate.")]


@pytest.mark.parametrize(("path", "text"), docs.schemas().items(), ids=lambda value: getattr(value, "name", ""))
def test_the_json_schemas_are_up_to_date(path: Path, text: str) -> None:
    assert path.read_text("utf-8") == text, "run: python scripts/docs.py"


@pytest.mark.slow
@pytest.mark.parametrize("path", docs.pages(), ids=lambda path: path.name)
def test_generated_parts_and_recorded_runs_are_up_to_date(path: Path) -> None:
    _, stale = docs.renew(path.read_text("utf-8"))
    assert stale == [], "run: python scripts/docs.py"


@pytest.mark.slow
def test_a_stale_part_is_regenerated_and_a_different_time_is_not_stale() -> None:
    text = (ROOT / "docs" / "clean.md").read_text("utf-8")
    other_clock = re.sub(r"^time .*$", "time     9.9 s", text, flags=re.M)
    assert docs.renew(other_clock) == (other_clock, [])
    assert docs.renew(text.replace("--workers", "--wrokers")) == (text, ["help clean"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page_with_its_flags_and_is_linked(name: str) -> None:
    with click.Context(cli, info_name="curate") as parent:
        command = cli.get_command(parent, name)
    assert command is not None
    for flag in (flag for parameter in command.params for flag in parameter.opts if flag.startswith("-")):
        assert flag in page(name), f"docs/{name}.md does not name {flag}"
    assert f"`curate {name}`](docs/{name}.md)" in (ROOT / "README.md").read_text("utf-8")
    assert f"]({name}.md)" in page("index")


@pytest.mark.parametrize(
    ("page_name", "names"),
    [
        ("filters", [rule.name for rule in built_in()]),
        ("filters", [key for rule in built_in() for key in rule.settings]),
        ("filters", [column for rule in built_in("signal") for column in rule.columns]),
        ("recipes", list(recipe.RECIPES.summaries())),
        ("recipes", [rule.name for rule in built_in("filter", "corpus", "repair")]),
        ("clean", [*REPAIRS, *LOSSES, *PROBLEMS]),
        ("formats", list(FORMATS)),
        ("tokenizers", list(TEMPLATES)),
        ("curated-set", list(curated_set.FILES)),
    ],
    ids=[
        *("filters and signals", "settings of filters", "columns of signals", "recipes", "filters of recipes"),
        *("rules and repairs", "formats", "templates", "files of a set"),
    ],
)
def test_every_name_is_on_its_page(page_name: str, names: list[str]) -> None:
    text = page(page_name)
    missing = [name for name in names if not re.search(rf"`[^`\n]*\b{re.escape(name)}\b[^`\n]*`", text)]
    assert missing == []


def test_every_key_of_a_recipe_is_on_its_page() -> None:
    sections = recipe.Recipe().to_dict()
    keys = [f"{name}.{key}" for name, values in sections.items() if isinstance(values, dict) for key in values]
    assert len(keys) > 15
    assert [key for key in keys if f"`{key}`" not in page("recipes")] == []


def test_every_rule_in_the_source_is_documented() -> None:
    documented = page("clean") + page("convert") + page("filters") + page("mask")
    call = re.compile(r"(?:RecordError|Lost|\.edit)\(\s*\"(\w+)\"|TOO_LONG = \"(\w+)\"")
    folders = (ROOT / "curate", ROOT / "schemas", ROOT / "filters")
    sources = [path.read_text("utf-8") for folder in folders for path in folder.rglob("*.py")]
    rules = {name or constant for source in sources for name, constant in call.findall(source)}
    assert {"unreadable", "html_to_markdown", "too_long"} <= rules
    assert sorted(rule for rule in rules if f"`{rule}`" not in documented) == []


@pytest.mark.parametrize(
    ("file", "schema"),
    [
        ("conversations.parquet", columns.conversations_schema({})),
        ("rejected.parquet", columns.rejected_schema({})),
        ("originals.parquet", columns.ORIGINAL),
    ],
    ids=["conversations", "rejected", "originals"],
)
def test_the_page_of_the_set_has_every_column_in_order_with_its_type(file: str, schema: columns.Schema) -> None:
    section = page("curated-set").split(f"## {file}\n")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \| (\S+) \|", section, re.M)
    simple = {name: re.sub(r"Struct\(.*\)(?=\))", "Struct", str(dtype)) for name, dtype in schema.items()}
    assert documented == list(simple.items())


def test_the_page_of_the_set_has_every_field_of_messages_and_edits() -> None:
    fields = [*columns.MESSAGE.to_schema(), *columns.EDIT.to_schema()]
    assert [name for name in fields if f"`{name}`" not in page("curated-set")] == []


@pytest.mark.parametrize(("name", "line"), list(command_lines()), ids=lambda value: value)
def test_command_lines_in_the_docs_parse(name: str, line: str) -> None:
    parsed(line)


@pytest.mark.parametrize("line", ["curate clean --langauge en x.json", "curate clen x.json", "curate explain"])
def test_a_wrong_command_line_does_not_parse(line: str) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        parsed(line)


def test_formats_languages_recipes_and_templates_in_command_lines_exist() -> None:
    for _, line in command_lines():
        options = dict(re.findall(r"--(to|template|language) (\w+)", line))
        assert options.get("to", "vicuna") in FORMATS, line
        assert options.get("template", "vicuna") in TEMPLATES, line
        if language := options.get("language"):
            registry.check("languages", {"keep": (language,)})


@pytest.fixture(scope="module")
def example_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the example dump and its set, which blocks of Python read."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "examples", folder / "examples")
    with contextlib.chdir(folder):
        curate.clean("examples/sharegpt_dump.json", "curated")
    return folder


def python_blocks() -> list[tuple[str, str]]:
    """Return all Python blocks, the README's first."""
    names = sorted(BY_NAME, key=lambda name: (name != "README.md", name))
    return [(name, block) for name in names for block in blocks(BY_NAME[name].read_text("utf-8"), "python")]


@pytest.mark.slow
def test_blocks_of_python_run(example_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = []
    with contextlib.chdir(example_folder):
        for name, block in python_blocks():
            if "@rule" in block:  # load it as a file of filters, and use it
                Path("own.py").write_text(block, "utf-8")
                names = registry.load("own.py")
                assert names in (["long_winded", "questions"], ["few_words", "plain_quotes"])
                assert curate.clean("examples/sharegpt_dump.json", "own", filters=["own.py"], force=True).manifest
                registry.forget(registry.get(names[0]).function.__module__)
                continue
            code = compile(block, name, "exec")
            if "base_url=" in block:  # asks a server
                continue
            exec(code, {"__name__": "docs"})
            done.append(name)
    assert set(done) >= {"README.md", "docs/clean.md", "docs/explain.md", "docs/convert.md"}
    assert capsys.readouterr().out.count("kept") >= 1


def test_blocks_of_toml_are_recipes(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "my_filters.py", tmp_path)
    recipes = [block for path in BY_NAME.values() for block in blocks(path.read_text("utf-8"), "toml")]
    assert len(recipes) >= 3
    for block in recipes:
        (tmp_path / "mine.toml").write_text(block, "utf-8")
        loaded = recipe.load(tmp_path / "mine.toml")
        assert loaded.filters or loaded.signals
    registry.forget(registry.get("shouting").function.__module__)


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", BY_NAME)
def test_relative_links_are_not_broken(name: str) -> None:
    path = BY_NAME[name]
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text("utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def tree() -> set[str]:
    """Return the folders of the README's tree, those of the program with their parent."""
    text = (ROOT / "README.md").read_text("utf-8").split("## The tree\n")[1].split("\n## ")[0]
    folders, parent = set(), ""
    for indent, name in re.findall(r"^    ( *)([\w.]+/)", text, re.M):
        parent = parent if indent else name
        folders.add(f"{parent}{name}" if indent else name)
    return folders


def test_the_readmes_tree_names_every_folder_and_package() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout, so which folders are the project's own is not known")
    folders = {f"{path.split('/')[0]}/" for path in listed.stdout.splitlines() if "/" in path}
    packages = {f"curate/{path.parent.name}/" for path in (ROOT / "curate").glob("*/__init__.py")}
    assert tree() == folders | packages - {"curate/schemas/", "curate/filters/"}


def test_a_set_holds_the_files_on_its_page(example_folder: Path) -> None:
    folder = example_folder / "curated"
    assert {path.name for path in folder.iterdir()} == set(curated_set.FILES)
    signals = ("garbled_texts", "hidden_texts", "personal_data", "secret_values", "template_texts")
    further = [name for signal in signals for name in registry.get(signal).columns]
    schema = pl.read_parquet_schema(folder / "conversations.parquet")
    assert list(schema) == [*columns.conversations_schema({}), *further]


def test_the_docs_mention_only_the_project() -> None:
    for name, path in BY_NAME.items():
        text = path.read_text("utf-8")
        assert not re.search(r"/work/|/tmp/|/root/|/home/", text), name
        assert not re.search(r"\bTODO\b|\bTBD\b|lorem ipsum", text, re.I), name
        assert "../shared" not in text or name in ("CONTRIBUTING.md", "benchmarks/README.md"), name


def test_pages_of_the_lists_name_their_command() -> None:
    for name in LISTS:
        assert f"Usage: curate {name}" in page(name)


def test_pictures_are_small_used_and_self_contained() -> None:
    shown = "".join(page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md"))
    for picture in (ROOT / "docs/images").iterdir():
        assert f"(images/{picture.name})" in shown, f"{picture.name} stands on no page"
        assert picture.stat().st_size <= 300_000
        if picture.suffix == ".svg":
            assert not re.search(r"url\(|href=|<script", picture.read_text("utf-8").replace("url(#", ""))
    for name in re.findall(r"\(images/([^)]+)\)", shown):
        assert (ROOT / "docs/images" / name).is_file()
