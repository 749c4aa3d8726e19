"""The command line: options in, calls of the library, messages out."""

from __future__ import annotations

import errno
import functools
import json
import os
import shlex
import sys
import threading
import traceback
import warnings
import webbrowser
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from convexlab._version import __version__
from convexlab.architectures import ARCHITECTURES, build_model
from convexlab.commands import EXIT_STATUS, Command, Group
from convexlab.datasets import dataset_names
from convexlab.datasets.torchvision_sets import data_folder
from convexlab.detection import detector_names
from convexlab.errors import CaptureWarning, ConvexLabError, DamageWarning, FailureError, MisuseError, ShortageWarning
from convexlab.importing import failure_in, is_spec
from convexlab.interrupts import INTERRUPTED, Interrupts, interrupts
from convexlab.machine.memory import is_out_of_memory
from convexlab.machine.precision import PRECISIONS
from convexlab.machine.ranks import PATIENCE, Ranks, current, of_torchrun
from convexlab.objective import PRODUCTS
from convexlab.probing import AXES, Probe
from convexlab.probing import probe as probe_checkpoints
from convexlab.problems.losses import loss_names
from convexlab.problems.objectives import objective_names
from convexlab.progress import Listener, Log, Progress, silent
from convexlab.runs import Run
from convexlab.training import TwoPhaseConfig, default_directory, phase_two_names, train_two_phase
from convexlab.training.config import (
    DEFAULT_DATASET,
    DEFAULT_DTYPE,
    DEFAULT_LOSS,
    DEFAULT_MODEL,
    FIRST_EPOCHS,
    FIRST_EXAMPLES,
    OTHER_EPOCHS,
)
from convexlab.wording.lines import Lines
from convexlab.wording.terminal import printable

__all__ = ["main"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_HALF_A_MINUTE = 30.0

_interrupts: ContextVar[Interrupts] = ContextVar("interrupts")


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_STATUS,
    sections={
        "Train, and measure curvature": ("train two-phase", "probe"),
        "Look at runs again": ("show", "open", "compare", "report"),
        "List the names that options take": ("models", "datasets", "objectives", "detectors", "phases"),
    },
)
@click.version_option(__version__, prog_name="convexlab")
def main() -> None:
    """Is the loss convex where training is, and is it time to hand over from Adam?

    Start with `convexlab train two-phase`. It needs no option and names its report. Then `convexlab COMMAND --help`.
    """


@main.group()
def train() -> None:
    """Train networks."""


def _handles_errors(command: _Function) -> _Function:
    """Turn what the library raises into one message and an exit status."""

    @functools.wraps(command)
    def handled(*args: Any, **kwargs: Any) -> Any:
        _open_standard_files()
        with warnings.catch_warnings(), interrupts(_say_that_it_stops) as handler:
            warnings.showwarning = _show_warning
            token = _interrupts.set(handler)
            try:
                return command(*args, **kwargs)
            except MisuseError as error:
                raise _Misuse(printable(str(error))) from error
            except ConvexLabError as error:
                raise click.ClickException(printable(str(error))) from error
            except BrokenPipeError:
                raise  # Whoever read the output has seen enough; click ends without a word.
            except OSError as error:
                raise click.ClickException(printable(_about_system(error))) from error
            except KeyboardInterrupt:
                click.echo("\ninterrupted", err=True)
                raise SystemExit(INTERRUPTED) from None
            except Exception as error:
                if message := _about_reader(error):
                    raise click.ClickException(message) from error
                raise
            finally:
                _interrupts.reset(token)

    return handled  # type: ignore[return-value]


def _about_system(error: OSError) -> str:
    """Return what the system refuses, and what to do about it where that is known."""
    message = f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
    remedies = (remedy for numbers, remedy in _REMEDIES if error.errno in numbers)
    return next((f"{message}. {remedy}" for remedy in remedies), message)


_REMEDIES = (
    ({errno.ENOSPC, errno.EDQUOT}, "Make room there; what was stored is kept."),
    ({errno.EACCES, errno.EPERM, errno.EROFS}, "Check its permissions, or choose another place."),
    ({errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}, "Check the path, or choose another."),
)


def _about_reader(error: Exception) -> str:
    """Return a message about an error of the reader's machine or code; "" if it is of ours."""
    if is_out_of_memory(error):
        return f"out of memory. {_SMALLER}"
    failure = failure_in(error)
    return printable(f"your code failed: {failure}.") if failure else ""


_SMALLER = "Take fewer examples (--train-size, --probe-size), smaller batches (--batch-size), or a smaller model."


def _say_that_it_stops() -> None:
    if current().shared:
        return  # It is torchrun that asks, and says so, when somebody interrupts it or a rank has failed.
    click.echo("\ninterrupted: this step is finished and stored first; once more stops at once", err=True)


def _open_standard_files() -> None:
    """Give the three standard files something to be where they are closed, or the next file opened would be one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **others: Any) -> None:
    """Print a warning of ours in a line of its own; other libraries' warnings as they are."""
    if issubclass(category, CaptureWarning | DamageWarning | ShortageWarning):
        click.echo(printable(f"Warning: {message}"), err=True)
    else:
        click.echo(printable(warnings.formatwarning(message, category, *place[:2])), err=True, nl=False)


class _Misuse(click.ClickException):
    exit_code = 2


def _among(names: Callable[[], Iterable[str]]) -> Callable[..., list[CompletionItem]]:
    """Return what completes a name of ours at the tab key, or a file where none begins like that."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        fitting = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return fitting or [CompletionItem(incomplete, type="file")]

    return complete


_models, _datasets = _among(lambda: ARCHITECTURES), _among(dataset_names)
_objectives, _losses = _among(objective_names), _among(loss_names)
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps ...")
_trust = click.option(
    "--trust",
    is_flag=True,
    help="Run code and read files that settings or checkpoints made by others name. Such code can do whatever you can.",
)
_timeout = click.option(
    "--timeout",
    type=float,
    default=PATIENCE,
    show_default=True,
    help="Under torchrun: seconds after which a rank that does not answer ends the run.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
_quiet = click.option(
    "--quiet", "-q", is_flag=True, help="No progress and no tables: only the name of the report, and errors."
)

_data = click.option(
    "--data",
    help="Batches of your own, instead of --dataset: package.module:loader or file.py:loader. The loader returns a "
    "list, a DataLoader, or another object that gives the batches every time it is iterated over. It may take "
    "train_size, batch_size, seed and device. Or files, which are read a batch at a time: npy:FOLDER with x.npy and "
    "y.npy, npy:X.npy,Y.npy, or webdataset:SHARDS-{000..099}.tar (needs the extra webdataset).",
)
_LOSS = (
    "mse, cross-entropy, package.module:function or file.py:function. It is called with (output, target), or with "
    "(model, batch) if its first argument is named model, net, network or module. A function that needs no argument "
    "is called once, and returns the loss."
)


@train.command(
    "two-phase",
    cls=Command,
    sections={
        "What is trained": ("objective", "model", "dataset", "data", "loss", "train_size"),
        "How long, and when to switch to what": ("epochs", "detector", "switch_epoch", "phase_two"),
        "Adam, and what the run is compared with": ("lr", "batch_size", "no_baseline", "oracle_every"),
        "What is measured and stored": ("probe_every", "checkpoint_every", "out", "tensorboard"),
        "What is printed": ("quiet", "as_json"),
    },
)
@click.option(
    "--objective",
    shell_complete=_objectives,
    help="Any loss with its model, instead of --model, --data and --loss. It is a name (see `convexlab objectives`), "
    "package.module:factory or file.py:factory. The factory returns a convexlab.Objective, whose batches are Adam's "
    "mini-batches, or a convexlab.Problem. It may take seed, train_size, batch_size and device.",
)
@click.option(
    "--model",
    shell_complete=_models,
    help=f"Name (see `convexlab models`), package.module:factory or file.py:factory.  [default: {DEFAULT_MODEL}]",
)
@click.option(
    "--dataset",
    shell_complete=_datasets,
    help=f"Name (see `convexlab datasets`), npz:FILE, ...  [default: {DEFAULT_DATASET}]",
)
@_data
@click.option("--loss", shell_complete=_losses, help=f"{_LOSS}  [default: {DEFAULT_LOSS}]")
@click.option(
    "--epochs",
    type=int,
    help="Budget in epoch equivalents, for each of the runs compared.  "
    f"[default: {FIRST_EPOCHS}, an objective's own, or {OTHER_EPOCHS} with --dataset]",
)
@click.option(
    "--detector",
    default=TwoPhaseConfig.detector,
    show_default=True,
    shell_complete=_among(detector_names),
    help="Decides when to switch; see `convexlab detectors`.",
)
@click.option("--switch-epoch", type=int, help="Switch after this many Adam epochs, whatever the detector decides.")
@click.option(
    "--phase-two",
    default=TwoPhaseConfig.phase_two,
    show_default=True,
    shell_complete=_among(phase_two_names),
    help="Second phase; see `convexlab phases`.",
)
@click.option(
    "--batch-size",
    type=int,
    help="Adam's batch size.  [default: 512, or a twentieth of a smaller training set, or the objective's own]",
)
@click.option("--lr", type=float, default=TwoPhaseConfig.lr, show_default=True, help="Adam's learning rate.")
@click.option(
    "--train-size",
    type=int,
    help="Use a stratified subset of this many training examples. The factory of an objective takes it as it likes.  "
    f"[default: all, without --dataset {FIRST_EXAMPLES}]",
)
@click.option(
    "--seed",
    type=int,
    default=TwoPhaseConfig.seed,
    show_default=True,
    help="Seed of weights, order of examples and subset.",
)
@click.option(
    "--seeds", type=int, default=TwoPhaseConfig.seeds, show_default=True, help="Number of runs, from --seed upwards."
)
@click.option(
    "--probe-every", type=int, help="Probe the curvature every N epochs; 0 never.  [default: start, switch and end]"
)
@click.option(
    "--checkpoint-every", type=int, help="Keep the weights every N epochs.  [default: as probed, or a sixth of them]"
)
@click.option("--no-baseline", is_flag=True, help="Leave out the runs with Adam alone.")
@click.option(
    "--oracle-every",
    type=int,
    help="Start phase two from every N-th epoch of Adam too, to find the best switch. Each start is another run.  "
    "[default: none]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    help=f"Numbers to train and evaluate in.  [default: {DEFAULT_DTYPE}, or the objective's own]",
)
@_device
@click.option("--force", is_flag=True, help="Allow more than 10,000,000 epochs or 10,000 seeds.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.  [default: a new one under runs/]")
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write all series into this folder too, for TensorBoard (needs the extra tensorboard).",
)
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in --out.")
@_timeout
@_trust
@_quiet
@_json
@click.pass_context
@_handles_errors
def two_phase(
    context: click.Context,
    /,
    out: Path | None,
    tensorboard: Path | None,
    resume: bool,
    timeout: float,
    trust: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train with Adam until the switch, then with a second-order method.

    Adam alone, with a constant and with a cosine-decayed rate, is trained beside it from the same start at equal cost.
    With no option it trains on 250 digits of scikit-learn, in about a minute and a half on two cores. With --objective
    pinn-helmholtz it trains a physics-informed network, in as long. At the end it names its report. Under torchrun the
    ranks share the examples: torchrun --nproc-per-node 4 -m convexlab train two-phase ...
    """
    device = str(options["device"])
    if resume:
        explicit = {ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT}
        options = {name: value for name, value in options.items() if context.get_parameter_source(name) in explicit}
    with _ranks(device, timeout) as ranks:
        if out is None and not resume:
            out = ranks.agreed(lambda: default_directory(TwoPhaseConfig.of(options)))
        if ranks.is_writer and resume and out is not None and out.is_dir() and Run(out).is_empty():
            click.echo(printable(f"nothing was stored in {out} yet: it is begun anew"), err=True)
        named = any(is_spec(options.get(name) or "") for name in ("objective", "model", "dataset", "data", "loss"))
        remedy = f"convexlab train two-phase --resume {'--trust ' * (trust or named)}--out {shlex.quote(str(out))}"
        diverged: FailureError | None = None
        with (
            _interruptible(remedy, ranks),
            _progress(ranks, quiet=quiet) as listener,
            _series(tensorboard, ranks) as log,
        ):
            try:
                run = train_two_phase(
                    out=out, resume=resume, trust=trust, progress=listener, log=log, group=ranks.group, **options
                )
            except FailureError as error:
                if out is None or Run(out).summary is None:
                    raise
                run, diverged = Run(out), error  # It is finished all the same, and the page says how.
        if ranks.is_writer:
            _show_run(run, as_json=as_json, quiet=quiet)
        if diverged is not None:
            raise diverged


def _show_run(run: Run, *, as_json: bool, quiet: bool) -> None:
    from convexlab.reporting import write_report
    from convexlab.reporting.terminal import run_text

    report = write_report([run])
    if not quiet:
        click.echo(run_text(run), err=as_json)
    _say(f"report: {report}", err=as_json)
    if as_json:
        click.echo(json.dumps(run.summary))


@main.command(
    cls=Command,
    sections={
        "What is probed": ("model", "dataset", "data", "loss", "objective", "train_size", "probe_size", "key", "axis"),
        "How closely": ("confidence", "max_steps", "top", "density_probes", "density_steps", "products", "precision"),
        "What is stored and printed": ("out", "verbose", "quiet", "as_json"),
    },
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model",
    shell_complete=_models,
    help="Name, package.module:factory or file.py:factory.  [default: what the checkpoint says]",
)
@click.option("--dataset", shell_complete=_datasets, help="Name, npz:FILE, ...  [default: what the checkpoint says]")
@_data
@click.option("--loss", shell_complete=_losses, help=f"{_LOSS}  [default: what the checkpoint says]")
@click.option(
    "--objective",
    shell_complete=_objectives,
    help="Any other loss with its model, instead of --model, --data and --loss. It is a name (see `convexlab "
    "objectives`), package.module:factory or file.py:factory. The factory returns a convexlab.Objective. It may take "
    "seed, train_size and device.  [default: what the checkpoint says]",
)
@click.option("--train-size", type=int, help="Training examples.  [default: what the checkpoint says, else all]")
@click.option(
    "--probe-size",
    type=int,
    help="Probe the loss of a stratified sample of this many of them.  [default: what the checkpoint says, else all]",
)
@click.option("--seed", type=int, help="Seed of subset and sample.  [default: what the checkpoint says, else 0]")
@click.option(
    "--confidence",
    type=float,
    default=0.999,
    show_default=True,
    help="Confidence of the bounds, over the random start.",
)
@click.option("--max-steps", type=int, help="Hessian products of the main Krylov run at most.")
@click.option("--density-probes", type=int, default=1, show_default=True, help="Krylov runs for the spectral density.")
@click.option("--density-steps", type=int, default=32, show_default=True, help="Products of each of these runs.")
@click.option(
    "--top", type=int, default=0, show_default=True, help="Number of largest eigenvalues to measure, on the same run."
)
@click.option(
    "--products",
    type=click.Choice(PRODUCTS),
    default="auto",
    show_default=True,
    help="How the Hessian multiplies: differences (of gradients) for losses that torch cannot differentiate twice.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="full",
    show_default=True,
    help="Precision of the products of a float32 loss. bf16, or tf32 on CUDA, are faster where the processor has them. "
    "Bounds and verdicts allow for their error.",
)
@click.option("--key", help="Name of the weights in a PyTorch file.  [default: the first common one]")
@click.option(
    "--axis",
    type=click.Choice(AXES),
    help="Axis of the checkpoints, as in files or their names.  [default: epochs where any has one, else steps]",
)
@click.option("--dtype", type=click.Choice(["float32", "float64"]), help="[default: what the checkpoint says]")
@_device
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where the results go.  [default: the run, or runs/probe-MODEL]"
)
@click.option(
    "--jobs",
    type=int,
    default=1,
    show_default=True,
    help="Checkpoints measured at once, each in a process with its share of the threads; fewer where memory is short.",
)
@click.option("--resume", is_flag=True, help="Keep the checkpoints probed already.")
@_timeout
@_trust
@click.option("--verbose", "-v", is_flag=True, help="Describe every checkpoint in words.")
@_quiet
@_json
@_handles_errors
def probe(paths: tuple[Path, ...], as_json: bool, verbose: bool, quiet: bool, timeout: float, **options: Any) -> None:
    """Measure the curvature at checkpoints: a run directory, files, or a mix.

    A run directory names its model, data and loss. Other checkpoints need --model and --loss, and their data: --dataset
    for images with labels, --data for batches of your own. Any other loss comes with its model by --objective.

    \b
    convexlab probe ckpt-*.pt --model m.py:net --data d.py:batches --loss l.py:loss
    """  # noqa: D301 - click reads the backspace
    if quiet and verbose:
        raise MisuseError("expected --quiet or --verbose, got both. Leave one of them out.")
    with _ranks(str(options["device"]), timeout) as ranks:
        with _interruptible("the same command with --resume", ranks), _progress(ranks, quiet=quiet) as listener:
            result = probe_checkpoints(paths, progress=listener, group=ranks.group, **options)
        if ranks.is_writer:
            _show_probe(result, as_json=as_json, verbose=verbose, quiet=quiet)
        if not any(checkpoint.is_measured for checkpoint in result.checkpoints):
            raise FailureError(
                f"curvature could not be measured at any of the {len(result.rows)} checkpoints. The report says why."
            )


def _show_probe(result: Probe, *, as_json: bool, verbose: bool, quiet: bool) -> None:
    from convexlab.reporting import write_report
    from convexlab.reporting.terminal import curvature_text

    report = write_report([result.run])
    if not quiet:
        click.echo(curvature_text(result.run, verbose=verbose), err=as_json)
    if as_json:
        click.echo(json.dumps({"rows": result.rows, "report": str(report)}))
    else:
        _say(f"report: {report}")


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write, which ends in .html, .md, .json or .png.  [default: report.html in the first run]",
)
@click.option(
    "--format",
    type=click.Choice(["html", "md", "json", "png"]),
    help="html, md (the same in Markdown), json (its facts as numbers), or png (its first picture).  "
    "[default: as --out ends; html without --out]",
)
@_handles_errors
def report(paths: tuple[Path, ...], out: Path | None, format: str | None) -> None:
    """Write one page about a run, or about several side by side.

    Says what the runs make of the paper's claims: that the loss is first non-convex, then convex, and that the gradient
    norm peaks in between.
    """
    from convexlab.reporting import write_report
    from convexlab.reporting.terminal import claims_text

    runs = [Run.open(path) for path in paths]
    written = write_report(runs, out, format=format)
    if claims := claims_text(runs):
        click.echo(claims)
    _say(f"report: {written}")


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@_handles_errors
def show(path: Path) -> None:
    """Print the results of a run again."""
    from convexlab.reporting.terminal import run_text

    click.echo(run_text(Run.open(path)))


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@_handles_errors
def compare(paths: tuple[Path, ...]) -> None:
    """Print several runs side by side."""
    from convexlab.reporting.terminal import comparison_text

    click.echo(comparison_text([Run.open(path) for path in paths]))


@main.command("open")
@click.argument("path", type=click.Path(path_type=Path))
@_handles_errors
def open_report(path: Path) -> None:
    """Write the report of a run, and open it in the browser."""
    from convexlab.reporting import write_report

    report = write_report([Run.open(path)])
    _say(f"report: {report}")
    if not webbrowser.open(report.resolve().as_uri()):  # Which knows where there is no display, unlike click.launch.
        raise FailureError(f"no browser could be started. Open {str(report)!r} in one.")


@main.command()
def models() -> None:
    """List the networks, with their parameter counts."""
    click.echo("parameters with 3 channels and 10 classes:\n")
    for name, architecture in ARCHITECTURES.items():
        count = sum(parameter.numel() for parameter in build_model(name).parameters())
        click.echo(f"  {name:<22}{count:>9,}  {architecture.description}")


@main.command()
def datasets() -> None:
    """List the data sets, and where they are looked for."""
    _list(dataset_names())
    click.echo(f"\ndownloads are in {data_folder()} (set CONVEXLAB_DATA to change it)")


@main.command()
def objectives() -> None:
    """List the objectives that `--objective` knows by name."""
    _list(objective_names())


@main.command()
def detectors() -> None:
    """List the detectors that decide when to switch."""
    _list(detector_names())


@main.command()
def phases() -> None:
    """List the second phases."""
    _list(phase_two_names())


def _say(text: str, err: bool = False) -> None:
    """Print a line that may hold names from files."""
    click.echo(printable(text), err=err)


def _list(names: dict[str, str]) -> None:
    width = max(map(len, names)) + 2
    for name, description in names.items():
        click.echo(f"  {name:<{width}}{description}")


@contextmanager
def _ranks(device: str, timeout: float) -> Iterator[Ranks]:
    """Yield the ranks that torchrun has started; of an error that they all meet, one tells."""
    with of_torchrun(device, timeout) as ranks:
        try:
            yield ranks
        except (ConvexLabError, OSError) as error:
            traceback.clear_frames(error.__traceback__)  # Their variables would keep the group, see `Ranks.group`.
            if ranks.shared and not ranks.speaks_first():
                raise SystemExit(_Misuse.exit_code if isinstance(error, MisuseError) else 1) from None
            raise


@contextmanager
def _interruptible(remedy: str, ranks: Ranks) -> Iterator[None]:
    """On Ctrl-C say that the work is kept and how to go on, and leave with status 130."""
    try:
        yield
    except KeyboardInterrupt:
        if ranks.is_writer:
            click.echo(printable(f"\ninterrupted; what was done is kept. Go on with: {remedy}"), err=True)
        raise SystemExit(INTERRUPTED) from None


@contextmanager
def _series(folder: Path | None, ranks: Ranks) -> Iterator[Log | None]:
    """Yield what writes series for TensorBoard, if a folder for them is named."""
    if folder is None or not ranks.is_writer:
        yield None
        return
    from convexlab.integrations.tensorboard import TensorBoard

    with TensorBoard(folder) as log:
        yield log


@contextmanager
def _progress(ranks: Ranks, *, quiet: bool) -> Iterator[Listener]:
    """Show progress on stderr by one of several ranks, as bars or lines or not at all, and stop where asked to."""
    with _interrupts.get().gentle(ranks.any) as check, _shown(quiet or not ranks.is_writer) as show:

        def listener(step: Progress) -> None:
            show(step)
            if not step.within:
                check()

        yield listener


def _shown(quiet: bool) -> AbstractContextManager[Listener]:
    if quiet or sys.stderr is None:
        return nullcontext(silent)
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":  # which has no line that can be written anew
        from convexlab.wording.bars import bars

        return bars()
    return _lines()


@contextmanager
def _lines() -> Iterator[Listener]:
    """Say a line every half minute where there is no terminal, whatever the work is at, and landmarks at once."""
    lines, over = Lines(lambda line: _say(line, err=True)), threading.Event()

    def tell() -> None:
        while not over.wait(_HALF_A_MINUTE):
            lines.tell()

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        over.set()
        thread.join()
