"""Two-phase training against Adam and other second phases, at equal total cost, from the same start.

Run: ``tox -e bench -- benchmarks/phase_two.py run`` with CONVEXLAB_DATA set, then ``... report``.
Every run is one line of results/phase_two.jsonl; those that are there are not made again, so that an interrupted or
extended benchmark goes on, on another machine too. The weights and moments that runs start from lie in ``--states``;
where they are lost, Adam's run is made again for them.

Cost is in gradient equivalents: an epoch of Adam 1, every evaluation of a line search 1, or 1/3 without the gradient.
Seconds are of processor time, one thread a process: what else the machine does hardly changes them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import click
import torch
from common import RESULTS
from phase_two_adam import ADAM
from phase_two_figure import draw
from phase_two_problems import EQUATIONS, PROBLEMS, Setting, matching
from phase_two_report import report
from phase_two_results import Line, Results, line_key, read_lines
from phase_two_runs import DETECTOR, FRACTIONS, RATES, Run, Seconds, measure_seconds, perform, planned, state_file
from phase_two_solvers import SOLVERS

import convexlab
from convexlab.machine.environment import describe_source

Work = tuple[Setting, Run]
_RECORDS = RESULTS / "phase_two.jsonl"
_SECONDS = RESULTS / "phase_two_seconds.jsonl"


@click.group()
def main() -> None:
    """Compare two-phase training with its peers."""


@main.command("run")
@click.option("--problems", default="*", show_default=True, help="Comma-separated patterns of model/data/loss.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--stages", default="a,b,c", show_default=True, help="a: Adam; b: switches; c: solver against solver.")
@click.option("--budget", default=150, show_default=True, help="Gradient equivalents.")
@click.option("--pinn-budget", default=5000, show_default=True, help="The same for physics-informed networks.")
@click.option("--train-size", type=int, help="Training examples.  [default: 2000; vit-mlp 1000, vgg5-max-relu 500]")
@click.option("--batch-size", type=int, help="Adam's.  [default: a twentieth of the examples, 16 to 128]")
@click.option("--adams", default="*", show_default=True, help="Comma-separated patterns of Adams in stage a.")
@click.option("--rates", default=",".join(f"{rate:g}" for rate in RATES), show_default=True)
@click.option("--switches", default=",".join((*FRACTIONS, DETECTOR)), show_default=True)
@click.option("--solvers", default="*", show_default=True, help="Comma-separated patterns of solvers in stage c.")
@click.option("--jobs", default=2, show_default=True, help="Processes, of one thread each.")
@click.option("--device", default="cpu", show_default=True, help="Where all of it is evaluated.")
@click.option("--dry-run", is_flag=True, help="Only measure and say how long it would take.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=_RECORDS, help="JSON lines, added to.")
@click.option("--states", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/phase_two"))
def run_command(
    problems: str,
    seeds: str,
    budget: int,
    pinn_budget: int,
    train_size: int | None,
    batch_size: int | None,
    **options: Any,
) -> None:
    """Make the runs that are not yet in the file."""
    settings = [
        Setting.of(
            name,
            seed,
            budget=pinn_budget if name in EQUATIONS else budget,
            train_size=train_size,
            batch_size=batch_size,
        )
        for seed in map(int, seeds.split(","))
        for name in matching(PROBLEMS, problems)
    ]
    if not settings:
        raise click.UsageError(f"no problem matches {problems!r}.")
    runs = planned(
        options["stages"].split(","),
        adams=matching(ADAM, options["adams"]),
        rates=[float(rate) for rate in options["rates"].split(",")],
        switches=options["switches"].split(","),
        solvers=matching(SOLVERS, options["solvers"]),
    )
    out, states = options["out"], options["states"]
    watched = DETECTOR in options["switches"].split(",")
    there = {line_key(line): line for line in read_lines(out, repair=True)}
    work = _left(settings, runs, there, states, watched=watched)
    click.echo(f"{len(work)} of {len(settings) * len(runs)} runs to make")
    with _pool(options["jobs"]) as pool:
        try:
            seconds = _estimates(pool, work, options["jobs"], options["device"])
            if not options["dry_run"]:
                device = options["device"]
                sys.exit(_Benchmark(pool, out, there, states, work, seconds, options["jobs"], watched, device).make())
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()
            click.echo("interrupted; the same command goes on from here")
            sys.exit(130)


@main.command("seconds")
@click.option("--problems", default="*", show_default=True, help="Comma-separated patterns of model/data/loss.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=_SECONDS, help="JSON lines, added to.")
def seconds_command(problems: str, device: str, repeats: int, out: Path) -> None:
    """Measure a gradient over all examples, a value and an epoch of Adam, on one thread; nothing else should run."""
    torch.set_num_threads(1)
    for name in matching(PROBLEMS, problems):
        setting = Setting.of(name, 0, budget=1, train_size=None, batch_size=None)
        seconds = dict(zip(("gradient", "value", "epoch"), measure_seconds(setting, device, repeats), strict=True))
        sizes = {"problem": name, "train_size": setting.train_size, "batch_size": setting.batch_size}
        line = sizes | seconds | {"repeats": repeats, "torch": torch.__version__, "device": _device_name(device)}
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        click.echo(f"{name}: {', '.join(f'{what} {1000 * value:.3g} ms' for what, value in seconds.items())}")


@main.command("report")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=_RECORDS.with_suffix(".md"))
@click.option("--figure", type=click.Path(dir_okay=False, path_type=Path), default=_RECORDS.with_suffix(".png"))
def report_command(files: Sequence[Path], out: Path, figure: Path) -> None:
    """Write the tables, in Markdown, and the curves, SVG or PNG, of FILES, or of all runs on record."""
    results = Results(line for file in files or [_RECORDS] for line in read_lines(file))
    out.write_text(report(results, [] if files else list(read_lines(_SECONDS))), encoding="utf-8")
    draw(results, figure)
    click.echo(f"{out}\n{figure}")


def _left(
    settings: Iterable[Setting],
    runs: Sequence[Run],
    there: Mapping[tuple[Any, ...], Line],
    states: Path,
    *,
    watched: bool,
) -> list[Work]:
    """Return what is to be made: what no line is there of, and the Adam that it starts from if its state is lost."""
    work = []
    for setting in settings:
        missing = {run for run in runs if (*_key(setting), run.key) not in there}
        for run in list(missing):
            source = Run("adam-constant", run.rate)
            if run.switch is not None and not state_file(states, setting, run.rate, run.switch).exists():
                missing.add(source)
        if watched:  # Along Adam, the detector not yet asked.
            missing |= {
                run
                for run in runs
                if run.name == "adam-constant" and not there.get((*_key(setting), run.key), {}).get("detector")
            }
        work += [(setting, run) for run in runs if run in missing]
    return work


def _key(setting: Setting) -> tuple[Any, ...]:
    return (setting.problem, setting.seed, setting.budget, setting.train_size, setting.batch_size)


def _pool(jobs: int) -> ProcessPoolExecutor:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin_worker)


def _begin_worker() -> None:
    # An interrupt ends a worker at once and without a traceback: nothing of an unfinished run is kept anyway.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)


def _estimates(pool: ProcessPoolExecutor, work: Iterable[Work], jobs: int, device: str) -> dict[str, Seconds]:
    """Measure every problem and say how long its runs will take."""
    first = {setting.problem: setting for setting, _ in reversed(list(work))}
    measured = {name: pool.submit(measure_seconds, setting, device) for name, setting in first.items()}
    seconds = {name: future.result() for name, future in measured.items()}
    total = 0.0
    for name, (gradient, _, epoch) in seconds.items():
        mine = sum(_expected(one, seconds) for one in work if one[0].problem == name)
        total += mine
        click.echo(
            f"{name}: {gradient:.3g} s a gradient, {epoch:.3g} s an epoch of Adam; {_minutes(mine)} for all its runs"
        )
    click.echo(f"all together {_minutes(total)} of one core, {_minutes(total / jobs)} with {jobs} processes")
    return seconds


def _expected(work: Work, seconds: dict[str, Seconds]) -> float:
    setting, run = work
    gradient, value, epoch = seconds[setting.problem]
    record = value if setting.batch_size else 0.0
    unit = gradient if run.name in SOLVERS else epoch + record
    return run.share() * setting.budget * unit


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


class _Benchmark:
    """Keeps the processes busy and writes down what they return."""

    def __init__(
        self,
        pool: ProcessPoolExecutor,
        out: Path,
        there: Mapping[tuple[Any, ...], Line],
        states: Path,
        work: list[Work],
        seconds: dict[str, Seconds],
        jobs: int,
        watched: bool,
        device: str,
    ) -> None:
        self._device = device
        self._pool, self._jobs, self._states, self._watched = pool, jobs, states, watched
        self._out, self._there = out, there
        self._waiting = list(work)
        self._expected = {one: _expected(one, seconds) for one in work}
        self._under_way: dict[Future[dict[str, Any]], Work] = {}
        self._begin = time.perf_counter()
        self._failed = False
        self._made_with = {
            "torch": torch.__version__,
            "device": _device_name(device),
            "commit": describe_source(Path(convexlab.__file__).parent),
        }
        out.parent.mkdir(parents=True, exist_ok=True)

    def make(self) -> int:
        """Make all runs and return the exit status."""
        with self._out.open("a", encoding="utf-8") as file:
            while self._waiting or self._under_way:
                self._submit()
                for future in wait(self._under_way, return_when=FIRST_COMPLETED).done:
                    work = self._under_way.pop(future)
                    try:
                        line = future.result()
                    except Exception as error:  # noqa: BLE001  # One run's bug must not cost the others.
                        self._failed = True
                        click.echo(f"FAILED {work[0].problem}, seed {work[0].seed}, {work[1].key}: {error!r}", err=True)
                        continue
                    if self._is_news(line):
                        file.write(json.dumps(line | self._made_with) + "\n")
                        file.flush()
                    self._tell(work, line)
        return 1 if self._failed else 0

    def _submit(self) -> None:
        """Start the first runs whose Adam is there, or is no longer being made."""
        for work in list(self._waiting):
            if len(self._under_way) == self._jobs:
                return
            setting, run = work
            source = (setting, Run("adam-constant", run.rate))
            if run.switch is None or not (source in self._waiting or source in self._under_way.values()):
                self._waiting.remove(work)
                self._under_way[self._pool.submit(perform, setting, run, self._states, self._watched, self._device)] = (
                    work
                )

    def _is_news(self, line: Line) -> bool:
        """Whether nothing is on record of it, or no detector's answer: not so where only the states were lost."""
        old = self._there.get(line_key(line))
        return old is None or (not old.get("detector") and bool(line.get("detector")))

    def _tell(self, work: Work, line: dict[str, Any]) -> None:
        setting, run = work
        left = sum(self._expected[one] for one in (*self._waiting, *self._under_way.values()))
        done = sum(self._expected.values()) - left
        took = time.perf_counter() - self._begin
        rest = _minutes(left * took / done if done else left / self._jobs)
        what = line["absent"] if "absent" in line else f"loss {line['loss']:.3g}, {line['seconds']:.0f} s"
        click.echo(f"{setting.problem}, seed {setting.seed}, {run.key}: {what}; {len(self._waiting)} runs, {rest} left")


if __name__ == "__main__":
    main()
