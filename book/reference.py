"""The library reference: one page a module, read from the source with `ast`, importing nothing."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from book.source import PARTS, Source
from book.stage import Stage, part_name

FLOORS = {"kernels": "Kernels", "core": "Core", "models": "Models"}
WIDTH = 80
"""A signature longer than this is set with one argument a line."""


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    @property
    def summary(self) -> str:
        """The docstring's first sentence."""
        first = (ast.get_docstring(self.tree) or "").split("\n\n")[0]
        return " ".join(first.split())

    @property
    def public(self) -> set[str] | None:
        """The names in `__all__`, or None where the module has none."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
            ):
                try:
                    return set(ast.literal_eval(node.value))
                except ValueError:
                    return None
        return None


def modules(source: Source) -> list[Module]:
    """Every documented module of `lib`, floors first, then the parts in reading order."""
    order = [*FLOORS, *PARTS]
    found = []
    for path in (source.root / "lib").rglob("*.py"):
        inner = path.relative_to(source.root).with_suffix("").parts
        if any(piece.startswith("_") and piece != "__init__" for piece in inner):
            continue
        name = ".".join(piece for piece in inner if piece != "__init__")
        tree = ast.parse(path.read_text("utf-8"), str(path))
        module = Module(name, path, tree)
        if name != "lib" and any(_members(module)):
            found.append(module)

    def rank(module: Module) -> tuple[int, str]:
        floor = module.name.split(".")[1]
        return (order.index(floor) if floor in order else len(order), module.name)

    return sorted(found, key=rank)


def write_reference(source: Source, stage: Stage, prose: str) -> list[str]:
    """Write `reference/index.md` and a page for each module; return their names."""
    names = []
    blocks = [prose.rstrip(), ""]
    heading = None
    for module in modules(source):
        name = f"reference/{module.name}"
        stage.write(f"{name}.md", page(source, module))
        names.append(name)
        floor = module.name.split(".")[1]
        if floor != heading:
            heading = floor
            blocks += ["", f"## {FLOORS.get(floor) or part_name(floor)}", ""]
        blocks.append(f"- [`{module.name}`]({module.name}.md): {prose_of(module.summary)}")
    stage.write("reference/index.md", "\n".join([*blocks, ""]))
    return names


def page(source: Source, module: Module) -> str:
    """One module as Markdown with Sphinx's Python directives (they feed search and the index)."""
    path = module.path.relative_to(source.root).as_posix()
    blocks = [f"# {module.name}", f"[Source]({source.link(path)})"]
    blocks += [f"```{{py:module}} {module.name}\n```", docstring(module.tree)]
    for node in _members(module):
        blocks.append(_member(source, path, node))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _members(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    public = module.public
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            shown = node.name in public if public is not None else not node.name.startswith("_")
            if shown:
                yield node


def _member(source: Source, path: str, node: ast.AST, indent: str = "") -> str:
    """A function or class; a class holds its public methods."""
    fence = ":::::" if isinstance(node, ast.ClassDef) else "::::"
    link = f"[source]({source.link(f'{path}#L{node.lineno}-L{node.end_lineno}')}){{.itr-source}}"
    blocks = [link, docstring(node)]
    if isinstance(node, ast.ClassDef):
        kind, signature = "py:class", node.name + _constructor(node)
        for child in node.body:
            if isinstance(child, ast.FunctionDef) and (
                not child.name.startswith("_") or child.name == "__call__"
            ):
                blocks.append(_method(source, path, child))
    else:
        kind, signature = "py:function", node.name + _signature(node)
    body = "\n\n".join(block for block in blocks if block)
    return f"{fence}{{{kind}}} {signature}\n\n{body}\n{fence}"


def _method(source: Source, path: str, node: ast.FunctionDef) -> str:
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if decorators & {"property", "cached_property", "functools.cached_property"}:
        result = f"\n:type: {ast.unparse(node.returns)}" if node.returns else ""
        return f"::::{{py:property}} {node.name}{result}\n\n{docstring(node)}\n::::"
    option = "\n:staticmethod:" if "staticmethod" in decorators else ""
    option += "\n:classmethod:" if "classmethod" in decorators else ""
    signature = _signature(node, skip_first="staticmethod" not in decorators)
    return f"::::{{py:method}} {node.name}{signature}{option}\n\n{docstring(node)}\n::::"


def _constructor(node: ast.ClassDef) -> str:
    """The arguments a caller passes: of `__init__`, or the fields of a dataclass."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == "__init__":
            return _signature(child, skip_first=True, returns=False)
    decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
    bases = " ".join(ast.unparse(base) for base in node.bases)
    if "dataclass" in decorators or "NamedTuple" in bases:
        fields = [
            ast.unparse(child).replace("\n", " ")
            for child in node.body
            if isinstance(child, ast.AnnAssign) and "ClassVar" not in ast.unparse(child.annotation)
        ]
        return f"({', '.join(fields)})"
    return ""


def _signature(
    node: ast.FunctionDef | ast.AsyncFunctionDef, skip_first: bool = False, returns: bool = True
) -> str:
    arguments = node.args
    if skip_first and (arguments.posonlyargs or arguments.args):
        arguments = ast.arguments(
            posonlyargs=arguments.posonlyargs[1:],
            args=arguments.args[0 if arguments.posonlyargs else 1 :],
            vararg=arguments.vararg,
            kwonlyargs=arguments.kwonlyargs,
            kw_defaults=arguments.kw_defaults,
            kwarg=arguments.kwarg,
            defaults=arguments.defaults,
        )
    for defaults in (arguments.defaults, arguments.kw_defaults):
        for i, default in enumerate(defaults):
            # Sphinx cannot read `*more` inside a default.
            if default and any(isinstance(part, ast.Starred) for part in ast.walk(default)):
                defaults[i] = ast.Constant(...)
    result = f" -> {ast.unparse(node.returns)}" if returns and node.returns else ""
    return f"({ast.unparse(arguments)}){result}"


def docstring(node: ast.AST) -> str:
    """A docstring as Markdown: paragraphs stay prose, indented and aligned blocks stay as typed."""
    text = ast.get_docstring(node, clean=False)
    if not text:
        return ""
    return prose_blocks(inspect.cleandoc(text))


SECTION = re.compile(
    r"^(?P<name>[A-Z][A-Za-z ]+)\n-{3,}(?:\n|\Z)"  # NumPy's form
    r"|^(?P<google>Args|Returns|Raises|Yields|Attributes|Notes?|Examples?):\n(?=[ \t])"
)
NAMES = {"Args": "Arguments"}
ITEM = re.compile(r"^([-*] |\d+\. )")
EXACT = re.compile(r"\S {2,}\S|^ {2,}\S", re.M)


def prose_blocks(text: str) -> str:
    """Plain docstring text as Markdown.

    A block whose lines are indented or aligned by spaces is a table or a formula typed by hand: it
    is shown exactly. Everything else is prose in which only `code` has a meaning.
    """
    blocks = []
    for block in re.split(r"\n\s*\n", text):
        section = SECTION.match(block)
        if section:
            name = section["name"] or section["google"]
            blocks.append(f"**{NAMES.get(name, name)}**")
            body = inspect.cleandoc("\n" + block[section.end() :])
            if body:
                blocks.append(_definitions(body, google=bool(section["google"])))
        elif block.lstrip().startswith((">>>", "```")):
            fence = "" if block.lstrip().startswith("```") else "```python\n"
            blocks.append(f"{fence}{block}\n```" if fence else block)
        elif ITEM.match(block):
            blocks.append(_list(block))
        elif EXACT.search(block):
            blocks.append(f"```text\n{block}\n```")
        else:
            blocks.append(prose_of(block))
    return "\n\n".join(blocks)


def _definitions(block: str, google: bool) -> str:
    """A section's entries as a list: `name: text` (Google) or a name over its text (NumPy)."""
    items: list[list[str]] = []
    for line in block.splitlines():
        if line.startswith((" ", "\t")) and items:
            items[-1].append(line.strip())
        elif line.strip():
            items.append([line.strip()])
    entries = []
    for head, *body in items:
        name, _, first = head.partition(": ") if google else (head, "", "")
        rest = " ".join([first, *body]).strip()
        if google and not (first and re.fullmatch(r"[\w.*, `()]+", name)):
            entries.append(f"- {prose_of(' '.join([head, *body]))}")
        else:
            entries.append(f"- `{name.replace('`', '')}`" + (f": {prose_of(rest)}" if rest else ""))
    return "\n".join(entries)


def _list(block: str) -> str:
    items: list[str] = []
    for line in block.splitlines():
        if ITEM.match(line) or not items:
            items.append(line)
        else:
            items[-1] += " " + line.strip()
    return "\n".join(
        (match[0] if (match := ITEM.match(item)) else "") + prose_of(ITEM.sub("", item, count=1))
        for item in items
    )


def prose_of(text: str) -> str:
    """Prose in which `code` stays code and every other character means itself."""
    pieces = re.split(r"(``[^`]+``|`[^`]+`)", text)
    return "".join(
        "`" + piece.strip("`") + "`"
        if piece.startswith("`")
        else re.sub(r"([\\*_\[\]{}$#|<>~])", r"\\\1", piece)
        for piece in pieces
    )
