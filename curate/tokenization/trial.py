"""Try a tokenizer.json from elsewhere in a process of its own: the libraries abort on some, or grow without end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from curate import files
from curate.errors import TokenizerError, UnsafePathError
from curate.tokenization.cache import tokenizers_folder
from curate.tokenization.checks import DIFFICULT_TEXTS

CPU_SECONDS, MEMORY_BYTES = 60, 4 << 30  # LLaMA-3's takes 3 s and 0.5 GB
MAX_TOKENS_PER_BYTE = 20  # the longest normal form of a character has 18 times its bytes
_GREW = 3
_PROGRAM = f"""
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, ({CPU_SECONDS}, {CPU_SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
document, texts = json.load(sys.stdin)
from tokenizers import Tokenizer
import fastokens
tokenizer = Tokenizer.from_str(document)
tokenizer.no_truncation()
tokenizer.no_padding()
tokenizer.encode_special_tokens = True
for text in texts:
    if len(tokenizer.encode(text, add_special_tokens=False).ids) > {MAX_TOKENS_PER_BYTE} * len(text.encode()) + 20:
        sys.exit({_GREW})
fastokens.Tokenizer.from_json_str(document).encode_batch_flat(texts, split_special_tokens=True)
"""


def check(document: str, digest: str, name: str) -> None:
    """Raise TokenizerError if loading a tokenizer.json, or encoding with it, ends a process or exceeds the limits.

    What passed is remembered by the digest of its file. An exception of a library is left to the caller, who meets it
    too.
    """
    if _has_passed(digest):
        return
    command = [sys.executable, "-c", _PROGRAM]
    # Lone surrogates are escapes here, and refused by the libraries.
    data = json.dumps([document, DIFFICULT_TEXTS]).encode()
    code = subprocess.run(
        command, input=data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    ).returncode
    if code == _GREW:
        raise TokenizerError(f"{name!r} makes more than {MAX_TOKENS_PER_BYTE} tokens of each byte: it is damaged")
    if code < 0:
        too_long = -code in (signal.SIGXCPU, signal.SIGKILL)
        cause = "takes too long" if too_long else f"ends with {signal.Signals(-code).name}"
        raise TokenizerError(f"{name!r} cannot be read by the tokenizers library, which {cause}: it is damaged")
    if code == 0:
        _remember(digest)


def _has_passed(digest: str) -> bool:
    try:
        return (tokenizers_folder() / f"{digest}.passed").is_file()
    except (OSError, RuntimeError):
        return False


def _remember(digest: str) -> None:
    """Note that a file passed; do nothing if the cache is not writable."""
    try:
        tokenizers_folder().mkdir(parents=True, exist_ok=True)
        files.write_text(tokenizers_folder() / f"{digest}.passed", "")
    except (OSError, RuntimeError, UnsafePathError):
        return
