"""The command line. Every command takes ``--json``; what the user can mend exits with code 2 and one line."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pynas.console import choices_of, describe_answer, describe_training, print_json, print_winners
from pynas.errors import JobFailed, PynasError, SearchStopped
from pynas.ranks.launch import Launch, detect
from pynas.ranks.requeue import in_slurm_job

app = typer.Typer(
    name="pynas",
    help="Neural architecture search, joint with recipes (NARS) or in a supernet (FP-NAS), with a compiled core.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output and nothing else there.")]
StudyPath = Annotated[Path, typer.Argument(metavar="STUDY", help="A study's directory.")]
BudgetOption = Annotated[
    list[str] | None,
    typer.Option("--budget", "-b", metavar="COST=LOW:HIGH", help="For instance flops=400M:550M; may be repeated."),
]


@app.command()
def search(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="What to search; see docs/studies.md.")],
    directory: Annotated[
        Path | None, typer.Option("--dir", help="The study's directory; by default the file's name without .yaml.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(metavar="KIND", help="local, slurm or mpi, whatever the file says.")
    ] = None,
    json_: Json = False,
) -> None:
    """Run a search, or go on with one, by the method that the study names: nars or fpnas."""
    from pynas.search.config import read_config, search_of, with_executor
    from pynas.train.signals import Stopped
    from pynas.watch import Watch

    config = with_executor(read_config(study), executor)
    path = directory or study.with_suffix("")
    launch = detect(os.environ)
    if path == study:
        raise PynasError(f"{study}: name the study's directory with --dir, or call the file STUDY.yaml")
    try:
        with Watch() as watch:
            results = search_of(config)(config, path, listener=watch)
    except (KeyboardInterrupt, Stopped) as stopped:
        code = 128 + getattr(stopped, "signal", signal.SIGINT)
        if launch is not None and launch.rank > 0:
            raise typer.Exit(code) from None
        again = f"pynas search {study}" + (f" --dir {directory}" if directory else "")
        again += f" --executor {executor}" if executor else ""
        again += ", under srun or mpirun as before" if config.executor.kind == "mpi" else ""
        print(f"\nstopped; everything finished so far is kept in {path}. Go on with: {again}", file=sys.stderr)
        raise typer.Exit(code) from None
    if results is None:  # a rank that has served
        return
    page = _write_report(path)
    if json_:
        print_json(results | {"directory": str(path), "report": str(page) if page else None})
        return
    print_winners(results)
    print(f"\nwinners as tables: {path / 'winners'}/\nreport: {page or 'needs pip install pynas-nars[report]'}")
    if config.method == "nars":
        print(f"other budgets: pynas evolve {path} --budget flops=LOW:HIGH")
    else:
        print(f"networks near the winners: pynas sample {path} BUDGET --top 10")


@app.command()
def train(
    networks: Annotated[
        list[str] | None,
        typer.Argument(metavar="NETWORK...", help="Zoo names, winners' files, weights, package.module:function."),
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="One more network, as in NETWORK; may be repeated.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A shipped recipe's name, or the path of one.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the recipe; may be repeated.")
    ] = None,
    data_: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME or KEY=VALUE", help="Which images; may be repeated: see docs/data.md."),
    ] = None,
    directory: Annotated[Path | None, typer.Option("--dir", help="Where to train; runs/NETWORK by default.")] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="Input size in pixels.")] = None,
    padding: Annotated[str | None, typer.Option(help="same: every padding is k // 2.")] = None,
    small_input: Annotated[bool, typer.Option("--small-input", help="The variant for images of about 32.")] = False,
    teacher: Annotated[
        str | None, typer.Option(help="Learn from this: a run's directory, weights, or a model.")
    ] = None,
    distill: Annotated[
        bool, typer.Option("--distill", help="Two steps: the teacher (or the largest) on labels, then all from it.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Submit to Slurm: train on that many nodes; see docs/clusters.md.")
    ] = None,
    tasks_per_node: Annotated[int | None, typer.Option(min=1, help="Ranks on each node, 1 by default.")] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A parameter of submitit's AutoExecutor, as slurm_partition=gpu."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Submit and return, rather than wait for the job.")] = False,
    heartbeat: Annotated[
        float, typer.Option(min=0, help="Seconds without progress after which ranks that hang are ended; 0: never.")
    ] = 60.0,
    json_: Json = False,
) -> None:
    """Train networks, or go on where their training was; the same command again resumes.

    Under srun, mpirun or torchrun the ranks train together.
    """
    from pynas.cluster.submission import resubmitted
    from pynas.cluster.training import Training
    from pynas.data.config import DataConfig
    from pynas.sections import checked, parse_settings
    from pynas.train.models import model_for_data
    from pynas.train.signals import Stopped
    from pynas.train.two_step import read_teacher, run_names
    from pynas.watch import Watch

    names = [*(networks or []), *(model or [])]
    if not names:
        raise PynasError("train: name at least one network, such as fbnetv3_a, or --model package.module:function")
    keys = [text if "=" in text else f"name={text}" for text in data_ or []]
    images = checked(DataConfig, parse_settings(keys, "--data"), "--data").located(Path())
    shape: dict[str, Any] = {"resolution": resolution, "padding": padding, "small_input": small_input}
    specs = [model_for_data(name, images, **shape) for name in names]
    taught_by = None if teacher is None else read_teacher(teacher, images, **shape)
    several = len(specs) > 1 or distill
    path = directory or (Path("runs") if several else Path("runs") / run_names(specs)[0])
    training = Training(
        specs, images, path, recipe, parse_settings(set_ or [], "--set"), seed, taught_by, two_step=distill
    )
    launch = detect(os.environ)
    as_job = launch is None and (nodes or tasks_per_node)
    if not as_job and (slurm or detach):
        raise PynasError("train: --slurm and --detach are for a training that submits itself: add --nodes")
    try:
        with Watch(quiet=launch is not None and launch.rank > 0) as watch:
            if launch is not None:
                results = training.on_ranks(launch, watch, heartbeat=heartbeat)
            elif as_job:
                results = training.as_job(
                    resubmitted(sys.argv[1:]),
                    watch.say,
                    nodes=nodes or 1,
                    tasks_per_node=tasks_per_node or 1,
                    parameters=parse_settings(slurm or [], "--slurm"),
                    wait=not detach,
                )
            else:
                results = training.here(watch)
    except Stopped as stopped:
        if launch is None or launch.rank == 0:
            print(f"\npynas: {stopped}: give the same command again", file=sys.stderr)
        raise typer.Exit(128 + stopped.signal) from None
    if results is None:  # another rank's, or of a job that nobody waits for
        return
    for name, result in results.items():
        result["directory"] = str(Path(result["weights"]).parent)
        result["curve_plot"] = _draw_curve(Path(result["directory"]))
        if not json_:
            print(f"{name}: {describe_training(result)}\n  {result['weights']}")
    if json_:
        print_json(results)


@app.command()
def evolve(
    study: StudyPath,
    budget: BudgetOption = None,
    mode: Annotated[str | None, typer.Option(help="default, or paper for Algorithm 1 to the letter.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    train: Annotated[
        int, typer.Option(min=0, help="Train so many of the best before answering; 0: answer untrained, at once.")
    ] = 3,
    top: Annotated[int, typer.Option(min=1, help="How many candidates to print.")] = 1,
    executor: Annotated[
        str | None, typer.Option(metavar="KIND", help="local or slurm, whatever the study says.")
    ] = None,
    json_: Json = False,
) -> None:
    """Answer for a new budget from a study's predictor; the best few are trained before, as the search's were."""
    from pynas.nars.answers import evolve_study
    from pynas.search.results import plain
    from pynas.space.budget import Budget, format_amount
    from pynas.watch import Watch

    bounds = Budget.parse(*(budget or []))
    try:
        with Watch() as watch:
            shared: dict[str, Any] = {"mode": mode, "seed": seed, "train": train, "executor": executor}
            found = evolve_study(study, bounds, listener=watch, **shared)
    except KeyboardInterrupt:
        print("\nstopped; give the same command again to go on", file=sys.stderr)
        raise typer.Exit(128 + signal.SIGINT) from None
    answers = found.answers[:top]
    if json_:
        value = {"budget": bounds.to_dict(), "answers": answers, "evaluations": found.evolution.evaluations}
        print_json(plain(value | {"history": found.evolution.history}))
        return
    for answer in answers:
        architecture, recipe = found.decode(answer)
        costs = answer["costs"]
        print(f"{describe_answer(answer)}; {format_amount(costs['flops'])} FLOPs, ", end="")
        print(f"{format_amount(costs['params'])} params ({bounds})\n{architecture}\n{recipe}\n")


@app.command()
def sample(
    study: StudyPath,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The budget whose search is meant.")] = None,
    budget: BudgetOption = None,
    top: Annotated[int, typer.Option(min=1, help="How many to print.")] = 1,
    json_: Json = False,
) -> None:
    """Print the most probable architectures of a finished FP-NAS search, from the mode on."""
    from pynas.fpnas.answers import most_probable
    from pynas.search.results import plain
    from pynas.space.budget import Budget, format_amount

    space, genomes, logs = most_probable(study, name, budget=Budget.parse(*(budget or [])), top=top)
    costs = space.costs(genomes)
    answers = []
    for i, genome in enumerate(genomes):
        architecture, _ = space.decode(genome)
        cost = {key: int(values[i]) for key, values in costs.items()}
        answers.append({"log_probability": float(logs[i]), "genome": genome, "costs": cost})
        answers[-1] |= {"architecture": architecture}
        if not json_:
            print(f"log-probability {logs[i]:.2f}", end="; ")
            print(f"{format_amount(cost['flops'])} FLOPs, {format_amount(cost['params'])} params")
            print(f"genome {','.join(map(str, genome))}\n{architecture}\n")
    if json_:
        print_json(plain({"answers": answers}))


@app.command()
def space(
    name: Annotated[str, typer.Argument(help="A shipped table's name or the path of one.")], json_: Json = False
) -> None:
    """Describe a search space: its size, its variables, the range of its costs."""
    from pynas.space.budget import format_amount
    from pynas.space.space import load_space

    loaded = load_space(name)
    costs = loaded.cost_range()
    features = loaded.architecture_features + loaded.recipe_features
    if json_:
        sizes = {key: str(value) for key, value in loaded.size.items()}
        print_json(
            sizes | {"name": loaded.name, "variables": len(loaded.variables), "features": features, "costs": costs}
        )
        return
    for key, value in loaded.size.items():
        print(f"{key:<14} {value:,}".replace(",", " "))
    print(f"{'variables':<14} {len(loaded.variables)}\n{'features':<14} {features}")
    for cost, (low, high) in costs.items():
        print(f"{cost:<14} {format_amount(low)} to {format_amount(high)}")
    for variable in loaded.variables:
        print(f"  {variable.name:<20} {choices_of(variable)}")


@app.command()
def count(
    name: Annotated[str, typer.Argument(help="A network's name (fbnetv3_a), or the path of a table without choices.")],
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Input size in pixels instead of the network's.")
    ] = None,
    genome: Annotated[
        str | None, typer.Option(help="Choice indices, comma-separated, for a table with choices.")
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Number of classes instead of the network's.")] = None,
    input_channels: Annotated[int | None, typer.Option(min=1, help="Channels of the input images.")] = None,
    padding: Annotated[str | None, typer.Option(help="same: pad k // 2 everywhere, whatever the rows say.")] = None,
    small_input: Annotated[
        bool, typer.Option("--small-input", help="For small images: the second stride-two block at stride one.")
    ] = False,
    json_: Json = False,
) -> None:
    """Count a network's FLOPs and parameters, block by block."""
    from pynas.space.space import load_architecture

    architecture = load_architecture(
        name,
        genome=genome,
        resolution=resolution,
        classes=classes,
        input_channels=input_channels,
        padding=padding,
        small_input=small_input,
    )
    cost = architecture.cost()
    if json_:
        blocks = [vars(block) for block in architecture.blocks()]
        print_json(cost | {"name": name, "resolution": architecture.resolution, "blocks": blocks})
        return
    columns = ["row", "kind", "kernel", "stride", "in_channels", "mid_channels", "channels", "splits", "se_channels"]
    columns += ["out_size", "flops", "params"]
    lines = [columns, *([str(getattr(block, column)) for column in columns] for block in architecture.blocks())]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print()
    for key, value in cost.items():
        print(f"{key:<11} {value:,}".replace(",", " "))


@app.command()
def latency(
    name: Annotated[str, typer.Argument(metavar="SPACE", help="A shipped table's name or the path of one.")],
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="Write the model there, for searches.")],
    networks: Annotated[int, typer.Option(help="How many random networks to measure, at least 10.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Of torch, on a CPU.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each network; their lower quartile counts.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Which networks.")] = 0,
    json_: Json = False,
) -> None:
    """Measure random networks of a space on this machine and fit a model that predicts latency, for searches."""
    from pynas.nets.latency import measure_space
    from pynas.space.space import load_space
    from pynas.watch import Watch

    if not out.parent.is_dir():
        raise PynasError(f"{out}: cannot be written: there is no folder {out.parent}")
    loaded = load_space(name)
    shared: dict[str, Any] = {"batch_size": batch, "device": device, "threads": threads, "rounds": rounds, "seed": seed}
    with Watch() as watch:
        watch.begin("measure", 1)
        model = measure_space(loaded, networks, **shared, advance=partial(watch.advance, "measure"))
        watch.end("measure")
    model.save(out)
    low, high = float(model.measured.min()), float(model.measured.max())
    if json_:
        told = {"file": str(out), "space": loaded.name, "networks": networks, "measured": [low, high]}
        print_json(told | {"held_out": dict(model.held_out), **model.setting})
        return
    print(f"{model.setting['device']}, {threads} thread{'s' * (threads > 1)}, batch of {batch}")
    print(f"{networks} networks of {loaded.name}: {low:.4g} to {high:.4g} ms")
    print(f"held out: median error {100 * model.held_out['median_error']:.1f}%, ", end="")
    print(f"Kendall's tau {model.held_out['kendall_tau']:.2f} on {model.held_out['networks']} networks")
    print(f"written to {out}")


@app.command()
def scale(
    name: Annotated[str, typer.Argument(help="A network's name (fbnetv3_e), or the path of a table without choices.")],
    flops: Annotated[str, typer.Option(help="How much the scaled network should cost, for instance 1200M.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="Write the network there, for count, train and studies.")
    ] = None,
    alpha: Annotated[float, typer.Option(min=1, help="Growth of the depth with phi.")] = 1.2,
    beta: Annotated[float, typer.Option(min=1, help="Growth of the width with phi.")] = 1.1,
    gamma: Annotated[float, typer.Option(min=1, help="Growth of the resolution with phi.")] = 1.15,
    genome: Annotated[
        str | None, typer.Option(help="Choice indices, comma-separated, for a table with choices.")
    ] = None,
    json_: Json = False,
) -> None:
    """Scale a network in depth, width and resolution to a number of FLOPs (compound scaling)."""
    from pynas.files import write_whole
    from pynas.nets.scale import CLOSE, scale_to
    from pynas.space.budget import format_amount, parse_amount
    from pynas.space.space import load_design
    from pynas.space.table import format_network

    architecture, recipe = load_design(name, genome)
    scaled = scale_to(architecture, recipe, flops=parse_amount(flops), alpha=alpha, beta=beta, gamma=gamma)
    if out is not None:
        notes = {"scaled_from": name, "phi": scaled.phi, "target": scaled.target, **scaled.architecture.cost()}
        try:
            write_whole(out, format_network(scaled.architecture, scaled.recipe, name=out.stem, notes=notes))
        except OSError as error:
            raise PynasError(f"{out}: cannot be written: {error.strerror}") from None
    if json_:
        print_json(scaled.to_dict() | {"name": name, "file": str(out) if out else None})
        return
    print(f"{format_amount(scaled.flops)} FLOPs, {100 * scaled.error:+.1f}% from the target of {flops}")
    print(f"phi {scaled.phi:.3f}: depth x {scaled.depth:.3f}, width x {scaled.width:.3f}, ", end="")
    print(f"resolution x {scaled.resolution:.3f}\n{scaled.architecture}")
    if scaled.recipe:
        print(scaled.recipe)
    if abs(scaled.error) > CLOSE:
        print("no network of this scaling is nearer: blocks, channels and pixels are whole numbers")
    if out:
        print(f"written to {out}")


@app.command()
def export(
    name: Annotated[str, typer.Argument(metavar="NETWORK", help="A weights file, a zoo name or any other model.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: *.onnx, or *.pt2 for torch.export.")],
    format_: Annotated[str | None, typer.Option("--format", help="onnx or torch; by default the suffix tells.")] = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Input size in pixels instead of the network's.")
    ] = None,
    genome: Annotated[str | None, typer.Option(help="Choice indices, for a table with choices.")] = None,
    padding: Annotated[str | None, typer.Option(help="same: every padding is k // 2.")] = None,
    json_: Json = False,
) -> None:
    """Export a network to ONNX or torch.export; a weights file brings its weights, a name initial ones."""
    from pynas.nets.export import export_model
    from pynas.nets.load import load_model

    network = load_model(name, genome=genome, resolution=resolution, padding=padding)
    report = export_model(network, out, format=format_, resolution=resolution)
    if json_:
        print_json(report)
    else:
        shape = " x ".join(str(size or "batch") for size in report["input"])
        print(f"{out}: {report['format']}, input {shape}, {report['bytes'] / 1e6:.1f} MB")


@app.command()
def report(study: StudyPath, json_: Json = False) -> None:
    """Write a study's HTML report anew and print its winners; works while the search runs."""
    from pynas.search.opening import open_study

    directory, _ = open_study(study)
    page = _write_report(study)
    if page is None:
        raise PynasError("the report needs plotly and jinja2: pip install 'pynas-nars[report]'")
    results = _results(directory.path)
    if json_:
        print_json(results | {"report": str(page)})
    else:
        print_winners(results)
        print(f"\nreport: {page}")


@app.command()
def status(
    study: StudyPath,
    running: Annotated[bool, typer.Option("--running", help="Only those that run.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that failed.")] = False,
    json_: Json = False,
) -> None:
    """Tell where a study stands: its candidates, their jobs and logs, and who drives it; works while it runs."""
    import shutil

    from pynas.search.status import WIDTH, as_lines, read_status

    found = read_status(study)
    if json_:
        print_json(found.to_dict())
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    only = {"running": running, "failed": failed}
    print("\n".join(as_lines(found, width, [state for state, wanted in only.items() if wanted])))


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="fashion-mnist, digits, folder or webdataset.")],
    path: Annotated[str | None, typer.Option(help="Of the tree or the shards; patterns in quotes.")] = None,
    validation_path: Annotated[str | None, typer.Option(help="Of the validation shards, where PATH has none.")] = None,
    test_path: Annotated[str | None, typer.Option(help="Of the test shards, where PATH has none.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Decode every image and list the bad ones.")] = False,
    json_: Json = False,
) -> None:
    """Tell what images there are; the named data sets are found or fetched, and verified."""
    from pynas.data.describe import as_lines, describe

    found = describe(name, path, validation_path=validation_path, test_path=test_path, check=check)
    if json_:
        print_json(found)
    else:
        print("\n".join(as_lines(found)))


def main() -> None:
    """Run the command line; exits with 2 and one line for what the user can mend, with 1 where a search stopped."""
    if sys.argv[1:2] == ["train"] and in_slurm_job():
        # They tell that the job's time is nearly up. Until there is a training to heed them they wait, and do not kill.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
    if sys.argv[1:2] in (["train"], ["search"]) and (launch := detect(os.environ)) is not None:
        from pynas.ranks.supervisor import supervise

        sys.exit(supervise(partial(_as_rank, launch), launch))
    try:
        app()
    except PynasError as error:
        print(f"pynas: {error}", file=sys.stderr)
        sys.exit(2)
    except SearchStopped as error:
        print(f"pynas: the search stopped: {error}", file=sys.stderr)
        sys.exit(1)
    except JobFailed as error:
        print(f"pynas: {error}", file=sys.stderr)
        sys.exit(1)


def _as_rank(launch: Launch) -> int:
    """The command line in one of several ranks, of which only one tells of what the user can mend."""
    from pynas.ranks.beat import SET_UP
    from pynas.ranks.placement import place
    from pynas.ranks.supervisor import beat

    # Before anything else is imported: MPICH sends buffers that it has not filled, and with what large imports leave
    # in the heap they do not compress to what Slurm's pmi2 can take.
    place(launch)
    beat().allow(SET_UP)  # torch is imported and images are listed before a training sets a limit of its own
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own, which it would print in every rank
            raise PynasError(error.format_message()) from None
        raise
    return code if isinstance(code, int) else 0


def _results(path: Path) -> dict[str, Any]:
    from pynas.search.results import read_results
    from pynas.study.directory import StudyDirectory

    return read_results(StudyDirectory.open(path).results)


def _write_report(path: Path) -> Path | None:
    """Write the report where its libraries are installed."""
    from pynas.search.opening import open_study
    from pynas.study.study import Study

    try:
        from pynas.report.html import write_report
    except ModuleNotFoundError:
        return None
    directory, config = open_study(path)
    trials = Study.open(directory, config.JOURNAL, read_only=True).trials()
    write_report(directory.report, path.resolve().name, trials, _results(path))
    return directory.report


def _draw_curve(run: Path) -> str | None:
    """Draw a training's curve where matplotlib is installed."""
    try:
        from pynas.report.curve import draw_curve
    except ModuleNotFoundError:
        return None
    from pynas.train.directory import RunDirectory
    from pynas.train.log import read_log

    directory = RunDirectory(run)
    draw_curve(read_log(directory.log), directory.curve)
    return str(directory.curve)


if __name__ == "__main__":
    main()
