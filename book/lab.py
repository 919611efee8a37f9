"""Open JupyterLab at the root of the book, with `lib` importable in every notebook.

What comes after `--` goes to JupyterLab: python -m book lab -- --no-browser --port 9000
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys

from book.errors import BookError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("options", nargs="*", metavar="OPTION", help="JupyterLab's own, after --")


def main(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("jupyterlab") is None:
        raise BookError("needs the package 'jupyterlab': pip install jupyterlab")
    path = [str(args.root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path))
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={args.root}"]
    try:
        return subprocess.run([*command, *args.options], cwd=args.root, env=environment).returncode
    except KeyboardInterrupt:
        return 0
