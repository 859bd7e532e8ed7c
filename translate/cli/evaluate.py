"""`translate evaluate`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from translate.cli.console import progress, say
from translate.cli.convert import Precision
from translate.errors import PartialFailure, UserError

if TYPE_CHECKING:
    from translate.data.spec import Split as SplitName
    from translate.evaluation.engine import Options
    from translate.evaluation.subjects import Subject
    from translate.metrics.scores import Evaluation
    from translate.run import Weights


class Split(str, Enum):
    train = "train"
    validation = "validation"
    test = "test"


class Resize(str, Enum):
    tensorflow = "tensorflow"
    clean = "clean"
    pytorch = "pytorch"


def _list(asked: bool) -> None:
    if asked:
        from translate.metrics.scores import MEASURES

        for name, measure in MEASURES.items():
            print(f"{name:<16} {measure.title}: {measure.about}; {measure.better} is better")
        raise typer.Exit


def evaluate(
    predicted: Annotated[
        Path, typer.Argument(metavar="PREDICTED", help="A folder of outputs, a run (or its weights), a token file.")
    ],
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TARGET]",
            help="The folder they are measured against; a run knows its own data. For a run that enlarges: pictures of "
            "the high resolution.",
        ),
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="What to measure: see --list.", show_default="by what there is"),
    ] = None,
    show_list: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the measures and exit.")
    ] = False,
    split: Annotated[
        Split | None, typer.Option(help="Of a run's data.", show_default="test, else validation, else train")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="data.KEY=VALUE", help="Where a run's data are now; repeatable."),
    ] = None,
    direction: Annotated[str | None, typer.Option(help="AtoB or BtoA.", show_default="all that the run has")] = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Also measure what learnt nothing: the input (or bicubic), the mean image."),
    ] = False,
    images: Annotated[
        int | None,
        typer.Option(
            "--images", "-n", min=1, help="At most so many of each; samples to make.", show_default="all; 10000"
        ),
    ] = None,
    matched: Annotated[bool, typer.Option("--matched", help="Leave out names without a partner.")] = False,
    luma: Annotated[
        bool | None,
        typer.Option("--luma/--rgb", help="Pixel measures on Y of YCbCr.", show_default="--luma where a run enlarges"),
    ] = None,
    border: Annotated[
        int | None,
        typer.Option(min=0, help="Pixels left out at each side by pixel measures.", show_default="0; a run's scale"),
    ] = None,
    features: Annotated[
        str, typer.Option(metavar="NAME", help="Of set measures: inception, or your package.module:callable.")
    ] = "inception",
    resize: Annotated[Resize, typer.Option(help="How images become Inception's 299x299.")] = Resize.tensorflow,
    crop: Annotated[int | None, typer.Option(min=1, help="Set measures see the central square of this side.")] = None,
    kept: Annotated[int, typer.Option(min=2, help="Images compared one by one for KID, precision ...")] = 10_000,
    segmenter: Annotated[
        str | None, typer.Option(metavar="MODULE:CALLABLE", help="Finds label maps in pictures (FCN score).")
    ] = None,
    classes: Annotated[int | None, typer.Option(min=2, help="TARGET holds label maps of so many classes.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of a generative run's samples.")] = 0,
    truncation: Annotated[float | None, typer.Option(min=0, help="Of a generative run's latents.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Number format of a run's network.")] = Precision.auto,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For evaluation.json and pictures.", show_default="RUN/evaluation/SPLIT"),
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also a picture of ten evenly spaced results.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but numbers and errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evaluation as JSON.")] = False,
) -> None:
    """Measure outputs against targets: PSNR, SSIM, LPIPS of pairs, FID, KID, precision of sets; each number with its
    protocol.

    A run is measured on its own test split, as 'translate convert' would write it; 'translate report' shows what this
    command has found.
    """
    from translate.metrics.scores import MEASURES

    names = None if measures is None else [name.strip() for name in measures.split(",") if name.strip()]
    for name in names or []:
        if name not in MEASURES:
            raise UserError(f"--measures: {name!r} is unknown; expected some of {', '.join(MEASURES)}")
    if names == []:
        raise UserError("--measures: expected names, such as psnr,lpips-alex; --list shows all")

    from translate.data.tokens import is_token_file
    from translate.devices import resolve_device
    from translate.distributed import processes
    from translate.evaluation import subjects
    from translate.evaluation.engine import Options
    from translate.evaluation.engine import evaluate as measure
    from translate.metrics.protocol import ProtocolSettings
    from translate.metrics.scores import CODE_NAMES
    from translate.metrics.segmentation import load_segmenter
    from translate.run import load_weights

    if is_token_file(predicted):
        for name in names or []:
            if name not in CODE_NAMES:
                raise UserError(f"{name}: of a token file only {' and '.join(CODE_NAMES)} are measured")
        _finish([subjects.tokens(predicted)], [out], as_json=as_json, quiet=quiet)
        return
    weights: Weights | None = None
    is_run = predicted.suffix == ".safetensors" or (predicted / "config.yaml").is_file()
    if is_run:
        weights = load_weights(predicted)
        if classes is not None:
            raise UserError("--classes is for a folder of label maps; a run knows what its sides are")
    elif target is None:
        raise UserError(
            f"{predicted}: is no run, so it needs the folder of its targets: translate evaluate PREDICTED TARGET"
        )
    elif baselines or split or direction or overrides:
        raise UserError("--baselines, --split, --direction and --set belong to runs; these are two folders")

    chosen: SplitName | None = split.value if split else None
    common: dict[str, Any] = {"overrides": overrides or [], "split": chosen, "images": images}
    where: dict[str, Any] = {"device": device, "precision": precision.value}
    of_noise: dict[str, Any] = {"seed": seed, "truncation": truncation}
    torch_device = resolve_device(device)
    with processes(torch_device) as group:
        quiet = quiet or not group.leads
        generative = weights is not None and subjects.is_generative(weights.config)
        of_points = weights is not None and weights.config.data.kind == "toy"
        if weights is not None and (names == ["parzen"] or of_points):
            if not generative:
                raise UserError("parzen: needs a run that makes samples of noise")
            if names not in (None, ["parzen"]):
                raise UserError(f"{names[0]}: a run that makes points is measured by parzen alone")
            if target is not None:
                raise UserError(f"{target}: parzen compares with a run's own data; leave TARGET out, --set data.root")
            common["samples"] = common.pop("images")
            point = subjects.points(weights, **common, **of_noise, **where)
            if group.leads:
                place = _folder(out, weights, point.reference.split()[0], "")
                _finish([point], [place], as_json=as_json, quiet=quiet)
            return
        if weights is None:
            assert target is not None
            subject = subjects.folders(
                predicted,
                target,
                names,
                matched=matched,
                images=images,
                classes=classes,
                segmented=segmenter is not None,
            )
        elif generative:
            subject = subjects.generative(weights, **common, **where, **of_noise, target=target)
        elif weights.config.data.kind == "super-resolution":
            subject = subjects.enlarging(weights, names, **common, **where, target=target, direction=direction)
        else:
            subject = subjects.translating(
                weights, names, **common, **where, target=target, matched=matched, direction=direction
            )
        notes: list[str] = list(subject.notes)
        if names is None:
            names, left_out = subjects.default_measures(subject)
            notes += left_out
        options = Options(
            measures=tuple(names),
            protocol=ProtocolSettings(
                channels="luma" if (subject.scale > 1 if luma is None else luma) else "rgb",
                border=(subject.scale if subject.scale > 1 else 0) if border is None else border,
                features=features,
                resize=resize.value,
                crop=crop,
                kept=kept,
            ),
            device=torch_device,
            processes=group,
            segmenter=load_segmenter(segmenter, torch_device) if segmenter else None,
        )
        whole = {"": subject}
        if baselines:
            assert weights is not None
            others, senseless = subjects.baselines(weights, subject, names, overrides or [])
            whole |= others
            notes += senseless
        if grid and not subjects.grid_matches(subject):
            raise UserError(
                "--grid shows pairs, and these outputs have neither inputs nor targets; 'translate sample' makes a "
                "grid of samples"
            )
        found_all, folders, failed = [], [], []
        for name, each in whole.items():
            # A baseline is measured where it can be; what the run itself cannot have is a mistake.
            how = replace(options, measures=subjects.served(names, each)) if name else options
            with progress(f"measuring {name or each.title}", total=_work(each, how), quiet=quiet or as_json) as advance:
                evaluation, bad = measure(
                    each.matches, how, subject=each.title, reference=each.reference, progress=advance
                )
            evaluation = evaluation.model_copy(update={"notes": [*notes, *evaluation.notes]})
            folder = _folder(out, weights, each.split or "folder", name) if group.leads else None
            if folder and not name:
                evaluation = subjects.show_best_and_worst(evaluation, each, folder)
            found_all.append(evaluation)
            folders.append(folder)
            failed += bad
        failed = list(dict.fromkeys(failed))  # baselines fail where the run does
        if group.leads:
            _finish(found_all, folders, as_json=as_json, quiet=quiet)
            for line in failed:
                say(f"not measured: {line}")
            if grid:
                subjects.write_grid(grid, subject)
    if failed:
        images_are = "1 image" if len(failed) == 1 else f"{len(failed)} images"
        raise PartialFailure(f"{images_are} could not be measured; the numbers are those of the others")


def _work(subject: Subject, options: Options) -> int:
    """Pictures to be read, at most: the features of references may be known already."""
    from translate.evaluation.engine import run_count
    from translate.metrics.scores import SET_NAMES

    sets = any(name in SET_NAMES for name in options.measures)
    total = 0
    for match in subject.matches:
        references = len(match.target_indices if match.target_indices is not None else match.target.names)
        total += run_count(match) + (min(references, run_count(match)) if match.pairs else references) * (
            sets and match.sets
        )
    return total // options.processes.world


def _folder(out: Path | None, weights: Weights | None, place: str, name: str) -> Path | None:
    """Where an evaluation (of a baseline, if it has a name) is kept: --out, or below the run, in the place of its
    split; None for two folders without --out."""
    if out is not None:
        return out / name if name else out
    if weights is None or not (weights.path.parent / "config.yaml").is_file():
        return None
    stage = weights.path.stem if weights.path.stem.startswith("stage-") else ""
    return weights.path.parent / "evaluation" / "-".join(filter(None, (place, stage, name)))


def _finish(evaluations: list[Evaluation], folders: list[Path | None], *, as_json: bool, quiet: bool) -> None:
    from translate.evaluation.text import readable

    for evaluation, folder in zip(evaluations, folders, strict=True):
        if folder is not None:
            evaluation.save(folder / "evaluation.json")
    if as_json:
        texts = [evaluation.model_dump_json() for evaluation in evaluations]
        print(texts[0] if len(texts) == 1 else f"[{','.join(texts)}]")
    else:
        _tell(evaluations)
    for folder in folders:
        if folder is not None:
            say(readable(f"kept in {folder}"), quiet=quiet)


def _tell(evaluations: Sequence[Evaluation]) -> None:
    """One evaluation as a list, several (a run and its baselines) as a table; the protocols beneath."""
    from translate.cli.compare import beneath, table_lines
    from translate.metrics.scores import MEASURES, rows

    table = list(rows(evaluations))
    if any(row.clash for row in table):  # a baseline failed where the run did not, or the other way round
        for evaluation in evaluations:
            _tell([evaluation])
        return
    names = [evaluation.subject for evaluation in evaluations]
    if len(evaluations) > 1:
        lines = table_lines(evaluations, names, table)
    else:
        scores = evaluations[0].scores
        width, number = (max((len(getattr(s, a)) for s in scores), default=0) for a in ("label", "text"))
        arrows = ["↑" if MEASURES[score.measure].better == "higher" else "↓" for score in scores]
        values = [f"{s.label:<{width}} {arrow} {s.text:>{number}}" for s, arrow in zip(scores, arrows, strict=True)]
        lines = [names[0], *values, "", *beneath(evaluations, names, table)]
    for line in lines:
        print(line)
