"""The command ``ppgen``: survey, fit, sample, evaluate, discover.

Nothing heavy is imported before the arguments are known to be good, so that ``--help``
answers at once. Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 done
in part (a family failed), 2 bad arguments or data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ppgen import __version__
from ppgen.errors import ConfigError, PpgenError, PpgenWarning, TrainingWarning

if TYPE_CHECKING:
    from ppgen.contract import GenerativeModel
    from ppgen.datasets.split import DataSet

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: what stands after ``ppgen``; ``sys.argv`` where left out.
    """
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        _say_warnings_in_a_line(f"ppgen {options.command}")
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        _error("interrupted")
        return _INTERRUPTED
    except (PpgenError, OSError) as error:
        if options.debug:
            raise
        _error(f"ppgen {options.command}: {' '.join(str(error).split())}")
        return 2


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    training = argparse.ArgumentParser(add_help=False)
    training.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)"
    )
    training.add_argument(
        "--seed", type=_seed, default=0, help="seed of everything random (default: %(default)s)"
    )
    training.add_argument("--quiet", action="store_true", help="no progress on stderr")

    parser = argparse.ArgumentParser(prog="ppgen", description="Generative models on Pyro.")
    parser.add_argument("--version", action="version", version=f"ppgen {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    survey = commands.add_parser(
        "survey", parents=[common, training], help="fit many families on one data set and write a report"
    )
    _data_argument(survey, optional=True)
    survey.add_argument(
        "--families",
        metavar="A,B,C",
        help="families or groups, such as vae,flow; all for every one (default: those for small images)",
    )
    survey.add_argument(
        "--budget", type=float, metavar="SECONDS", help="training time over all families (default: 150)"
    )
    survey.add_argument(
        "--out", default="ppgen-survey", metavar="DIR", help="directory of the report (default: %(default)s)"
    )
    survey.add_argument("--threads", type=int, help="threads on the CPU (default: one for small data)")
    survey.set_defaults(run=_survey)

    fit = commands.add_parser("fit", parents=[common, training], help="fit one family and save the model")
    _data_argument(fit)
    fit.add_argument("--family", required=True, metavar="NAME", help="name of the family, such as vae")
    fit.add_argument("--out", required=True, metavar="DIR", help="directory of the saved model")
    fit.add_argument("--epochs", type=int, help="passes over the data")
    fit.add_argument("--max-seconds", type=float, help="time limit on training")
    fit.add_argument("--batch-size", type=int, help="data a step")
    fit.add_argument("--learning-rate", type=float, help="of the optimiser")
    fit.add_argument("--patience", type=int, help="epochs without a better validation loss")
    fit.add_argument("--clip-norm", type=float, help="largest norm of the gradient")
    fit.add_argument("--checkpoint", metavar="DIR", help="checkpoints, from which a second call goes on")
    fit.set_defaults(run=_fit)

    sample = commands.add_parser("sample", parents=[common], help="draw from a saved model")
    sample.add_argument("model", metavar="MODEL_DIR", help="what ppgen fit or ppgen survey saved")
    sample.add_argument("--num", type=int, default=64, help="how many (default: %(default)s)")
    sample.add_argument("--out", required=True, metavar="FILE", help="FILE.npy, or FILE.png for images")
    sample.add_argument("--seed", type=_seed, help="for draws that repeat")
    sample.set_defaults(run=_sample)

    evaluate = commands.add_parser(
        "evaluate", parents=[common], help="held-out likelihood of a saved model, as JSON"
    )
    evaluate.add_argument("model", metavar="MODEL_DIR", help="what ppgen fit or ppgen survey saved")
    _data_argument(evaluate)
    evaluate.add_argument("--seed", type=_seed, default=0, help="of noise and draws (default: %(default)s)")
    evaluate.set_defaults(run=_evaluate)

    discover = commands.add_parser(
        "discover", parents=[common, training], help="learn the graph behind a table and write a report"
    )
    _discovery_arguments(discover)
    discover.set_defaults(run=_discover)
    return parser


def _discovery_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", metavar="TABLE", help="a text file of columns (.csv, .tsv, ...)")
    parser.add_argument(
        "--method",
        default="exact",
        metavar="NAME",
        help="exact, order_mcmc, partition_mcmc, dibs, notears, dagma, hill_climb, ges, pc, bootstrap or "
        "bootstrap:NAME (default: %(default)s)",
    )
    many: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument("--option", **many, metavar="NAME=VALUE", help="an option of the method")
    parser.add_argument("--score", metavar="NAME", help="bdeu, bge, ... (default: the one for the data)")
    parser.add_argument("--score-option", **many, metavar="NAME=VALUE", help="an option of the score")
    parser.add_argument(
        "--prior", default="uniform", choices=("uniform", "order"), help="over graphs (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        default="ppgen-discovery",
        metavar="DIR",
        help="directory of the report (default: %(default)s)",
    )
    parser.add_argument(
        "--reference", metavar="FILE", help="a graph to compare with: a .bif file, or lines from,to"
    )
    table = parser.add_argument_group("how to read the table")
    table.add_argument(
        "--interventions",
        metavar="COLUMN",
        help="column that names what was set in each row; empty for nothing",
    )
    table.add_argument(
        "--intervention-kind",
        default="perfect",
        choices=("perfect", "imperfect", "soft", "uncertain"),
        help="what setting does; uncertain: the column names agents, whose targets are learnt "
        "(default: %(default)s)",
    )
    table.add_argument("--push", type=float, help="pseudo-counts of soft interventions")
    table.add_argument(
        "--push-to", **many, metavar="COLUMN=LEVEL", help="the level that soft interventions push a column to"
    )
    table.add_argument("--max-agents", type=int, help="agents that may act on one variable (default: 1)")
    table.add_argument(
        "--levels",
        **many,
        metavar="COLUMN=A,B,...",
        help="values of a categorical column, or A,B,... for those of all",
    )
    table.add_argument(
        "--continuous", metavar="COLUMN,...", help="columns that are continuous though they look not"
    )
    table.add_argument(
        "--discretise", choices=("quantile", "hartemink"), help="how to cut continuous columns"
    )
    table.add_argument(
        "--missing",
        default="error",
        choices=("error", "drop", "level"),
        help="what to do where cells are missing (default: %(default)s)",
    )
    known = parser.add_argument_group("what is known of the edges")
    known.add_argument("--forbid", **many, metavar="'A->B,...'", help="edges that no graph has")
    known.add_argument("--require", **many, metavar="'A->B,...'", help="edges that every graph has")
    known.add_argument("--tiers", metavar="A,B/C,...", help="groups of columns, causes first")
    known.add_argument("--max-parents", type=int, metavar="K", help="the largest number of parents")


def _data_argument(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?" if optional else None,
        default="digits",
        help="a registered name or a file (.npz, .npy, .csv, .parquet)"
        + (" (default: %(default)s)" if optional else ""),
    )
    table = parser.add_argument_group("how to read a file")
    table.add_argument("--label", metavar="COLUMN", help="column of a table that holds the labels")
    table.add_argument("--drop", metavar="COLUMN,...", help="columns of a table to leave out")
    table.add_argument("--levels", type=int, metavar="L", help="the numbers are levels 0 .. L-1")


def _load_options(options: argparse.Namespace) -> dict[str, Any]:
    """What :func:`ppgen.datasets.load` is told beside the name: only what was given."""
    drop = None if options.drop is None else [name.strip() for name in options.drop.split(",")]
    found = {"label": options.label, "drop": drop, "levels": options.levels}
    return {name: value for name, value in found.items() if value is not None}


def _seed(text: str) -> int:
    """A seed that every generator takes."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2**32 - 1, got {text!r}")
    return int(text)


# -- commands -----------------------------------------------------------------------------


def _survey(options: argparse.Namespace) -> int:
    from ppgen.report.survey import DEFAULT_BUDGET, survey

    names = None
    if options.families is not None:
        names = [name.strip() for name in options.families.split(",") if name.strip()]
    result = survey(
        options.data,
        families=names,
        budget=DEFAULT_BUDGET if options.budget is None else options.budget,
        device=options.device,
        out=options.out,
        seed=options.seed,
        threads=options.threads,
        progress=not options.quiet,
        load_options=_load_options(options),
    )
    _say(str(result))
    if result.interrupted:
        _error("interrupted; the same command goes on from here")
        return _INTERRUPTED
    return 0 if result.ok else 1


def _fit(options: argparse.Namespace) -> int:
    from ppgen.inference.checkpoint import save_model
    from ppgen.inference.svi import fit
    from ppgen.models import families
    from ppgen.ops.random import forked_rng

    known = families()
    if options.family not in known:
        raise ConfigError(f"--family: expected one of {', '.join(known)}; got {options.family!r}")
    family = known[options.family]
    _require_room(Path(options.out))
    data = _load(options, binary=family.view == "binary")
    with forked_rng(options.seed):
        model = family.build(data.event_shape, data.values, len(data.train))
    given = {
        name: getattr(options, name)
        for name in (
            "epochs",
            "max_seconds",
            "batch_size",
            "learning_rate",
            "patience",
            "clip_norm",
            "checkpoint",
        )
        if getattr(options, name) is not None
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)  # the result, shown below, has them
        result = fit(
            model,
            data.train,
            validation=data.validation,
            device=options.device,
            seed=options.seed,
            progress=not options.quiet and sys.stderr.isatty(),
            **{**family.fit_options, **given},
        )
    save_model(model, options.out)
    _say(f"{family.title}: {result}\nsaved to {options.out}")
    return _INTERRUPTED if result.stopped == "interrupted" else 0


def _sample(options: argparse.Namespace) -> int:
    from ppgen.inference.checkpoint import load_model

    path = Path(options.out)
    if path.suffix not in (".npy", ".png"):
        raise ConfigError(f"--out: expected a name that ends in .npy or .png, got {options.out!r}")
    model = load_model(options.model)
    _require_unconditional(model, "ppgen sample")
    # A fresh process starts torch's generator at the same place each time.
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    draws = model.sample(options.num, seed=seed)
    if path.suffix == ".npy":
        import numpy as np

        np.save(path, draws.numpy(), allow_pickle=False)
    else:
        from ppgen.plots.canvas import to_png
        from ppgen.plots.images import image_grid, is_image

        if not is_image(model.event_shape):
            raise ConfigError(
                f"--out: a .png shows images, and draws of this model have shape "
                f"{tuple(model.event_shape)}; write a .npy"
            )
        path.write_bytes(to_png(image_grid(draws)))
    _say(f"{options.num} samples of {type(model).__name__} in {path} (seed {seed})")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from ppgen import metrics
    from ppgen.inference.checkpoint import load_model

    model = load_model(options.model)
    data = _load(options, binary=model.support.kind == "binary")
    found: dict[str, Any] = {
        "model": type(model).__name__,
        "data": data.name,
        "split": "test",
        "num": len(data.test),
        "values": str(data.values),
    }
    for name, metric in (("nll_nats", metrics.nll), ("bits_per_dim", metrics.bits_per_dim)):
        number = metric(model, data.test, seed=options.seed)
        found[name] = {
            "value": float(number.value),
            "std_error": float(number.std_error),
            "kind": str(number.kind),
        }
    _say(json.dumps(found, indent=2))
    return 0


def _discover(options: argparse.Namespace) -> int:
    from ppgen.report.discovery import discover
    from ppgen.report.discovery_arguments import arguments_of

    result = discover(
        options.table,
        out=options.out,
        reference=options.reference,
        device=options.device,
        seed=options.seed,
        progress=not options.quiet,
        **arguments_of(options),
    )
    _say(str(result))
    if result.interrupted:
        _error("interrupted; the report holds what was done")
        return _INTERRUPTED
    return 0


# -- pieces -------------------------------------------------------------------------------


def _load(options: argparse.Namespace, *, binary: bool) -> DataSet:
    """The data set, in its binary view where a model of binary values meets levels; says so."""
    from ppgen.datasets import load

    data = load(options.data, **_load_options(options))
    if binary and data.values.kind == "grid":
        _error(f"{data.name}: binarised at 0.5, as the model is for binary data")
        return data.binarised()
    return data


def _require_unconditional(model: GenerativeModel, command: str) -> None:
    if model.context_dim > 0:
        raise ConfigError(
            f"{command}: this {type(model).__name__} is conditional; draw from it in Python, "
            "ppgen.load(...).sample(num, context)"
        )


def _require_room(out: Path) -> None:
    """Refuse, before any training, a place that a model would have to push something else out of."""
    model = (out / "manifest.json").is_file()
    if out.is_file() or (out.is_dir() and not model and any(out.iterdir())):
        raise ConfigError(
            f"--out: {out} exists and is no saved model, which would take its place; choose a new directory"
        )


def _say_warnings_in_a_line(prefix: str) -> None:
    """Show what ppgen warns of as one line without the source code; other warnings as ever."""
    others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, PpgenWarning):
            _error(f"{prefix}: warning: {' '.join(str(message).split())}")
        else:
            others(message, category, filename, lineno, file, line)

    warnings.showwarning = show


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _error(text: str) -> None:
    sys.stderr.write(text + "\n")
