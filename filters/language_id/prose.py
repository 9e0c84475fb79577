"""Leave only what a person wrote: remove code, formulas, markup and addresses from texts.

Code blocks are known by their fences. Code without a fence is known by its lines, which end as statements do or begin
as those of Python and of a shell, and by its words, which hold characters that words of prose do not (`x_max`,
`foo(bar`, `a[0]`, `$x^2$`, `example.com`). Words are of ASCII characters, so that text without spaces, such as Chinese,
stays.
"""

from __future__ import annotations

import polars as pl

from curate.filters.structure import FENCED

FENCES = ("```", "~~~")
INLINE_CODE = r"`[^`\n]+`"
FORMULA = r"\\\[(?:[^\n]|\n[^\n])*?\\\]|\$\$(?:[^\n]|\n[^\n])*?\$\$"  # displayed, without an empty line
TAG = r"</?[A-Za-z!][^<>\n]*>"
STATEMENT = r"[^\n]*(?:[{}\\]|[\])\"'][;,:)]|[\])}=\[({.\"'_<>][^\n]*;|->|=>)"
PYTHON = (
    r"[ \t]*(?:(?:else|try|finally) ?:|for [!-~ ]+ in [!-~ ]+:|with [!-~ ]+ as \w+:|except \w+(?: as \w+)?:|class \w+:"
    r"|\w+ [-+*/]?= [!-~]+(?: [!-~]+){0,3}"
    r"|[ \t](?:(?:el)?if [!-~ ]+:|while [!-~ ]+:|return(?: [!-~ ]+)?|raise \w+|break|continue|pass))"
)
TOOLS = (
    r"(?:apt|apt-get|brew|cargo|conda|dnf|npm|pip3?|yarn|yum) "
    r"(?:add|build|init|install|remove|run|start|test|update|upgrade)"
    r"|git (?:add|branch|checkout|clone|commit|diff|fetch|init|log|merge|pull|push|rebase|reset|stash|status)"
    r"|docker (?:build|exec|images|ps|pull|push|run|stop)|systemctl (?:enable|restart|start|status|stop)"
    r"|python3? [!-~]+\.py|sudo [!-~]+|(?:curl|wget) (?:-|http)[!-~]*|mkdir|chmod"
    r"|ls -[a-zA-Z]+|cd [!-~]+$|make (?:-j|install|clean|all)"
)
COMMAND = rf"(?:[$#] [!-~ ]+|(?:sudo )?(?:{TOOLS})(?: [!-~]+){{0,6}})"
CODE_LINE = rf"(?m)^(?:{STATEMENT}|{PYTHON}|{COMMAND})[ \t]*$"
IMPORT = r"(?:from [!-~]+ )?import [!-~]+(?: as [!-~]+)?"
EQUATION = r"\b[A-Za-z]{1,4} ?=+ ?[!-~]+"
CODE_WORD = r"[!-~]*(?:[_={}<>\\|$#^~\[\];@%&+]|[A-Za-z][0-9]|[0-9][A-Za-z]|\w[(.:/]\w|\w\()[!-~]*"


def without_blocks(text: pl.Expr, instead: str = "\n") -> pl.Expr:
    """Return the texts with `instead` of fenced code blocks."""
    fenced = pl.any_horizontal(text.str.contains(fence, literal=True) for fence in FENCES)
    return pl.when(fenced).then(text.str.replace_all(FENCED, instead)).otherwise(text)


def prose(text: pl.Expr) -> pl.Expr:
    """Return the texts without inline code, formulas, markup, addresses, and what looks like code."""
    for pattern in (INLINE_CODE, FORMULA, TAG, CODE_LINE, IMPORT, EQUATION, CODE_WORD):
        text = text.str.replace_all(pattern, " ")
    return text
