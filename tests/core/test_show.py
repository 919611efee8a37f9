"""Listings: the text shown is the text in the file, at the lines named."""

import ast
from pathlib import Path

import pytest
import torch

from lib.core import claims, stats
from lib.core.show import show

ROOT = Path(__file__).resolve().parents[2]


def lines_of(source):
    return (ROOT / source["path"]).read_text().splitlines()[source["first"] - 1 : source["last"]]


@pytest.mark.parametrize("docstring", [True, False])
def test_a_function_is_shown_as_it_stands_in_the_file(docstring):
    data, metadata = show(stats.spread, docstring=docstring)._repr_mimebundle_()
    source = metadata["source"]
    assert source["path"] == "lib/core/stats.py" and source["name"] == "spread"
    lines = lines_of(source)
    assert lines[0].startswith("def spread(")
    if docstring:
        assert data["text/plain"] == "\n".join(lines)
    else:
        assert '"""' not in data["text/plain"]
        kept = data["text/plain"].splitlines()
        assert [line for line in lines if line in kept] == kept


def test_the_page_gets_highlighted_python_and_a_link():
    data, metadata = show(stats.spread)._repr_mimebundle_()
    source = metadata["source"]
    first, last = source["first"], source["last"]
    marked = data["text/markdown"]
    assert marked.startswith("```python\ndef spread(")
    assert marked.endswith(
        f"[`lib/core/stats.py`, lines {first}–{last}](lib/core/stats.py#L{first}-L{last})"
    )


def test_several_objects_make_several_listings():
    data, metadata = show(stats.spread, claims.Claims)._repr_mimebundle_()
    assert [s["name"] for s in metadata["source"]] == ["spread", "Claims"]
    assert data["text/markdown"].count("```python") == 2


def test_methods_are_moved_to_the_margin():
    shown = show(claims.Claims.add).listings[0]
    assert shown.name == "Claims.add"
    assert shown.code.startswith("def add(")
    ast.parse(shown.code)


def test_names_and_modules():
    shown = show("lib.core.plots.theme:CATEGORY").listings[0]
    assert shown.code.startswith("CATEGORY = [") and shown.first == shown.last
    assert show("lib.core.plots.theme:GRID").listings[0].code.startswith("INK, MUTED, AXIS, GRID")
    assert show("lib.core.stats:Spread").listings[0].code.startswith("@dataclass(frozen=True)\n")
    whole = show(stats).listings[0]
    assert whole.first == 1 and whole.code + "\n" == (ROOT / whole.path).read_text()


def test_leaving_docstrings_out_keeps_the_code():
    shown = show(claims.Claims, docstring=False).listings[0]
    full = ast.parse(show(claims.Claims).listings[0].code)
    for node in ast.walk(full):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            node.body = node.body[1:]
    assert ast.dump(ast.parse(shown.code)) == ast.dump(full)


@pytest.mark.parametrize("thing", [torch.nn.Linear, len, 3, Path, "os.path:join", "lib.core.stats"])
def test_what_is_not_the_library_is_refused(thing):
    with pytest.raises(TypeError):
        show(thing)


def test_errors_name_what_is_missing():
    with pytest.raises(TypeError, match="at least one"):
        show()
    with pytest.raises(ValueError, match="lib.core.stats defines no 'nothing'"):
        show("lib.core.stats:nothing")
