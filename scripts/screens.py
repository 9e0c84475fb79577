"""Take the screenshots in docs/images: the terminal, exported by Rich, and the pages, in headless Chromium.

    python scripts/screens.py

The example dump is cleaned in a scratch folder. Without Chromium, the screenshots of the pages stay as they are.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs/images"
sys.path.insert(0, str(ROOT))

import curate  # noqa: E402
from curate.rendering import mask_view  # noqa: E402
from curate.report.terminal.compare import render_comparison  # noqa: E402
from curate.report.terminal.conversations import render_conversation, render_mask  # noqa: E402
from curate.report.terminal.stats import render_stats  # noqa: E402
from tests.support import browser  # noqa: E402  # the tests' own

WEB_FONT = re.compile(r"@font-face \{.*?\}\s*", re.S)  # Rich's SVG would load one from the network
SCREENSHOTS = {  # name: page, width, height, dark, script that scrolls to the part to show
    "page-light": ("vicuna/report.html", 1280, 1500, False, ""),
    "page-dark": ("vicuna/report.html", 1280, 1100, True, "document.getElementById('samples').scrollIntoView()"),
    "page-mobile": ("vicuna/report.html", 390, 1400, False, ""),
    "page-compare": ("compare.html", 1280, 1500, False, ""),
}


def main() -> None:
    """Write all screenshots."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        shutil.copy(ROOT / "examples/sharegpt_dump.json", scratch)
        for recipe in ("vicuna", "fastchat"):
            curate.clean("sharegpt_dump.json", recipe, recipe=recipe, workers=1)
        terminal()
        curate.compare("vicuna", "fastchat", html="compare.html")
        pages(Path(scratch))
    for file in sorted(IMAGES.iterdir()):
        print(f"{file.relative_to(ROOT)}  {file.stat().st_size // 1000} kB")


def terminal() -> None:
    """Write the screenshots of the terminal."""
    save("stats", render_stats(curate.stats("vicuna")), "curate stats", 140)
    save(
        "compare",
        render_comparison(curate.compare("vicuna", "fastchat")),
        "curate stats vicuna --compare fastchat",
        140,
    )
    selection = curate.show("ZXmYdE5", "vicuna")
    viewer, problem = mask_view.load_viewer(selection.set.manifest)
    if viewer is None:
        raise SystemExit(problem)
    chat = selection[0]
    conversation = render_conversation(chat, viewer.count_message_tokens(chat.messages))
    save(
        "show",
        Group(conversation, Text(), render_mask(chat, viewer.view(chat.messages))),
        "curate show ZXmYdE5 --mask",
        100,
    )


def save(name: str, content: RenderableType, title: str, width: int) -> None:
    """Write a screenshot of a terminal of this width."""
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False
    )
    console.print(content, markup=False, emoji=False)
    svg = console.export_svg(title=title, unique_id=f"curate-{name}")
    (IMAGES / f"{name}.svg").write_text(WEB_FONT.sub("", svg), "utf-8")


def pages(folder: Path) -> None:
    """Write the screenshots of the pages."""
    program = browser.executable()
    if program is None:
        print("Chromium not found: no screenshots of the pages")
        return
    opened = browser.Browser(program, folder / "profile")
    for name, (page, width, height, dark, script) in SCREENSHOTS.items():
        opened.open(folder / page, width=width, height=height, dark=dark)
        if script:
            opened.run(script)
        opened.picture(IMAGES / f"{name}.png", full_page=False)
    opened.close()


if __name__ == "__main__":
    main()
