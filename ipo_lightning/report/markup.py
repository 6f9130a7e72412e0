"""HTML that is safely built from text.

`tag` escapes every child that is not `Html`, so that only this package makes markup.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from ipo_lightning.report.tables import is_word


class Html(str):
    """Markup. A plain ``str`` is text and will be escaped."""


def tag(name: str, *children: str, **attributes: str | float) -> Html:
    """An element; children that are not `Html` are escaped, and so are all attributes.

    ``class_`` means ``class``; other underscores in attributes become hyphens.
    """
    pairs = ((key.rstrip("_").replace("_", "-"), str(v)) for key, v in attributes.items())
    head = "".join(f' {key}="{escape(v)}"' for key, v in pairs)
    return Html(f"<{name}{head}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Parts one after the other, escaped where they are not `Html`."""
    return Html("".join(p if isinstance(p, Html) else escape(p) for p in parts))


def typeset(text: str) -> Html:
    """A number with its proper signs: plus-minus, minus, a dash for a missing value."""
    if text == "-":
        return Html('<span class="unknown" title="not known">&ndash;</span>')
    safe = escape(text).replace("+-", "&plusmn;")
    return Html(safe.replace("-", "&minus;") if not is_word(text) else safe)


def stacked(text: str) -> str:
    """A number with its interval below it; other text unchanged."""
    value, bracket, bounds = text.partition(" [")
    if not bracket:
        return text
    below = Html(escape(f"[{bounds}").replace("-", "&minus;"))
    return join([typeset(value), tag("small", below)])


def section(heading: str, *content: str, note: str = "", **attributes: str) -> Html:
    """A titled part of the page, with an optional line of explanation."""
    remark = tag("p", note, class_="note") if note else Html("")
    return tag("section", tag("h2", heading), remark, *content, **attributes)


def html_table(
    rows: Sequence[Mapping[str, str]],
    class_: str = "figures",
    *,
    label: str = "table",
    marked: int | None = None,
) -> Html:
    """Rows of text as a table that scrolls sideways on a narrow screen.

    Args:
        label: what the table is, for screen readers. marked: place of a row that stands out.
    """
    head = tag("tr", *(tag("th", name, scope="col") for name in rows[0]))
    body = [
        tag("tr", *(tag("td", cell if isinstance(cell, Html) else typeset(cell))
                    for cell in row.values()), **({"class_": "marked"} if i == marked else {}))
        for i, row in enumerate(rows)
    ]  # fmt: skip
    inner = tag("table", tag("thead", head), tag("tbody", *body), class_=class_)
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=label)
