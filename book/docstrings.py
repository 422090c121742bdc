"""Docstrings as reStructuredText, for the reference page.

They are written to be read in an editor: plain text, code in single backticks, formulas in indented lines, sections
named as Google names them. What Sphinx would take for markup is escaped, and "eq. 19" becomes a link to the equation.
"""

import re

SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:")
PIECES = re.compile(r"(`[^`]+`)|(\beqs?\. )(\d+)(?:(-| and )(\d+))?")


def _linked(number: str, text: str) -> str:
    return f":ref:`{text} <eq-{number}>`"


def _piece(match: re.Match[str]) -> str:
    if match[1]:
        return f"`{match[1]}`"
    first, *rest = [number for number in (match[3], match[5]) if number]
    return _linked(first, match[2] + first) + "".join((match[4] or "") + _linked(number, number) for number in rest)


def marked_up(line: str) -> str:
    """One line of prose, with links and code, and nothing that is markup by accident."""
    parts, end = [], 0
    for match in PIECES.finditer(line):
        parts += [_escaped(line[end : match.start()]), _piece(match)]
        end = match.end()
    return "".join([*parts, _escaped(line[end:])])


def _escaped(text: str) -> str:
    return re.sub(r"([*|\\])|(_)(?=\W|$)", r"\\\1\2", text)


def restructured(lines: list[str]) -> list[str]:
    """The lines of a docstring, without its common indentation, as reStructuredText."""
    found: list[str] = []
    section, block = False, False
    for line in lines:
        indented = line.startswith("    ")
        if line.strip() in SECTIONS:
            section = True
            found += ["", f"**{line.strip()[:-1]}**", ""]
        elif not line.strip():
            block = False
            found.append("")
        elif section and indented:
            name, colon, words = line.strip().partition(": ")
            entry = colon and not line.startswith("     ") and " " not in name.replace(", ", "")
            found.append(f"- ``{name}``: {marked_up(words)}" if entry else "  " + marked_up(line.strip()))
        elif indented:
            found += [line] if block else ["", "::", "", line]
            block = True
        else:
            section, block = False, False
            found.append(marked_up(line))
    return found


def setup(app) -> None:
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-skip-member", _skip)


def _process(app, what, name, obj, options, lines: list[str]) -> None:
    lines[:] = restructured(lines)


def _skip(app, what, name, obj, skip: bool, options) -> bool | None:
    """Leave out the fields of named tuples, which the docstring of the tuple describes."""
    return True if type(obj).__name__ == "_tuplegetter" else None
