"""Run chapters with papermill, through dask, and remember what came of it.

Each chapter runs in processes of its own with limits on time, memory and output, so one that fails,
hangs or floods is reported and stops nobody else. What has not changed since it last ran is not run
again: the key covers the notebook, the modules of `lib` that it imports, the parameters and the
versions installed. Stop a run whenever you like; the next one goes on where it was.

Writes `_build/executed/<part>/<slug>.ipynb` for each chapter that ran through,
`_build/failed/<part>/<slug>.ipynb` for each that did not, and `_build/report.json`.
Exit status: 0 all ran, 1 some failed, 2 nothing could start, 130 interrupted.

examples:
  python -m book run                          every chapter of _toc.yml, small scale
  python -m book run ntk width/effective_theory --fresh
  python -m book run width --seed 3 -p steps 200
  python -m book run --scale full --scheduler tcp://10.0.0.5:8786

With --scheduler, the chapters and the modules they import travel to the workers, which need the
book's packages but no checkout. A chapter marked `"gpu": true` asks, at full scale, for a worker
that was started with `dask worker --resources GPU=1`.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import importlib.metadata
import json
import logging
import math
import os
import queue
import statistics
import sys
import time
import tomllib
import types
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from book import cache, report, worker
from book.errors import BookError, nearest
from book.source import Chapter, Source

TIMEOUT = {"small": 300.0, "full": 6 * 3600.0}  # seconds
MEMORY = {"small": 4096.0, "full": None}  # MB; None: nine tenths of the worker's machine
OUTPUT = {"small": 32.0, "full": 128.0}  # MB
TYPICAL = {"small": 25.0, "full": None}  # seconds of a chapter that never ran
PATIENCE = 10.0  # seconds that a scheduler has to answer
ALONE = 60.0  # seconds without one worker before a run gives up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "chapters",
        nargs="*",
        metavar="CHAPTER",
        help="part/slug, slug, or a part; default: every chapter of _toc.yml",
    )
    add(
        "--scale",
        choices=["small", "full"],
        default="small",
        help="small: two cores, under a minute each; full: the paper's experiment (default: small)",
    )
    add("--seed", type=int, default=0, help="the chapters' seed (default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="one more parameter for the cell tagged `parameters`; VALUE as Python writes it",
    )
    add(
        "--jobs",
        type=positive,
        metavar="N",
        help="chapters at the same time on this machine (default: 2, or 1 with one core)",
    )
    add("--scheduler", metavar="TCP://HOST:PORT", help="run on this Dask cluster instead")
    add(
        "--timeout",
        type=positive_seconds,
        metavar="S",
        help="seconds a chapter may take (default: 300 at small scale, six hours at full)",
    )
    add(
        "--memory",
        type=positive_seconds,
        metavar="MB",
        help="memory a chapter may take (default: 4096 at small scale, 90 %% of all at full)",
    )
    add("--fresh", action="store_true", help="run even what has not changed")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def positive_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def main(args: argparse.Namespace) -> int:
    source = Source(args.root)
    chapters = notebooks(source, args.chapters)
    press = Press(source, chapters, parameters_of(args), args)
    with Cluster(args.scheduler, args.jobs or min(2, os.cpu_count() or 1)) as cluster:
        return press.run(cluster)


def parameters_of(args: argparse.Namespace) -> dict[str, Any]:
    """What papermill puts into the chapters."""
    found: dict[str, Any] = {"scale": args.scale, "seed": args.seed, "device": args.device}
    for name, text in args.parameters:
        if not name.isidentifier():
            raise BookError(f"-p {name}: not a name that Python could assign to")
        if name in found:
            raise BookError(f"-p {name}: use --{name}")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def select(source: Source, names: Iterable[str]) -> list[Chapter]:
    """The chapters that the names mean, in the book's order; no name means all in `_toc.yml`."""
    return [found for found in notebooks(source, names) if not found.is_opening]


def notebooks(source: Source, names: Iterable[str]) -> list[Chapter]:
    """As `select`, and after them the parts' openings that are notebooks."""
    names = list(names)
    has_contents = (source.root / "_toc.yml").exists()
    listed = source.chapters if has_contents or not names else []
    openings = source.openings if has_contents else []
    if not names:
        have = {chapter.docname for chapter in [*listed, *openings]}
        for file in source.toc_files:
            if file.startswith("chapters/") and file not in have:
                if not (source.root / f"{file}.md").is_file():
                    raise BookError(f"_toc.yml lists {file}, but {file}.ipynb does not exist")
        if not listed:
            raise BookError("_toc.yml lists no chapter; name one, or start one with `new`")
        return [*listed, *openings]
    everything = [*source.all_chapters, *source.all_openings]
    found: set[str] = set()
    for given in names:
        name = given.replace(os.sep, "/").removeprefix("./").removeprefix("chapters/").strip("/")
        name = name.removesuffix(".ipynb")
        exact = [c for c in everything if c.name == name]
        slug = [c for c in source.all_chapters if c.slug == name]
        part = [c for c in [*listed, *openings] if c.part == name]
        part = part or [c for c in source.all_chapters if c.part == name]
        match = exact or part or slug
        if not match:
            known = {c.name for c in everything} | {c.part for c in everything}
            raise BookError(f"unknown chapter {given!r}{nearest(name, sorted(known))}")
        if match is slug and len(slug) > 1:
            choices = " or ".join(c.name for c in slug)
            raise BookError(f"{given!r} is in several parts; say {choices}")
        found |= {c.name for c in match}
    return [c for c in everything if c.name in found]


@dataclass
class Task:
    """One chapter to run."""

    chapter: Chapter
    needs: cache.Needs
    gpu: bool
    expected: float | None = None


class Press:
    """One call of `run`: what is asked for, what is known, what came of it."""

    def __init__(self, source: Source, chapters: list[Chapter], parameters, args):
        self.source, self.chapters, self.parameters, self.args = source, chapters, parameters, args
        self.scale = args.scale
        self.build = source.root / "_build"
        self.report = self.build / "report.json"
        self.store = cache.Store(self.build / "cache")
        self.library = cache.Library(source.root)
        self.order = [c.name for c in [*source.all_chapters, *source.all_openings]]
        self.rows: dict[str, dict[str, Any]] = {}

    def run(self, cluster: Cluster) -> int:
        writable(self.build)
        if cluster.address:
            cluster.connect()
        machines = cluster.installed()
        tasks = {}
        for chapter in self.chapters:
            needs = self.library.needs(chapter.notebook)
            gpu = bool(chapter.book.get("gpu")) and self.scale == "full"
            task = Task(chapter, needs, gpu, self.store.seconds(chapter.name, self.scale))
            if self.args.fresh or not self.from_cache(task, machines):
                tasks[chapter.name] = task
        report.update(self.report, self.order, self.rows.values(), drop=tasks)
        for name in tasks:
            self.executed(name).unlink(missing_ok=True)
        if cached := len(self.rows):
            print(f"{cached} of {len(self.chapters)} chapters unchanged since they last ran")
        try:
            if tasks:
                cluster.connect()
                self.execute(tasks, cluster)
        except KeyboardInterrupt:
            print()
            self.summary()
            left = len(self.chapters) - len(self.rows)
            print(f"Interrupted; {left} not finished. The same command goes on from here.")
            return 130
        self.summary()
        if missing := [c.name for c in self.chapters if c.name not in self.rows]:
            raise BookError(f"the cluster went away; not finished: {', '.join(missing)}")
        return 1 if any(row["error"] for row in self.rows.values()) else 0

    def summary(self) -> None:
        rows = [self.rows[c.name] for c in self.chapters if c.name in self.rows]
        if rows:
            print(report.table(rows), flush=True)

    # ------------------------------------------------ keys and results

    def key(self, task: Task, installed: dict[str, str]) -> str:
        versions = cache.relevant(installed, task.needs.packages, self.source.root)
        return cache.key(task.chapter.notebook, task.needs.files, self.parameters, versions)

    def from_cache(self, task: Task, machines: list[dict[str, str]]) -> bool:
        """Use a kept result that one of these machines would give again."""
        for installed in machines:
            if found := self.store.get(task.chapter.name, self.key(task, installed)):
                row, notebook = found
                self.rows[task.chapter.name] = {**row, "status": "cached"}
                cache.write(self.executed(task.chapter.name), notebook)
                return True
        return False

    def keep(self, task: Task, result: dict[str, Any], unchanged: bool) -> dict[str, Any]:
        """Write a result down: the notebook, the report, and if it may be used again, the cache."""
        chapter = task.chapter
        key = self.key(task, result["installed"]) if result["installed"] else None
        row = {
            "part": chapter.part,
            "slug": chapter.slug,
            "scale": self.parameters["scale"],
            "seed": self.parameters["seed"],
            "device": self.parameters["device"],
            "parameters": self.parameters,
            "status": result["status"],
            "seconds": result["seconds"],
            "cpu_seconds": result["cpu_seconds"],
            "peak_mb": result["peak_mb"],
            "claims": result["claims"],
            "error": result["error"],
            "versions": {**result["versions"], "lib": lib_version(self.source.root)},
            "hardware": result["hardware"],
            "key": key if unchanged else None,
        }
        failed = self.build / "failed" / f"{chapter.name}.ipynb"
        if row["status"] == "ok":
            cache.write(self.executed(chapter.name), result["notebook"])
            failed.unlink(missing_ok=True)
            if unchanged:
                self.store.put(chapter.name, key, row, result["notebook"])
        elif result["notebook"]:
            cache.write(failed, result["notebook"])
        self.rows[chapter.name] = row
        report.update(self.report, self.order, [row])
        return row

    def executed(self, name: str) -> Path:
        return self.build / "executed" / f"{name}.ipynb"

    # ------------------------------------------------ running

    def execute(self, tasks: dict[str, Task], cluster: Cluster) -> None:
        """Send the tasks out and write each result down as it comes."""
        known = [t.expected for t in tasks.values() if t.expected]
        known += [row["seconds"] for row in self.rows.values()]
        typical = statistics.median(known) if known else TYPICAL[self.scale]
        for task in tasks.values():
            task.expected = task.expected or typical
        expected = {name: task.expected for name, task in tasks.items()}
        display = Display(expected, cluster.slots(), sys.stdout)
        offered = cluster.gpus() if any(task.gpu for task in tasks.values()) else 0
        running = set()
        # The longest first: the end of the run is then not one long chapter alone.
        for name, task in sorted(tasks.items(), key=lambda item: -(item[1].expected or 0)):
            if task.gpu and not offered:
                text = "this chapter needs a GPU at full scale and no worker offers one"
                display.finished(self.keep(task, not_run("NoGPU", text), False))
                continue
            cluster.submit(name, self.job(task, cluster), task.gpu, task.expected)
            running.add(name)
        try:
            for name, outcome in cluster.results(running, display):
                result = outcome
                if isinstance(outcome, BaseException):
                    result = not_run(type(outcome).__name__, str(outcome))
                unchanged = bool(cluster.address) or self.still(tasks[name])
                display.finished(self.keep(tasks[name], result, unchanged))
        finally:
            display.close()

    def job(self, task: Task, cluster: Cluster) -> dict[str, Any]:
        notebook = dict(task.chapter.notebook)
        notebook["cells"] = [clean(cell, i) for i, cell in enumerate(notebook["cells"])]
        job = {
            "name": task.chapter.name,
            "notebook": json.dumps(notebook),
            "parameters": self.parameters,
            "timeout": self.args.timeout or TIMEOUT[self.scale],
            "memory_mb": self.args.memory or MEMORY[self.scale],
            "output_mb": OUTPUT[self.scale],
            "one_thread": self.scale == "small",
            "source": Path(worker.__file__).read_text("utf-8"),
        }
        if cluster.address:
            files = {name: (self.source.root / name).read_bytes() for name in task.needs.files}
            return {**job, "files": worker.pack(files)}
        return {**job, "root": str(self.source.root)}

    def still(self, task: Task) -> bool:
        """Whether the sources are what they were when the run began."""
        now = Chapter(task.chapter.part, task.chapter.slug, task.chapter.path)
        try:
            same = cache.essence(now.notebook) == cache.essence(task.chapter.notebook)
            return same and cache.Library(self.source.root).needs(now.notebook) == task.needs
        except Exception:
            return False  # someone is in the middle of an edit


def clean(cell: dict[str, Any], index: int) -> dict[str, Any]:
    """A cell as it is sent out: with an id, without outputs."""
    cell = {**cell, "id": cell.get("id") or f"cell-{index}"}
    if cell["cell_type"] == "code":
        cell |= {"outputs": [], "execution_count": None}
    return cell


def not_run(name: str, message: str) -> dict[str, Any]:
    """The result of a chapter that no worker could finish."""
    error = {"cell": None, "cell_id": None, "name": name, "message": message, "traceback": ""}
    return {
        "status": "failed",
        "seconds": 0.0,
        "cpu_seconds": 0.0,
        "peak_mb": 0.0,
        "claims": [],
        "error": error,
        "notebook": None,
        "versions": {},
        "hardware": "",
        "installed": None,
    }


def writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BookError(f"cannot write in {folder}: {error.strerror or error}") from None


def lib_version(root: Path) -> str:
    try:
        return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version("ideas-that-run")
        return "unknown"


# ---------------------------------------------------------------- the cluster


class Cluster:
    """Dask behind five questions: one on this machine, or one that runs somewhere."""

    def __init__(self, address: str | None, jobs: int):
        self.address, self.jobs = address, jobs
        self.client = self.local = None
        self.topic = f"book-{uuid.uuid4().hex}"
        self.futures: dict[str, Any] = {}
        self.submitted: dict[str, tuple] = {}
        self.starts: collections.Counter[str] = collections.Counter()
        self.events: queue.SimpleQueue = queue.SimpleQueue()

    def __enter__(self) -> Cluster:
        return self

    def connect(self) -> None:
        """Start the embedded cluster, or reach the one at the address."""
        if self.client is not None:
            return
        from distributed import Client, LocalCluster

        # What goes wrong with the cluster is said here in a line; dask's own log would add pages.
        for name in ["distributed", *logging.root.manager.loggerDict]:
            if name.split(".")[0] in ("distributed", "tornado"):
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        if self.address:
            try:
                self.client = Client(self.address, timeout=PATIENCE, set_as_default=False)
                self.client.wait_for_workers(1, timeout=PATIENCE)
            except Exception as error:
                if self.client is not None:
                    raise BookError(
                        f"the scheduler at {self.address} has no worker; start one with "
                        f"`dask worker {self.address}`"
                    ) from None
                reason = str(error).split("\n")[0] or type(error).__name__
                raise BookError(f"no scheduler answers at {self.address!r} ({reason})") from None
        else:
            # The worker is a thread of this process for each job: it only watches the processes
            # that do the work, and starts at once.
            self.local = LocalCluster(
                n_workers=1,
                threads_per_worker=self.jobs,
                processes=False,
                memory_limit=0,
                dashboard_address=None,
                resources={"GPU": min(1, worker.gpus())},
            )
            self.client = Client(self.local, set_as_default=False)
        self.client.subscribe_topic(self.topic, lambda event: self.events.put(("event", event[1])))

    def installed(self) -> list[dict[str, str]]:
        """What is installed on the machines that will run chapters, each different list once."""
        if not self.address:
            return [worker.installed()]
        source = Path(worker.__file__).read_text("utf-8")
        found = self.client.run(by_value(load_and_list), source)
        return list({json.dumps(v, sort_keys=True): v for v in found.values()}.values())

    def slots(self) -> int:
        return max(1, sum(self.client.nthreads().values()))

    def gpus(self) -> float:
        if not self.address:
            return worker.gpus()
        offered = self.client.run_on_scheduler(by_value(resources_of))
        return sum(resources.get("GPU", 0) for resources in offered)

    def submit(self, name: str, job: dict[str, Any], gpu: bool, expected: float | None) -> None:
        self.submitted[name] = (job, gpu, expected)
        future = self.client.submit(
            by_value(chapter_task),
            {**job, "topic": self.topic},
            key=f"{name}-{uuid.uuid4().hex[:8]}",
            pure=False,
            priority=int(expected or 0),
            resources={"GPU": 1} if gpu else None,
        )
        self.futures[name] = future
        future.add_done_callback(lambda future: self.events.put(("done", (name, future))))

    def results(
        self, running: set[str], display: Display
    ) -> Iterator[tuple[str, dict[str, Any] | BaseException]]:
        """Each chapter's name with its result, or the exception that took its place.

        A worker that dies takes all its chapters with it, and dask blames every one of them. So a
        chapter that was there more than twice is set aside, and runs again when nothing else does:
        if its worker dies then, it was this chapter.
        """
        suspects: list[str] = []
        trial = deserted = None
        while running or suspects:
            if not running:
                trial = suspects.pop(0)
                self.starts[trial] = 0
                self.submit(trial, *self.submitted[trial])
                running.add(trial)
            try:
                kind, what = self.events.get(timeout=0.5)
            except queue.Empty:
                display.tick()
                if self.client.status != "running":
                    return
                if not self.address or self.client.nthreads():
                    deserted = None
                elif time.monotonic() - (deserted := deserted or time.monotonic()) > ALONE:
                    return
                continue
            if kind == "event":
                display.heard(what)
                name = what["name"]
                if what["event"] != "start" or name not in running:
                    continue
                self.starts[name] += 1
                if self.starts[name] <= (1 if name == trial else 2):
                    continue
                self.client.cancel(self.futures.pop(name), force=True)
                outcome = KilledWorker()
            else:
                name, future = what
                if self.futures.get(name) is not future:
                    continue
                del self.futures[name]
                if future.status in ("cancelled", "lost"):
                    return
                outcome = future.exception() or future.result()
                future.release()
                if type(outcome).__name__ == "KilledWorker":
                    outcome = KilledWorker()
            running.discard(name)
            if isinstance(outcome, KilledWorker) and name != trial:
                suspects.append(name)
            else:
                yield name, outcome

    def __exit__(self, *reason: Any) -> None:
        """Stop what still runs; the chapters' processes end with it."""
        if self.client is None:
            return
        with contextlib.suppress(Exception):
            if self.futures:
                self.client.cancel(list(self.futures.values()), force=True)
                time.sleep(3 * worker.POLL)
            self.client.close(timeout=5)
        with contextlib.suppress(Exception):
            if self.local is not None:
                self.local.close(timeout=5)


class KilledWorker(Exception):
    """A chapter whose workers die."""

    def __init__(self) -> None:
        super().__init__("its worker died each time, also when nothing else ran there")


def by_value(function: Any) -> Any:
    """A copy of `function` that travels as code: the workers need not have this package."""
    copy = types.FunctionType(function.__code__, {}, function.__name__)
    copy.__module__ = "__main__"
    return copy


def chapter_task(job):
    """Runs on a worker: load `book/worker.py` from its text and let it supervise the chapter."""
    import hashlib
    import sys
    import types

    from distributed import get_worker

    name = "book_worker_" + hashlib.sha256(job["source"].encode()).hexdigest()[:16]
    module = sys.modules.get(name)
    if module is None:
        module = types.ModuleType(name)
        code = compile(job["source"], "book/worker.py", "exec", dont_inherit=True)
        exec(code, module.__dict__)
        sys.modules[name] = module
    here = get_worker()
    key = here.get_current_task()

    def notify(event):
        here.log_event(job["topic"], {"name": job["name"], "worker": here.address, **event})

    def released():
        # The scheduler forgets a task when its client cancels it or goes away.
        task = here.state.tasks.get(key)
        ending = here.status.name in ("closing", "closed", "failed")
        return ending or task is None or task.state == "cancelled"

    notify({"event": "start"})
    return module.supervise(job, notify, released)


def load_and_list(source):
    """Runs on a worker: what is installed there."""
    import types

    module = types.ModuleType("book_worker")
    exec(compile(source, "book/worker.py", "exec", dont_inherit=True), module.__dict__)
    return module.installed()


def resources_of(dask_scheduler):
    """Runs on the scheduler: what its workers offer."""
    return [state.resources for state in dask_scheduler.workers.values()]


# ---------------------------------------------------------------- the display


class Display:
    """What runs, how much is done, how long it will take: a bar in a terminal, lines elsewhere."""

    def __init__(self, expected: dict[str, float | None], slots: int, stream: Any):
        self.expected, self.slots, self.stream = expected, slots, stream
        self.total, self.done = len(expected), set()
        self.started: dict[str, float] = {}
        self.cell: dict[str, str] = {}
        self.said = time.monotonic()
        self.bar = None
        if _is_screen(stream):
            from tqdm import tqdm

            form = "{n_fmt}/{total_fmt} |{bar:20}| {desc}"
            self.bar = tqdm(total=self.total, bar_format=form, file=stream, dynamic_ncols=True)
            self.tick()
        else:
            print(
                f"{self.total} to run, {self.slots} at a time{self.left()}", file=stream, flush=True
            )

    def heard(self, event: dict[str, Any]) -> None:
        """News from a worker; a chapter whose worker died starts a second time."""
        name = event["name"]
        if name in self.done:
            return
        if event["event"] == "start":
            self.started[name] = time.monotonic()
            self.cell.pop(name, None)
        elif event["event"] == "cell":
            self.cell[name] = f"{event['cell'] + 1}/{event['of']}"
        if self.bar is not None:
            self.tick()

    def finished(self, row: dict[str, Any]) -> None:
        name = report.name_of(row)
        self.done.add(name)
        self.started.pop(name, None)
        status = report.HELD_NAMES[row["status"]]
        if self.bar is not None:
            if row["error"]:
                self.bar.write(f"{status} {name}: {row['error']['name']}", file=self.stream)
            self.bar.update()
            self.tick()
            return
        width = len(str(self.total))
        line = f"[{len(self.done):>{width}}/{self.total}] {status:<7} {name}"
        line += f"  {row['seconds']:.1f} s, {row['peak_mb']:.0f} MB"
        if row["error"]:
            line += f"  {row['error']['name']}"
        self.say(line)

    def tick(self) -> None:
        """Time has passed."""
        if self.bar is not None:
            self.bar.set_description_str(f"{self.running()}{self.left()}".lstrip("; "))
        elif time.monotonic() - self.said > 30:
            self.say(f"[{len(self.done)}/{self.total}] ...")

    def say(self, line: str) -> None:
        self.said = time.monotonic()
        running = self.running()
        print(
            line + (f"; {running}" if running else "") + self.left(), file=self.stream, flush=True
        )

    def running(self) -> str:
        names = [f"{n} {self.cell[n]}" if n in self.cell else n for n in self.started]
        return "running " + ", ".join(names) if names else ""

    def left(self) -> str:
        """From how long each chapter took the last time."""
        now, remaining = time.monotonic(), []
        for name, seconds in self.expected.items():
            if name in self.done:
                continue
            if seconds is None:
                return ""
            spent = now - self.started[name] if name in self.started else 0.0
            remaining.append(max(seconds - spent, 0.1 * seconds))
        if not remaining:
            return ""
        return f"; about {report.length(max(sum(remaining) / self.slots, *remaining, 0))} left"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _is_screen(stream: Any) -> bool:
    """A terminal that knows its size; in one of no size (some CI) a bar would be invisible."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).lines > 0
    except (OSError, AttributeError):
        return False
