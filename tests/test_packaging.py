"""An installation holds each file of the tree once, and light modules import quickly."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUP = PROJECT["tool"]["setuptools"]
MAPPED = {"schemas": "curate.schemas", "filters": "curate.filters"}  # top-level folder → package
ADVICE = "from curate.errors import MissingExtra; print(MissingExtra('this', 'train'))"
PROBE = "import curate.cli, curate.filters, curate.schemas.conversation as c; print(c.__file__)"
COPIED = ("curate", "schemas", "filters", "pyproject.toml", "README.md", "LICENSE")
HEAVY = ("polars", "numpy", "torch", "transformers", "msgspec", "datasets")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def packages_on_disk() -> set[str]:
    packages = set()
    for top in ("curate", *MAPPED):
        for folder in (
            ROOT / top,
            *(path for path in (ROOT / top).rglob("*") if path.is_dir() and not path.is_symlink()),
        ):
            if any(folder.glob("*.py")):
                first, *rest = folder.relative_to(ROOT).parts
                packages.add(".".join((MAPPED.get(first, first), *rest)))
    return packages


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources in git, with links kept, so that nothing is built inside the checkout."""
    folder = tmp_path_factory.mktemp("tree")
    for name in COPIED:
        run("cp", "-a", ROOT / name, folder / name, cwd=ROOT)
    return folder


def build(kind: str, tree: Path, out: Path) -> Path:
    """Call the build backend as pip does; return the wheel or the sdist."""
    code = f"import sys, setuptools.build_meta as b; print(b.build_{kind}(sys.argv[1]))"
    name = run(sys.executable, "-W", "ignore", "-c", code, out, cwd=tree).splitlines()[-1]
    return out / name


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


def members(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if ".dist-info/" not in name]


def expected_members() -> set[str]:
    """Return every module and data file of the tree, at the path it is imported from."""
    files = {path for top in ("curate", *MAPPED) for path in _files(ROOT / top)}
    return {_installed(path.relative_to(ROOT)) for path in files}


def _files(folder: Path) -> set[Path]:
    paths = set()
    for path in folder.iterdir():
        if path.is_symlink() or path.name == "__pycache__":
            continue
        paths |= _files(path) if path.is_dir() else {path}
    return paths


def _installed(path: Path) -> str:
    first, *rest = path.parts
    return "/".join((*MAPPED.get(first, first).split("."), *rest))


def test_the_package_list_is_what_is_on_disk() -> None:
    assert set(SETUP["packages"]) == packages_on_disk()


@pytest.mark.parametrize("name", sorted(MAPPED))
def test_the_links_into_the_package_are_relative_and_in_git(name: str) -> None:
    link = ROOT / "curate" / name
    assert link.readlink() == Path("..") / name
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    mode = run("git", "ls-files", "-s", f"curate/{name}", cwd=ROOT).split()[0]
    assert mode == "120000"


def test_a_wheel_holds_each_file_exactly_once(wheel: Path) -> None:
    names = members(wheel)
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert set(names) == expected_members()


def test_a_wheel_of_the_sdist_holds_the_same_files(tree: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", tree, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert sorted(members(build("wheel", unpacked, tmp_path))) == sorted(members(wheel))


@pytest.mark.slow
def test_a_wheel_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", target, wheel)
    run(*pip, cwd=tmp_path)
    origin = run(sys.executable, "-c", PROBE, cwd=tmp_path, PYTHONPATH=str(target))
    assert Path(origin) == target / "curate/schemas/conversation.py"
    advice = run(sys.executable, "-c", ADVICE, cwd=tmp_path, PYTHONPATH=str(target))
    assert advice == "this needs the extra [train]: pip install 'curate-chat[train]'"
    command = run(target / "bin/curate", "--help", cwd=tmp_path, PYTHONPATH=str(target))
    assert "curate" in command and "clean" in command


@pytest.mark.slow
def test_an_editable_install_works_from_another_folder(tree: Path, tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "-q")
    target = tmp_path / "site"
    run(*pip, "--target", target, "-e", tree, cwd=tmp_path)
    # -S ignores the .pth files of the running environment, so that only this install is found
    paths = [str(target), *(path for path in sys.path if Path(path).resolve() != ROOT)]
    start = f"import sys, site; sys.path[:0] = {paths!r}; site.addsitedir({str(target)!r}); "
    origin = Path(run(sys.executable, "-S", "-c", start + PROBE, cwd=tmp_path))
    assert origin.resolve() == (tree / "schemas/conversation.py").resolve()
    advice = run(sys.executable, "-S", "-c", start + ADVICE, cwd=tmp_path)
    assert advice == f"this needs the extra [train]: pip install -e {shlex.quote(f'{tree.resolve()}[train]')}"


def test_the_tree_works_uninstalled() -> None:
    code = "import curate.schemas.conversation as c; print(c.__file__)"
    assert run(sys.executable, "-S", "-c", code, cwd=ROOT) == str(ROOT / "curate/schemas/conversation.py")
    assert run(sys.executable, "-S", "-c", ADVICE, cwd=ROOT).endswith("[train]: pip install -e '.[train]'")


@pytest.mark.parametrize("module", ["curate", "curate.cli", "curate.errors", "curate.schemas.prompts"])
def test_a_light_module_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run(sys.executable, "-c", code, cwd=ROOT) == "[]"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom curate.cli import main\nsys.argv = ['curate', '--help']\n"
        f"try:\n    main()\nfinally:\n    print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert run(sys.executable, "-c", code, cwd=ROOT).endswith("[]")


def test_statistics_of_a_set_need_no_code_that_reads_dumps() -> None:
    code = "import sys, curate.api.stats; print([name for name in sys.modules if name.startswith('curate.ingest')])"
    assert run(sys.executable, "-c", code, cwd=ROOT) == "[]"


def test_no_module_imports_schemas_or_filters_without_curate() -> None:
    plain = ("import schemas", "import filters", "from schemas", "from filters")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for top in ("curate", *MAPPED, "tests")
        for path in sorted(_files(ROOT / top))
        if path.suffix == ".py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if line.lstrip().startswith(plain)
    ]
    assert wrong == []


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md", "benchmarks/README.md", "Makefile"])
def test_paths_in_the_text_exist(page: str) -> None:
    named = set(
        re.findall(r"(?<![\w./])(?:curate|schemas|filters|examples|benchmarks|requirements|docs)/[\w./-]*", _text(page))
    )
    missing = [path for path in sorted(named) if not (ROOT / path.rstrip(".")).exists()]
    assert named and missing == []


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_version_is_defined_once() -> None:
    import curate

    assert PROJECT["project"]["version"] == curate.__version__


def test_the_constraints_pin_everything_that_the_checks_install() -> None:
    lines = (ROOT / "requirements/constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["llama3"], *extras["train"], *extras["dev"]]
    names = {name.split(">=")[0].split("[")[0] for name in wanted}
    assert names - set(pins) == set()
