"""The library's own source on the page: the code that is read is the code that runs."""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Listing:
    """One piece of source: ``path`` from the repository's root, first and last line."""

    name: str
    path: str
    first: int
    last: int
    code: str

    @property
    def link(self) -> str:
        # A copy of a chapter stands alone: it says where the library's source is.
        base = os.environ.get("LIB_SOURCE", "")
        return f"{base}{self.path}#L{self.first}-L{self.last}"


class Source:
    """What :func:`show` returns; displays itself as highlighted Python with a link below."""

    def __init__(self, listings: list[Listing]):
        self.listings = listings

    def _repr_mimebundle_(self, include=None, exclude=None):
        marked = []
        for item in self.listings:
            # A fence longer than any inside the code.
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", item.code)), default=0))
            lines = (
                f"lines {item.first}–{item.last}"
                if item.last > item.first
                else f"line {item.first}"
            )
            caption = f"[`{item.path}`, {lines}]({item.link})"
            marked.append(f"{fence}python\n{item.code}\n{fence}\n\n{caption}")
        rows = [
            {"name": i.name, "path": i.path, "first": i.first, "last": i.last}
            for i in self.listings
        ]
        data = {
            "text/markdown": "\n\n".join(marked),
            "text/plain": "\n\n\n".join(i.code for i in self.listings),
        }
        return data, {"source": rows[0] if len(rows) == 1 else rows}


def show(*objects: Any, docstring: bool = True) -> Source:
    """Show the source of functions and classes of ``lib``.

    Args:
        objects: functions, classes, methods, custom operators, modules, or names such as
            ``"lib.width.ntk:GAINS"`` for anything a module assigns at its top level.
        docstring: ``False`` leaves docstrings out, for a listing whose text has said it already.

    Raises:
        TypeError: no object, or one that does not come from ``lib``.
        ValueError: a name that its module does not define.
    """
    if not objects:
        raise TypeError("show() needs at least one function, class or 'module:name' of lib")
    return Source([_listing(obj, docstring) for obj in objects])


def _listing(obj: Any, docstring: bool) -> Listing:
    if isinstance(obj, str):
        name, path, code, first = _assigned(obj)
    else:
        name, path, code, first = _defined(obj)
    last = first + code.rstrip("\n").count("\n")
    code = inspect.cleandoc("\n" + code) if code[:1].isspace() else code.rstrip("\n")
    if not docstring:
        code = _without_docstrings(code)
    return Listing(name, path.relative_to(_ROOT).as_posix(), first, last, code)


def _defined(obj: Any) -> tuple[str, Path, str, int]:
    # A custom operator keeps the function it was made from; wrappers keep what they wrap.
    target = obj if isinstance(obj, ModuleType) else inspect.unwrap(obj)
    target = getattr(target, "_init_fn", target)
    target = getattr(target, "fn", target) if not inspect.isclass(target) else target
    target = getattr(target, "__func__", target)
    module = obj.__name__ if isinstance(obj, ModuleType) else getattr(target, "__module__", "")
    if module != "lib" and not str(module).startswith("lib."):
        raise TypeError(
            f"show() lists the library's own source; {obj!r} comes from {module or 'nowhere'!r}"
        )
    try:
        path = Path(inspect.getsourcefile(target)).resolve()
        if isinstance(target, ModuleType):
            return target.__name__, path, path.read_text(encoding="utf-8"), 1
        lines, first = inspect.getsourcelines(target)
    except (OSError, TypeError):
        raise TypeError(f"show() finds no source for {obj!r}; pass 'module:name'") from None
    return target.__qualname__, path, "".join(lines), first


def _assigned(reference: str) -> tuple[str, Path, str, int]:
    module, _, name = reference.partition(":")
    if module != "lib" and not module.startswith("lib.") or not name:
        raise TypeError(f"a name must read 'lib.module:NAME', got {reference!r}")
    __import__(module)
    path = Path(sys.modules[module].__file__).resolve()
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        names = [getattr(node, "name", None)]
        targets = getattr(node, "targets", [node.target] if hasattr(node, "target") else [])
        for target in targets:
            names += [part.id for part in ast.walk(target) if isinstance(part, ast.Name)]
        if name in names:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            code = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
            return name, path, code, first
    raise ValueError(f"{module} defines no {name!r} at its top level")


def _without_docstrings(code: str) -> str:
    lines, tree = code.splitlines(), ast.parse(code)
    drop: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            continue
        if ast.get_docstring(node, clean=False) is None:
            continue
        text = body[0]
        if len(body) == 1 and not isinstance(node, ast.Module):
            lines[text.lineno - 1] = " " * text.col_offset + "..."
            drop.update(range(text.lineno + 1, text.end_lineno + 1))
            continue
        end = text.end_lineno
        while end < len(lines) and not lines[end].strip():
            end += 1  # the blank line after a docstring goes with it
        drop.update(range(text.lineno, end + 1))
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in drop)
