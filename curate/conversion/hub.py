"""Push a converted file to the Hugging Face Hub as a private data set, with a card that carries the manifest."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curate._version import __version__
from curate.conversion.output import ConvertResult, Split
from curate.dataset import manifest
from curate.dataset.manifest import Manifest
from curate.display.figures import number
from curate.errors import CurateError, InputError

REFUSED = ("hf", "text")  # formats that the Hub's viewer and `load_dataset` do not read
FOLDER = "data"  # in the repository
CARD = "README.md"


def check_push(repository: str, form: str, source: str | Path, split: Split | None) -> None:
    """Raise InputError for a name that is none, or a file that would mix what is trained on with what is held out."""
    owner, slash, name = repository.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise InputError(f"push_to_hub is {repository!r}; give OWNER/NAME")
    if form in REFUSED:
        raise InputError(f"{form!r} is not pushed; give a format of records, such as 'parquet' or 'jsonl'")
    path = Path(source)
    if split is None and manifest.is_set(path) and manifest.read(path)[1].counts.eval:
        raise InputError("the set has train and eval; push each by itself: --split train, then --split eval")


def push(repository: str, source: str | Path, result: ConvertResult, form: str, split: Split | None) -> str:
    """Upload the files of a conversion and the card in one commit, and return the page's address.

    A new repository is private. Files of the other split that are there already stay. Raises CurateError in one line.
    """
    hub: Any = importlib.import_module("huggingface_hub")
    name = split or "train"
    api = hub.HfApi()
    try:
        url = str(api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True))
        there = {Path(file).name for file in api.list_repo_files(repository, repo_type="dataset")}
        files = {f"{FOLDER}/{name}{file.name.removeprefix(_stem(result.target))}": file for file in result.files}
        stale = [f"{FOLDER}/{each}" for each in there if _is_of(each, name) and f"{FOLDER}/{each}" not in files]
        splits = sorted({name} | {each for each in ("train", "eval") if any(_is_of(file, each) for file in there)})
        card = _card(repository, source, result, form, splits[::-1])
        operations = [
            *(hub.CommitOperationAdd(path, str(file)) for path, file in files.items()),
            hub.CommitOperationAdd(CARD, card.encode()),
            *(hub.CommitOperationDelete(path) for path in stale),
        ]
        message = f"curate convert --to {form}: {number(result.written)} conversations for {name}"
        api.create_commit(repository, operations, commit_message=message, repo_type="dataset")
    except Exception as error:  # of the Hub or of its HTTP library, which depends on the version
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CurateError(
            f"{result.target} is written, but not pushed to {repository!r}: {reason}; log in with: hf auth login"
        ) from error
    return url


def _stem(target: Path) -> str:
    return target.name.partition(".")[0]


def _is_of(file: str, split: str) -> bool:
    """Return whether a file of the repository holds a split: `train.jsonl` or `train-00000-of-00002.jsonl`."""
    return file.startswith((f"{split}.", f"{split}-"))


def _card(repository: str, source: str | Path, result: ConvertResult, form: str, splits: Sequence[str]) -> str:
    """Return the card: settings for `load_dataset`, a summary, and the manifest without what names this machine."""
    paths = "".join(f"  - split: {split}\n    path: {FOLDER}/{split}[.-]*\n" for split in splits)
    head = f"---\nconfigs:\n- config_name: default\n  data_files:\n{paths}tags:\n- conversational\n---\n"
    path = Path(source)
    own = manifest.read(path)[1] if manifest.is_set(path) else None
    written = f"{number(result.written)} conversations in the format `{form}`, written by curate {__version__}."
    load = (
        f'```python\nfrom datasets import load_dataset\n\ndata = load_dataset("{repository}", split="{splits[0]}")\n```'
    )
    return f"{head}\n# {repository.partition('/')[2]}\n\n{written}\n\n{load}\n\n{_describe(own)}"


def _describe(own: Manifest | None) -> str:
    if own is None:
        return "Converted from a dump without cleaning.\n"
    counts = own.counts
    rejected = "".join(f"| `{rule}` | {number(count.first)} |\n" for rule, count in sorted(counts.rules.items()))
    facts = {key: value for key, value in own.to_dict().items() if key not in ("run", "measures")}
    if facts["recipe"].get("tokens"):  # may hold a folder of this machine
        facts["recipe"]["tokens"]["tokenizer"] = own.tokenizer.name
    kept = f"{number(counts.kept)} of {number(counts.read)} records kept"
    rendered = f"{own.tokenizer.name}, template {own.template}, window {number(own.window)}"
    return (
        f"## How it was made\n\nRecipe `{own.recipe_name}`: {kept}, {number(counts.tokens)} tokens ({rendered}).\n\n"
        f"| rejected by | records |\n|---|---|\n{rejected}\n<details><summary>manifest</summary>\n\n"
        f"```json\n{json.dumps(facts, indent=1, ensure_ascii=False)}\n```\n\n</details>\n"
    )
