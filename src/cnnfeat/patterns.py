"""Several layers by one text: those that a pattern matches (`conv*`), or side by side (`a+b`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable


def is_pattern(query: str) -> bool:
    """Whether a name is one of many."""
    return bool(re.search(r"[*?\[]", query))


def match_names(names: Iterable[str], pattern: str) -> list[str]:
    """Names that match a glob: whole names first; if none does, names that end in a match.

    `*` and `?` stop at `/`; `**` doesn't. `conv*` is `conv1` but not `conv1/relu`.
    """
    names = list(names)
    body = glob_expression(pattern)
    for expression in (body, f"(?i:{body})", f"(?:.*/)?{body}", f"(?i:(?:.*/)?{body})"):
        found = [name for name in names if re.fullmatch(expression, name)]
        if found:
            return found
    return []


def glob_expression(pattern: str) -> str:
    """Write a glob as a regular expression."""
    special = {"**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translate(token: str) -> str:
        if token in special:
            return special[token]
        bracket = _bracket(token[1:-1]) if len(token) > 1 else ""
        return bracket or re.escape(token)

    tokens = re.findall(r"\*\*|\*|\?|\[!?[^\]]+\]|.", pattern, re.DOTALL)
    return "".join(map(translate, tokens))


def _bracket(inner: str) -> str:
    """Write what stands between brackets; "" where a range runs backwards, and is none."""
    plain = re.sub(r"--|[\\\[&~|]", lambda found: "\\" + found[0][-1], inner)
    expression = f"[^{plain[1:]}]" if inner[0] == "!" else f"[{plain}]"
    try:
        re.compile(expression)
    except re.error:
        return ""
    return expression


def split_side_by_side(text: str, is_name: Callable[[str], bool], *, longest: int) -> list[str]:
    """Split a text at each `+` that isn't inside a name there is.

    Parameters
    ----------
    text : str
        "conv2+fc1".
    is_name : callable
        Whether there is something of a name with `+` in it; of two such, the longer is meant.
    longest : int
        How often `+` stands in a name at most.
    """
    words = text.split("+")
    names: list[str] = []
    start = 0
    while start < len(words):
        lengths = range(min(longest + 1, len(words) - start), 1, -1)
        n = next((n for n in lengths if is_name("+".join(words[start : start + n]))), 1)
        names.append("+".join(words[start : start + n]))
        start += n
    return names
