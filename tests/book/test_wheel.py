"""What `pip install` of the book gives: `lib` and what it reads, at loose versions, and no more."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_it_holds_every_file_of_lib_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    there = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "lib").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == there
    assert any(name.endswith(".js") for name in names)


def test_it_asks_for_no_exact_version_and_nothing_of_the_press(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = wheel.read(name).decode()
    needs = re.findall(r"^Requires-Dist: (.*)$", metadata, re.M)
    plain = [line for line in needs if "extra ==" not in line]
    assert any(line.startswith("torch") for line in plain)
    assert not [line for line in needs if re.search(r"(?<![<>!~=])==", line.split(";")[0])]
    assert not [line for line in plain if re.match(r"jupyter|papermill|distributed|pytest", line)]
    assert re.search(r"^Requires-Python: >=3\.11$", metadata, re.M)
    assert re.search(r"^License-Expression: MIT$", metadata, re.M)
