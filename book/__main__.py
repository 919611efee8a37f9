"""`python -m book VERB`: everything that is done with the chapters.

Only the module of the verb that was asked for is imported, so `--help` answers at once and a
missing optional package matters only to the verb that needs it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from book.errors import BookError, nearest

VERBS = {
    "run": "execute chapters with papermill; results are cached by content",
    "build": "print the site from the executed chapters into _build/html",
    "check": "anatomy of chapters, their modules and tests, without running them",
    "new": "start a chapter: notebook, module and test",
    "serve": "show _build/html on this machine",
    "lab": "open JupyterLab on the chapters",
    "bench": "time the library beside its peers and print the ratios",
    "assign": "student and teacher copies of the exercises",
    "grade": "score a folder of submissions",
    "colab": "the copies of the chapters that Colab opens",
}

HELP = """\
usage: python -m book VERB [options]        (python -m book VERB --help says more)

{verbs}

A first morning with the book:
  python -m book run              execute every chapter at small scale (cached: only what changed)
  python -m book build            print the site
  python -m book serve            look at it

Writing a chapter:
  python -m book new width/my_idea
  python -m book lab              write; `lib` is importable there
  python -m book run my_idea
  python -m book check my_idea

Exit status: 0 done, 1 something failed and was reported, 2 the request makes no sense,
130 interrupted.
"""

# Packages whose import name is not what pip calls them.
DISTRIBUTIONS = {"yaml": "pyyaml", "sklearn": "scikit-learn", "vl_convert": "vl-convert-python"}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verbs = {v: text for v, text in VERBS.items() if importlib.util.find_spec(f"book.{v}")}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        lines = "\n".join(f"  {verb:<7} {text}" for verb, text in verbs.items())
        print(HELP.format(verbs=lines), end="")
        return 0
    verb, *rest = arguments
    try:
        if verb not in verbs:
            known = "" if nearest(verb, verbs) else f"; there are {', '.join(verbs)}"
            raise BookError(f"unknown verb {verb!r}{nearest(verb, verbs) or known}")
        return dispatch(verb, rest)
    except ModuleNotFoundError as error:
        top = (error.name or "").split(".")[0]
        if top in ("", "book", "lib"):
            raise
        package = DISTRIBUTIONS.get(top, top)
        return fail(verb, f"needs the package {package!r}: pip install {package}")
    except BookError as error:
        return fail(verb if verb in verbs else "", str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def dispatch(verb: str, rest: list[str]) -> int:
    from book.source import ROOT, SourceError

    module = importlib.import_module(f"book.{verb}")
    parser = Parser(
        prog=f"python -m book {verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("BOOK_ROOT") or ROOT),
        metavar="DIR",
        help="the checkout to work on (default: this one, or $BOOK_ROOT)",
    )
    module.add_arguments(parser)
    # Options may stand between names; what comes after `--` is someone else's.
    parse = parser.parse_args if "--" in rest else parser.parse_intermixed_args
    args = parse(rest)
    args.root = Path(args.root).resolve()
    if not args.root.is_dir():
        raise BookError(f"--root {args.root}: no such folder")
    if not (args.root / "book" / "papers.csv").is_file():
        raise BookError(f"{args.root} is not a checkout of the book: it has no book/papers.csv")
    try:
        return module.main(args) or 0
    except SourceError as error:
        raise BookError(str(error)) from None


def fail(verb: str, message: str) -> int:
    line = " ".join(message.split())
    print(f"python -m book {verb}".strip() + f": {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
