"""One chapter, executed by papermill, watched from outside.

Three processes, each with one task:

* `supervise(job)` runs in a thread of a dask worker. It starts the second process, samples its
  memory, and kills everything below it when the chapter uses too much time, memory or output.
* `python worker.py execute` runs papermill on the notebook and says which cell runs.
* `python worker.py kernel` is the Jupyter kernel: ipykernel with a ceiling on memory and printing.

A pipe to the second process is its lifeline: when the supervisor goes, by whatever death, the pipe
closes and the chapter goes too. So killing the press, or a worker, leaves no process behind.

The press sends the text of this file to the workers, so they need the same packages but neither a
checkout of the book nor a shared folder. It therefore imports nothing of `book`, and what is not in
the standard library is imported where it is used.
"""

from __future__ import annotations

import base64
import faulthandler
import functools
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

POLL = 0.1  # seconds between two looks at a chapter
KEPT_LINES = 30  # of a traceback, counted from its end
REPORTED = (
    "torch numpy scipy scikit-learn pandas altair vl-convert-python einops jaxtyping triton "
    "papermill nbclient ipykernel distributed"
).split()
THREADS = "OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS NUMEXPR_NUM_THREADS".split()


# ---------------------------------------------------------------- the supervisor


def supervise(
    job: dict[str, Any],
    notify: Callable[[dict[str, Any]], None] = lambda event: None,
    released: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run one chapter to its end or its limit, whichever comes first.

    `job` holds `notebook` (JSON text), `parameters`, the limits `timeout` (seconds), `memory_mb`
    (None: nine tenths of the machine) and `output_mb`, `source` (the text of this file),
    `one_thread`, and what `lib` is: `root` (a folder on this machine) or `files` (their content,
    packed). `notify` hears of each cell that starts; `released` says that nobody wants the result
    any more.

    Returns `status` (ok, failed, timeout), `seconds`, `cpu_seconds` and `peak_mb` of the kernel and
    its children, `notebook` (executed, without local paths), `claims`, `error`, `versions`,
    `hardware` and `installed`.
    """
    scratch = Path(tempfile.mkdtemp(prefix="book-")).resolve()
    try:
        return _supervise(job, notify, released, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _supervise(job, notify, released, scratch: Path) -> dict[str, Any]:
    import psutil

    if job["memory_mb"] is None:
        job = {**job, "memory_mb": 0.9 * psutil.virtual_memory().total / 2**20}
    root = _prepare(job, scratch)
    script = scratch / "press" / "worker.py"
    environment = _environment(job, scratch, root)
    started = time.monotonic()
    with open(scratch / "stderr", "wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(script), "execute", str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=scratch / "cwd",
            env=environment,
            start_new_session=True,
        )
    events: list[dict[str, Any]] = []
    reader = threading.Thread(target=_listen, args=(process.stdout, events), daemon=True)
    reader.start()

    peak, cpu, cell, seen, verdict = 0.0, {}, None, 0, None
    watched = psutil.Process(process.pid)
    while verdict is None:
        ended = process.poll() is not None
        if ended:
            reader.join(timeout=5)
        while seen < len(events):
            event, seen = events[seen], seen + 1
            if event["event"] == "cell":
                cell = event
                notify(event)
            elif event["event"] == "flood":
                limit = f"more than {job['output_mb']:g} MB of output"
                verdict = ("failed", "OutputLimit", limit)
            elif event["event"] == "used" and "pid" in event:
                peak = max(peak, event["peak_mb"])
                cpu[event["pid"]] = event["cpu"]
            elif event["event"] == "done":
                verdict = ("done", event["name"], event["message"])
        if verdict is None and ended:
            verdict = ("failed", "PressError", f"the executor ended ({_ending(process)})")
        total, own = _memory_mb(watched, cpu)
        peak = max(peak, own)
        elapsed = time.monotonic() - started
        if verdict is not None:
            break
        if total > job["memory_mb"]:
            text = f"{total:.0f} MB in use, {job['memory_mb']:g} MB allowed"
            verdict = ("failed", "MemoryLimit", text)
        elif elapsed > job["timeout"]:
            verdict = ("timeout", "Timeout", f"still running after {job['timeout']:g} s")
        elif (scratch / "stderr").stat().st_size > job["output_mb"] * 2**20:
            limit = f"more than {job['output_mb']:g} MB on the process's own stderr"
            verdict = ("failed", "OutputLimit", limit)
        elif released():
            verdict = ("failed", "Released", "nobody waits for this chapter any more")
        else:
            time.sleep(POLL)
    seconds = time.monotonic() - started
    kill_tree(process.pid)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        pipe.close()

    where = Places(scratch, root)
    notebook = _read_notebook(scratch / "executed.ipynb") or json.loads(job["notebook"])
    error = judge(notebook, job, verdict, cell, _tail(scratch / "stderr"), where)
    tidy(notebook, where)
    status = "ok" if error is None else "timeout" if verdict[0] == "timeout" else "failed"
    return {
        "status": status,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(sum(cpu.values()), 2),
        "peak_mb": round(peak, 1),
        "claims": claims(notebook) if status == "ok" else [],
        "error": error,
        "notebook": json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n",
        "versions": versions(),
        "hardware": hardware(),
        "installed": installed(),
    }


def _prepare(job: dict[str, Any], scratch: Path) -> Path:
    """Lay out the scratch folder; returns the folder on the kernel's path that holds `lib`."""
    for folder in ("cwd", "press", "ipython", "runtime"):
        (scratch / folder).mkdir()
    (scratch / "press" / "worker.py").write_text(job["source"], encoding="utf-8")
    (scratch / "source.ipynb").write_text(job["notebook"], encoding="utf-8")
    settings = {key: job[key] for key in ("parameters", "memory_mb", "output_mb", "timeout")}
    (scratch / "job.json").write_text(json.dumps(settings), encoding="utf-8")
    if job.get("files") is None:
        return Path(job["root"])
    root = scratch / "code"
    for name, content in unpack(job["files"]).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def pack(files: dict[str, bytes]) -> bytes:
    """Files by relative path as one compressed string of bytes."""
    text = {name: base64.b85encode(content).decode() for name, content in files.items()}
    return zlib.compress(json.dumps(text).encode())


def unpack(packed: bytes) -> dict[str, bytes]:
    return {name: base64.b85decode(t) for name, t in json.loads(zlib.decompress(packed)).items()}


def _environment(job: dict[str, Any], scratch: Path, root: Path) -> dict[str, str]:
    """What a chapter may depend on: this machine's variables, but nobody's IPython profile."""
    environment = dict(os.environ)
    path = [str(root), *filter(None, [environment.get("PYTHONPATH")])]
    environment.update(
        PYTHONPATH=os.pathsep.join(path),
        PYTHONHASHSEED="0",
        PYTHONUNBUFFERED="1",
        PYDEVD_DISABLE_FILE_VALIDATION="1",
        IPYTHONDIR=str(scratch / "ipython"),
        JUPYTER_RUNTIME_DIR=str(scratch / "runtime"),
        JUPYTER_PLATFORM_DIRS="1",
        BOOK_PRESS="1",  # no progress bars: nobody watches, and a page must not show remains
    )
    environment.pop("PYTHONSTARTUP", None)
    if job["one_thread"]:
        environment.update(dict.fromkeys(THREADS, "1"))
    return environment


def _listen(stream, events: list[dict[str, Any]]) -> None:
    for line in stream:
        events.append(json.loads(line))


def _memory_mb(watched, cpu: dict[int, float]) -> tuple[float, float]:
    """MB in use now by the executor with all below it, and the most the kernel's tree has used.

    Linux keeps each process's high-water mark, so a peak between two looks is not missed.
    `cpu` collects processor seconds by process.
    """
    import psutil

    total = own = 0.0
    try:
        total = watched.memory_info().rss
        for child in watched.children(recursive=True):
            try:
                resident = child.memory_info().rss
                times = child.cpu_times()
            except psutil.Error:
                continue
            cpu[child.pid] = times.user + times.system
            total += resident
            own = max(own + resident, _high_water(child.pid))
    except psutil.Error:
        pass
    return total / 2**20, own / 2**20


def _high_water(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    return 0.0


def kill_tree(pid: int) -> None:
    """End a process and everything it started, also what moved to another session.

    The executor adopts orphans (Linux), so all of them stand below it. It dies last: before that,
    whoever starts new processes while being killed is found again in the next round.
    """
    import psutil

    try:
        top = psutil.Process(pid)
        for _ in range(20):
            below = [p for p in top.children(recursive=True) if p.status() != "zombie"]
            if not below:
                break
            for process in below:
                try:
                    process.kill()
                except psutil.Error:
                    pass
            psutil.wait_procs(below, timeout=0.05)
    except psutil.Error:
        pass
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass


# ---------------------------------------------------------------- what came of it


class Places:
    """The folders of this machine, and what to write instead of them."""

    def __init__(self, scratch: Path, root: Path):
        folders = {str(scratch / "cwd"): "."}
        if scratch not in root.parents:
            folders[str(scratch)] = "."
        folders[str(root)] = ""
        folders[str(root.resolve())] = ""
        for entry in map(Path, sys.path):
            if entry.name in ("site-packages", "dist-packages"):
                folders[str(entry)] = ""
        for name in ("prefix", "base_prefix", "exec_prefix"):
            folders[str(getattr(sys, name))] = "python"
        folders[str(Path.home())] = "~"
        folders.pop("/", None)
        # The longest first: the environment may lie inside the repository.
        self.names = sorted(folders.items(), key=lambda item: -len(item[0]))
        # A path begins after no letter, except the m that ends a colour in a traceback.
        colours = (r"\d", r"\d\d", r"\d;\d\d", r"\d\d;\d\d", r"\d\d;\d;\d\d", r"\d\d;\d;\d{3}")
        after = "".join(rf"|(?<=\x1b\[{colour}m)" for colour in colours)
        start = rf"(?:(?<![\w./-]){after})"
        self.patterns = [(re.compile(r"/[^\s\"'<>]*/ipykernel_\d+/\d+\.py"), "cell")]
        for folder, name in self.names:
            if not name:
                self.patterns.append((re.compile(start + re.escape(folder) + "/"), ""))
            end = r"(?![\w-])"
            self.patterns.append((re.compile(start + re.escape(folder) + end), name or "."))

    def shorten(self, text: str) -> str:
        if "/" not in text:
            return text
        for pattern, name in self.patterns:
            text = pattern.sub(name, text)
        return text


def judge(notebook, job, verdict, cell, stderr: str, where: Places) -> dict[str, Any] | None:
    """The error of a chapter, or None: which cell, what, and the end of the traceback.

    The cell's index counts in the stored notebook, not in the executed one, where papermill has put
    a cell of its own.
    """
    source = json.loads(job["notebook"])
    index = {c.get("id"): i for i, c in enumerate(source["cells"])}

    def error(cell_id, name, message, traceback=""):
        lines = [line[:300] for line in where.shorten(_plain(traceback)).splitlines()]
        return {
            "cell": index.get(cell_id),
            "cell_id": cell_id,
            "name": name,
            "message": where.shorten(_plain(str(message)))[:2000],
            "traceback": "\n".join(lines[-KEPT_LINES:])[-8000:],
        }

    running = (cell or {}).get("id")
    kind, name, message = verdict
    if kind != "done":
        return error(running, name, message, stderr)
    if name and name != "PapermillExecutionError":
        return error(running, name, message, stderr)
    for c in notebook["cells"]:
        if c["cell_type"] != "code" or "raises-exception" in c["metadata"].get("tags", []):
            continue
        for output in c.get("outputs", []):
            if output["output_type"] == "error":
                trace = "\n".join(output.get("traceback", []))
                return error(c.get("id"), output["ename"], output["evalue"], trace)
    for c in notebook["cells"]:
        if c["cell_type"] == "code" and _text(c["source"]).strip():
            if c.get("execution_count") is None:
                return error(c.get("id"), "NotRun", "execution stopped before this cell")
    return None


def tidy(notebook: dict[str, Any], where: Places) -> None:
    """Take out what papermill and this machine left: times, paths, its own notes."""
    notebook["metadata"].pop("papermill", None)
    notebook["cells"] = [
        c
        for c in notebook["cells"]
        if "papermill-error-cell-tag" not in c["metadata"].get("tags", [])
    ]
    for c in notebook["cells"]:
        metadata = c["metadata"]
        for key in ("papermill", "execution"):
            metadata.pop(key, None)
        tags = metadata.get("tags", [])
        if "injected-parameters" in tags:
            c["id"] = "injected-parameters"
            metadata["tags"] = sorted({*tags, "remove-cell"})
        if not metadata.get("tags", True):
            del metadata["tags"]
        if "outputs" in c:
            c["outputs"] = [_shortened(output, where) for output in c["outputs"]]


def _shortened(value: Any, where: Places) -> Any:
    if isinstance(value, str):
        return where.shorten(value)
    if isinstance(value, list):
        return [_shortened(v, where) for v in value]
    if isinstance(value, dict):
        # A picture in base 64 holds no path, and is long.
        return {
            k: v if k in ("image/png", "image/jpeg") else _shortened(v, where)
            for k, v in value.items()
        }
    return value


def claims(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that `lib.core.claims` leaves in its output's metadata."""
    return [
        row
        for c in notebook["cells"]
        for output in c.get("outputs", [])
        for row in output.get("metadata", {}).get("claims", [])
    ]


def _read_notebook(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def _tail(path: Path, size: int = 8000) -> str:
    """The end of what the processes wrote to stderr, without papermill's own log."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        lines = file.read().decode("utf-8", "replace").splitlines()
    noise = ("Input Notebook:", "Output Notebook:", "Working directory:", "Executing notebook")
    noise += ("Kernel died while waiting", "Passed unknown parameter")
    return "\n".join(line for line in lines if not line.startswith(noise))


def _ending(process) -> str:
    code = process.poll()
    if code is None:
        return "still running"
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


# ---------------------------------------------------------------- what it ran on


@functools.cache
def installed() -> dict[str, str]:
    """Version of every distribution here, of Python, and whether there is a GPU."""
    found = {}
    for distribution in importlib.metadata.distributions():
        try:
            name, version = distribution.metadata["Name"], distribution.version
        except Exception:
            continue  # what a broken removal left behind
        if name:
            # The first on the path is the one that an import finds.
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    found["python"] = platform.python_version()
    found["platform"] = f"{sys.platform}-{platform.machine()}"
    found["gpu"] = "yes" if gpus() else "no"
    return found


def versions() -> dict[str, str]:
    """The part of `installed` that a report names."""
    found = installed()
    return {name: found[name] for name in ["python", *REPORTED] if name in found}


def gpus() -> int:
    """NVIDIA cards of this machine, found without importing torch."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


@functools.cache
def hardware() -> str:
    """One line: processor, cores, memory, graphics cards."""
    import psutil

    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    text = f"{model}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GB"
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    if gpus() and shutil.which(query[0]):
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
        names = done.stdout.strip().splitlines()
        text += "".join(f", {name}" for name in names)
    return text


# ---------------------------------------------------------------- the executor


def execute(scratch: Path) -> None:
    """Run papermill on `source.ipynb`; say on stdout, line by line, how far it is."""
    # What is printed here by anyone else must not get into the conversation with the supervisor.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _adopt_orphans()
    threading.Thread(target=_hold_lifeline, args=(scratch,), daemon=True).start()

    def say(**event: Any) -> None:
        channel.write(json.dumps(event) + "\n")

    _skip_slow_import()
    import papermill
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.util import run_sync
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines
    from papermill.log import logger

    job = json.loads((scratch / "job.json").read_text("utf-8"))
    limit = job["output_mb"] * 2**20
    state: dict[str, Any] = {"bytes": 0, "process": None}

    class Kernel(AsyncKernelManager):
        """This very Python as the kernel, whatever kernel specifications are installed."""

        @property
        def kernel_spec(self):
            from jupyter_client.kernelspec import KernelSpec

            script = str(Path(__file__).resolve())
            argv = [sys.executable, script, "kernel", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    class Client(PapermillNotebookClient):
        async def async_start_new_kernel(self, **options):
            # A socket in the scratch folder: no port that another chapter might take.
            if os.name == "posix" and len(str(scratch)) < 70:
                self.km.transport = "ipc"
                self.km.ip = str(scratch / "runtime" / "k")
            self.km.connection_file = str(scratch / "runtime" / "kernel.json")
            await super().async_start_new_kernel(**options)
            state["process"] = getattr(self.km.provisioner, "process", None)

        start_new_kernel = run_sync(async_start_new_kernel)

        def papermill_execute_cells(self):
            super().papermill_execute_cells()
            # What the last cells used, which the supervisor may not have had time to see.
            say(event="used", **_used(state["process"]))

        def process_message(self, message, cell, index):
            state["bytes"] += _size(message["content"])
            if state["bytes"] > limit * 1.25:
                say(event="flood")
                signal.pause()  # the supervisor ends this process
            return super().process_message(message, cell, index)

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, manager, kernel_name, **options):
            def starts(cell, cell_index):
                say(event="cell", id=cell.get("id"), cell=cell_index, of=len(manager.nb.cells))

            return Client(
                manager,
                kernel_name="python3",
                kernel_manager_class=Kernel,
                startup_timeout=options.get("start_timeout", 60),
                timeout=None,  # the supervisor's
                iopub_timeout=60,
                record_timing=False,
                shutdown_kernel="immediate",
                on_cell_execute=starts,
                log=logger,
            ).execute()

    papermill_engines.register("book", Engine)
    name = message = ""
    try:
        papermill.execute_notebook(
            scratch / "source.ipynb",
            scratch / "executed.ipynb",
            parameters=job["parameters"],
            engine_name="book",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=max(60, job["timeout"]),
            cwd=scratch / "cwd",
        )
    except BaseException as error:
        name, message = type(error).__name__, str(error)
        if name == "DeadKernelError":
            process = state["process"]
            name, message = "KernelDied", f"the kernel died ({_ending(process)})"
    say(event="done", name=name, message=message[:4000])


def _used(process: subprocess.Popen | None) -> dict[str, float]:
    """The most memory and the processor time that the kernel itself has used so far."""
    import psutil

    try:
        times = psutil.Process(process.pid).cpu_times()
    except (psutil.Error, AttributeError):
        return {}
    megabytes = _high_water(process.pid) / 2**20
    return {"pid": process.pid, "peak_mb": megabytes, "cpu": times.user + times.system}


def _size(value: Any) -> int:
    """Characters in a message's content, about the bytes it takes in the notebook."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    return 8


def _skip_slow_import() -> None:
    """jsonschema loads this package only to check international addresses; it takes a second."""
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]


def _adopt_orphans() -> None:
    """Linux: what a chapter starts and abandons becomes a child of this process."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _hold_lifeline(scratch: Path) -> None:
    """Wait until the supervisor is gone; then take the chapter down and leave nothing."""
    for _ in _chunks(0):
        pass
    kill_children()
    shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _chunks(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, 1024):
        yield chunk


def kill_children() -> None:
    import psutil

    for _ in range(20):
        below = psutil.Process().children(recursive=True)
        if not below:
            return
        for process in below:
            try:
                process.kill()
            except psutil.Error:
                pass
        psutil.wait_procs(below, timeout=0.05)


# ---------------------------------------------------------------- the kernel


class OutputLimit(RuntimeError):
    """A chapter prints more than a page can hold."""


def kernel(arguments: list[str]) -> None:
    """ipykernel, with the chapter's ceilings."""
    job = json.loads((Path(__file__).resolve().parent.parent / "job.json").read_text("utf-8"))
    del sys.path[0]  # the folder of this file; a chapter must not find it
    faulthandler.enable()  # a crash in compiled code says in which cell
    _skip_slow_import()
    _limit_memory(job["memory_mb"])
    _limit_printing(job["output_mb"])
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance(argv=arguments)


def _limit_memory(megabytes: float) -> None:
    """A little below the supervisor's limit, so that the cell gets a MemoryError with its line.

    Not with a GPU: CUDA reserves far more address space than it uses.
    """
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not gpus() and hasattr(resource, "RLIMIT_DATA"):
        size = int(megabytes * 0.9 * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def _limit_printing(megabytes: float) -> None:
    """Stop a flood where it starts: 1 GB in one print never becomes a message.

    Other threads pass; the executor counts what they send.
    """
    from ipykernel.iostream import OutStream

    write, spent, limit = OutStream.write, [0], megabytes * 2**20

    @functools.wraps(write)
    def counted(self, string):
        spent[0] += len(string) if isinstance(string, str) else 0
        if spent[0] > limit and threading.current_thread() is threading.main_thread():
            __tracebackhide__ = True
            raise OutputLimit(f"more than {megabytes:g} MB printed")
        return write(self, string)

    OutStream.write = counted


if __name__ == "__main__":
    if sys.argv[1] == "execute":
        execute(Path(sys.argv[2]))
    else:
        kernel(sys.argv[2:])
