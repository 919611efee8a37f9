"""The sample of chapters that get the dear checks: stable, rotating, the changed ones first."""

from __future__ import annotations

import datetime
import subprocess
from collections import Counter

import pytest

from tests.book.sampling import SHARE, changes, names_of, sample, turn

BOOK = [f"chapters/width/paper_{number}.html" for number in range(118)]


@pytest.fixture(autouse=True)
def _usual(monkeypatch):
    monkeypatch.delenv("BOOK_SITE_ALL", raising=False)


def test_a_small_book_is_looked_at_whole():
    assert sample(BOOK[:12], [], 3) == BOOK[:12]
    assert len(sample(BOOK[:13], [], 3)) < 13


def test_eight_turns_see_every_chapter_once():
    seen = Counter(page for number in range(40, 40 + SHARE) for page in sample(BOOK, [], number))
    assert seen == Counter(BOOK)
    assert all(5 <= len(sample(BOOK, [], number)) <= 25 for number in range(SHARE))


def test_the_same_turn_gives_the_same_sample():
    assert sample(BOOK, [], 5) == sample(BOOK, [], 5 + SHARE) != sample(BOOK, [], 6)


def test_what_changed_comes_first_and_once():
    changed = ["lib/width/paper_7/step.py", "chapters/width/paper_3.ipynb", "README.md"]
    for number in range(SHARE):
        chosen = sample(BOOK, changed, number)
        assert chosen[:2] == [BOOK[3], BOOK[7]]
        assert len(set(chosen)) == len(chosen) < 30


def test_all_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("BOOK_SITE_ALL", "1")
    assert sample(BOOK, [], 0) == BOOK


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("chapters/width/ntk.ipynb", {"chapters/width/ntk", "reference/chapters.width.ntk.ipynb"}),
        ("lib/width/ntk.py", {"chapters/width/ntk", "reference/lib.width.ntk"}),
        ("lib/width/ntk/__init__.py", {"chapters/width/ntk", "reference/lib.width.ntk"}),
        ("lib/width/ntk/limit.py", {"chapters/width/ntk", "reference/lib.width.ntk.limit"}),
        (
            "tests/graders/width/ntk.py",
            {"chapters/width/ntk", "reference/tests.graders.width.ntk"},
        ),
        ("book/stage.py", set()),
        ("lib/__init__.py", set()),
    ],
)
def test_a_file_belongs_to_its_chapter(path, names):
    assert names_of(path) == names


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_changes_are_those_of_the_branch_and_the_working_tree(tmp_path):
    git(tmp_path, "init", "-b", "main")
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("a")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-m", "m")
    assert changes(tmp_path) == ["2.txt"]
    (tmp_path / "0.txt").write_text("b")
    (tmp_path / "new.txt").write_text("b")
    assert changes(tmp_path) == ["0.txt", "2.txt", "new.txt"]
    git(tmp_path, "checkout", "-b", "work")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "m")
    (tmp_path / "1.txt").write_text("b")
    assert changes(tmp_path) == ["0.txt", "1.txt", "new.txt"]
    day = datetime.date(2026, 3, 2)
    before = turn(tmp_path, day)
    assert turn(tmp_path, day + datetime.timedelta(7)) == before + 1
    git(tmp_path, "commit", "-a", "-m", "m")
    assert turn(tmp_path, day) == before + 1


def test_without_git_nothing_changed_and_the_week_counts(tmp_path):
    assert changes(tmp_path) == []
    assert turn(tmp_path, datetime.date(2026, 3, 9)) > 0
