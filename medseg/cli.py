"""``medseg <verb> group=option key=value``: one function is called, and how it ends becomes an exit status.

0 done; 2 nothing was done because of the request, the data or the model; 3 some cases or jobs failed; 4 stopped by the
machine; 130/143 interrupted; 1 a bug, with its traceback. ``sys.argv`` is left as it is: Lightning starts the other
processes of a training from it. Nothing heavy is imported before the verb is known and its configuration is sound.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import re
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import yaml

from medseg import __version__, config, runs
from medseg.errors import MachineError, MedsegError, SomeFailed

logger = logging.getLogger(__name__)

_HELP = """medseg: from a folder of medical scans to masks, lesion boxes or a class, and a picture of why

  medseg <command> group=option key=value …
  medseg <command> --help

Commands
{commands}

Options
  --help, -h         what a command does, its groups and values; with group=option: that option's values
  --cfg              show the composed configuration and stop
  --multirun, -m     run every combination of a=1,2 b=range(3) group=glob(*); again: what is finished is skipped
  --config-dir DIR   a folder of your own configuration groups, such as DIR/experiment/mine.yaml
  --version

Exit status: 0 done; 2 nothing was done (the message says why); 3 some cases or jobs failed; 4 stopped by the machine,
run again to go on; 130 or 143 interrupted; 1 a bug.
"""


_FLAGS = ("--help", "--cfg", "--multirun", "--version")


class Terminated(BaseException):
    """SIGTERM arrived: unwinds like Ctrl-C does, so that workers end and files stay whole."""


@dataclass
class _Request:
    verb: str = ""
    overrides: list[str] = field(default_factory=list)
    dirs: list[Path] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (``sys.argv`` by default) and return its exit status."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # a user's own mynet.py; a console script has no current folder on its path
    with _logging_to_stderr():
        try:
            with _terminating():
                _run(_read(list(sys.argv[1:] if argv is None else argv)), alone=argv is None)
            return 0
        except (Exception, KeyboardInterrupt, Terminated, SystemExit) as error:
            status = exit_status(error)
            _tell(error, status)
            return status


def exit_status(error: BaseException) -> int:
    """What a command that ended with ``error`` exits with."""
    if isinstance(error, MedsegError):
        return error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, Terminated) or type(error).__name__ == "SIGTERMException":  # Lightning's own
        return 143
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    return MachineError.exit_status if _is_the_machines(error) else 1


_MACHINE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|killed by signal: Killed")  # as torch says it


def _is_the_machines(error: BaseException | None) -> bool:
    """Whether memory, disk or the right to write ran out, somewhere in the chain of causes."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _MACHINE_ERRNOS):
            return True
        if isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _tell(error: BaseException, status: int) -> None:
    """Say how it ended: a message for what a user can mend, a traceback for a bug."""
    if isinstance(error, MedsegError):
        logger.error("%s", error)
    elif status in (130, 143):
        logger.error("interrupted; the same command goes on")
    elif status == MachineError.exit_status:
        logger.error(
            "stopped by the machine: %s; mend that, then run the same command again", error or type(error).__name__
        )
    elif not isinstance(error, SystemExit):
        logger.error("%s", "".join(traceback.format_exception(error)).rstrip())
        logger.error("This is a bug of medseg: please report it with the lines above.")


class _Console(logging.Handler):
    """Plain lines on stderr, above a progress bar that may be there."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        try:
            bars = sys.modules.get("tqdm")
            if bars is not None:
                bars.tqdm.write(prefix + self.format(record), file=sys.stderr)
            else:
                sys.stderr.write(prefix + self.format(record) + "\n")
        except (OSError, ValueError):  # stderr is closed: there is nobody to tell
            pass


@contextlib.contextmanager
def _logging_to_stderr() -> Iterator[None]:
    """What medseg logs is shown, from INFO up, by nobody else's handlers and without what libraries say to programmers."""
    root, console = logging.getLogger("medseg"), _Console()
    before = root.level, root.propagate
    root.setLevel(logging.INFO)
    root.propagate = False
    root.addHandler(console)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        root.removeHandler(console)
        root.setLevel(before[0])
        root.propagate = before[1]


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM raises `Terminated` in this process; processes forked from it simply end."""
    owner = os.getpid()

    def handle(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            os._exit(143)
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, handle)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _read(argv: list[str]) -> _Request:
    request, names = _Request(), {"-h": "--help", "-m": "--multirun", "-cd": "--config-dir"}
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        name = names.get(name, name)
        if name == "--config-dir":
            folder = value if equals else next(words, "")
            if not folder:
                raise MedsegError("--config-dir: expected a folder")
            request.dirs.append(Path(folder).expanduser())
        elif name in _FLAGS:
            request.flags.add(name)
        elif word.startswith("-"):
            raise MedsegError(f"there is no option {word!r}; there are {', '.join(_FLAGS)} and --config-dir DIR")
        elif not request.verb and "=" not in word:
            request.verb = word
        else:
            request.overrides.append(word)
    return request


def _run(request: _Request, *, alone: bool = False) -> None:
    """``alone``: the process is there for this command and ends with it."""
    if "--version" in request.flags:
        _write(f"medseg {__version__}\n")
    elif not request.verb:
        _write(_HELP.format(commands="\n".join(f"  {verb:9} {_about(verb)[1]}" for verb in config.verbs())))
        if "--help" not in request.flags:
            raise MedsegError("expected a command")
    elif "--help" in request.flags:
        _write(_help(request))
    elif "--multirun" in request.flags:
        _run_all(request)
    else:
        values = config.compose(request.verb, request.overrides, dirs=request.dirs)
        if "--cfg" in request.flags:
            _write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
            return
        if alone and request.verb in ("predict", "evaluate"):
            # Read when PyTorch is loaded: its threads wait asleep, not spinning on cores that reading ahead and writing need.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        with _lasting() if alone else contextlib.nullcontext():
            run = runs.build_run(request.verb, values)
        run()


@contextlib.contextmanager
def _lasting() -> Iterator[None]:
    """What is made inside, modules above all, lives as long as the process: no garbage is looked for meanwhile nor, later, among
    it (0.4 s of a short run)."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


# ---- help ------------------------------------------------------------------------------------------------------------


def _about(verb: str) -> tuple[str, str]:
    """The first two comment lines of a primary configuration: an example, and what the verb does."""
    lines = (config.conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8").splitlines()
    return lines[0].lstrip("# "), lines[1].lstrip("# ")


def _help(request: _Request) -> str:
    if request.verb not in config.verbs():
        config.compose(request.verb)  # says which commands there are
    chosen = dict(word.split("=", 1) for word in request.overrides if "=" in word)
    groups = config.groups(request.verb)
    shown = [(g, option) for g, option in chosen.items() if g in groups and option in config.options(g, request.dirs)]
    if shown:
        return "\n".join(_text_of(group, option, request.dirs) for group, option in shown)
    example, about = _about(request.verb)
    text = [about, "", f"  {example}", ""]
    rows = [(g, default) for g, default in groups.items() if default is not None or g == "experiment"]
    if rows:
        text.append(
            f"Groups: group=option, * is the default; medseg {request.verb} --help group=option shows its values"
        )
        for group, default in rows:
            names = [f"*{n}" if n == default else n for n in config.options(group, request.dirs)]
            text.append(f"  {group:11} {' '.join(names)}{'   (to be given)' if default == '???' else ''}")
        text.append("")
    text.append("Values: key=value; ??? is to be given")
    return "\n".join([*text, *(f"  {line}" for line in _values(request.verb)), ""])


def _values(verb: str) -> list[str]:
    """The lines of a primary configuration beside its head and its defaults list, comments and all."""
    lines = (config.conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8").splitlines()
    kept, inside = [], False
    for line in lines:
        inside = line.startswith("defaults:") or (inside and line.startswith(" "))
        if not inside and not line.startswith("#"):
            kept.append(line)
    return kept


def _text_of(group: str, option: str, dirs: Sequence[Path]) -> str:
    files = [folder / group / f"{option}.yaml" for folder in (config.conf_dir(), *dirs)]
    return next(file for file in files if file.is_file()).read_text(encoding="utf-8")


def _write(text: str) -> None:
    """To stdout; a reader that has gone (``| head``) is no mistake."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---- several jobs ----------------------------------------------------------------------------------------------------


def _run_all(request: _Request) -> None:
    """Run every combination, one process after another; a failed job does not stop the rest.

    Jobs that are finished end at once, because every command skips what is done: the same line goes on where it stopped.

    Raises:
        MedsegError: a job's configuration is not sound (nothing was run), or all jobs ended with exit status 2.
        SomeFailed: names the jobs that failed.
    """
    jobs = _jobs(request)
    failed: dict[str, int] = {}
    for number, job in enumerate(jobs, start=1):
        logger.info("job %d of %d: medseg %s %s", number, len(jobs), request.verb, " ".join(job))
        flags = [f"--config-dir={folder}" for folder in request.dirs]
        status = _run_process([sys.executable, "-P", "-m", "medseg", request.verb, *flags, *job])
        if status in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        if status in (143, -signal.SIGTERM):
            raise Terminated
        if status:
            failed[" ".join(job)] = status
    if failed:
        kind = MedsegError if len(failed) == len(jobs) and set(failed.values()) == {2} else SomeFailed
        lines = [f"  - {job} (exit status {status})" for job, status in failed.items()]
        raise kind("\n".join([f"{len(failed)} of {len(jobs)} jobs failed:", *lines]))
    logger.info("all %d jobs are done", len(jobs))


def _jobs(request: _Request) -> list[list[str]]:
    """The overrides of each job, all of them sound and each with a place of its own to write to."""
    swept = {o.key_or_group for o in map(config.parse, request.overrides) if o.is_sweep_override()}
    jobs: list[list[str]] = []
    taken: dict[str, list[str]] = {}
    for job in config.sweep(request.overrides, request.dirs):
        values = config.compose(request.verb, job, dirs=request.dirs)
        if request.verb == "train" and not swept & {"run.dir", "name"}:
            # Folds of one experiment lie side by side, and so do experiments; what else varies gets a folder.
            parts = [
                f"{o.key_or_group.rpartition('.')[2]}-{o.value()}"
                for o in map(config.parse, job)
                if o.key_or_group in swept
            ]
            parts = [part for part in parts if not part.startswith(("fold-", "experiment-"))]
            if parts:
                job = [*job, f"name={values['name']}/{re.sub(r'[^A-Za-z0-9.+-]+', '_', '_'.join(parts))}"]
                values = config.compose(request.verb, job, dirs=request.dirs)
        place = runs.destination(request.verb, values)
        if place in taken:
            raise MedsegError(
                f"--multirun: these jobs would both write {place}: {' '.join(taken[place])} | {' '.join(job)}. "
                "Let the folder depend on what varies, for example output='results/${overlap}'"
            )
        if place is not None:
            taken[place] = job
        jobs.append(job)
    return jobs


def _run_process(command: Sequence[str]) -> int:
    """Run ``command`` to its end; it never outlives this process."""
    process, arrived = None, []
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.append(1))  # not between the start and its handle
    try:
        process = subprocess.Popen(command)
        signal.signal(signal.SIGTERM, before)
        if arrived:
            raise Terminated
        return process.wait()
    except KeyboardInterrupt:  # the terminal has told the job too, which closes its files
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if process is not None and process.poll() is None:
            process.terminate()
            process.wait()
