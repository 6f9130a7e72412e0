"""The documentation site: the pages beside this file and the docstrings of the library.

Sphinx, because its strict mode checks every link and every name in a docstring; MyST reads our
Markdown as it is; furo loads no font or script from the network. All three have current releases.
``make docs`` builds the site without network into build/docs.
"""

import functools
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from inspect import isfunction
from typing import Annotated, Any, get_origin

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util import typing

from ipo_lightning import __version__

project = "ipo_lightning"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"{project} {release}"

default_role = "py:obj"  # what single backticks mean in a docstring
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
maximum_signature_line_length = 80

TREE = os.environ.get("DOCS_REPOSITORY", "../..")
"""Where links out of docs/ lead: ``https://HOST/OWNER/NAME/blob/main`` for a published site; by
default the working tree, two folders above build/docs."""
myst_heading_anchors = 3
myst_url_schemes = {"http": None, "https": None, "mailto": None, "tree": f"{TREE}/{{{{path}}}}"}


def prepare_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Pages are written for the site of the repository: plain Markdown, relative links."""
    if "/" not in docname:  # api/ has no links out of docs/
        source[0] = re.sub(r"\]\(\.\./([^)#]+)\)", r"](tree:\1)", source[0])
    if docname == "index":
        source[0] += "".join(toctree(part) for part in source[0].split("\n## ")[1:])


def toctree(part: str) -> str:
    """The entries of the sidebar for a part of the index: its heading, the pages it links to."""
    caption, pages = part.partition("\n")[0], re.findall(r"\]\(([\w/-]+\.md)\)", part)
    return "\n".join(["\n```{toctree}", ":hidden:", f":caption: {caption}", *pages, "```\n"])


def read_sections(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Google-style sections, but in docs of attributes, where napoleon takes a colon for a type."""
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, Config(), app, what, name, obj, options).lines()
    elif lines and lines[0].startswith("Alias for field number"):
        lines.clear()  # what Python says of a NamedTuple's field that has no docs


def write_signature(
    app: Sphinx, what: str, name: str, obj: object, options: Any, signature: str, result: str
) -> tuple[str | None, str]:
    """Show a default function or class by its name, and nothing where there is no signature."""
    if not signature or signature == "(*args, **kwargs)":  # a protocol's
        return None, result
    named = re.sub(r"<(?:function|class) '?([\w.]+)'?>", r"\1", signature)
    return named.replace("<factory>", "..."), result


def skip_default(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: Any
) -> bool | None:
    """A function that is the default of a dataclass's field is no method of the dataclass."""
    is_default = what == "class" and isfunction(obj) and obj.__name__ == obj.__qualname__
    return True if is_default else None


def find_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """A name without its module finds the one object that is called so.

    A name that exists but has no page, as of another package, stays text; one that does not exist
    is left for the strict build to refuse.
    """
    if node["refdomain"] != "py":
        return None
    node["refspecific"] = True
    domain, page, name = env.domains.python_domain, node["refdoc"], node["reftarget"]
    found = domain.resolve_xref(env, page, app.builder, "obj", name, node, contnode)
    return contnode if found is None and any(exists(place) for place in places(node)) else found


def places(node: pending_xref) -> Iterator[str]:
    """Where Python would look a name up: as it stands, in the module or the class that says it."""
    name, module, owner = node["reftarget"], node.get("py:module"), node.get("py:class")
    yield from [name] * ("." in name)
    yield f"{module}.{name}"
    yield f"{module}.{owner}.{name}"


def exists(name: str) -> bool:
    """Whether a full name can be imported."""
    with suppress(ImportError, AttributeError, ValueError):
        pkgutil.resolve_name(name)
        return True
    return False


def leave_out_bounds(name: str) -> None:
    """Let a function of Sphinx that shows types show those of `ipo_lightning.settings` bare.

    Sphinx writes ``Annotated[int, Bound(...)]`` in full and then looks its pieces up; the sentence
    of the parameter says its range.
    """
    original = getattr(typing, name)

    @functools.wraps(original)
    def shown(annotation: Any, *args: Any, **settings: Any) -> Any:
        while get_origin(annotation) is Annotated:
            annotation = annotation.__origin__
        return original(annotation, *args, **settings)

    for module in [one for key, one in sys.modules.items() if key.startswith("sphinx.")]:
        if getattr(module, name, None) is original:
            setattr(module, name, shown)


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    leave_out_bounds("stringify_annotation")
    leave_out_bounds("restify")
    app.connect("source-read", prepare_page)
    app.connect("autodoc-process-docstring", read_sections)
    app.connect("autodoc-process-signature", write_signature)
    app.connect("autodoc-skip-member", skip_default)
    app.connect("missing-reference", find_short_name)
