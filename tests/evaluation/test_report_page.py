"""The page about runs: what it shows, and that nothing that a run's files hold breaks it."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import CONFIG, Page, evaluate, log_rows, make_run, picture, score, trio

from translate import config as configs
from translate.errors import UserError
from translate.evaluation.report import FRAMES, GRID_SIZE, PICTURE_SIZE, default_page, write_run_report
from translate.metrics.scores import Pictures
from translate.run import Run
from translate.training.logging import RunLog


def written(*runs: Path) -> Page:
    return Page(write_run_report(runs, default_page(runs)))


def opened(image: dict[str, str]) -> Image.Image:
    """The picture inside an <img>; its size must be the one that the tag says."""
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/webp;base64"
    found = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert found.format == "WEBP" and found.size == (int(image["width"]), int(image["height"])) and image["alt"]
    return found


# ---- one run ---------------------------------------------------------------------------------------------------------


def test_one_run_is_shown_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "0001-tiny")
    folder = evaluate(run, [score("lpips-alex", 0.1376)], notes=["a note < 1"])
    best, worst = trio(folder, "shoe 1.png", "best", 0.05), trio(folder, "shoe 2.png", "worst", 0.61)
    evaluate(run, [score("lpips-alex", 0.1376, size="128x128")], pictures=[best, worst], notes=["a note < 1"])
    path = write_run_report([run], default_page([run]))
    assert path == run / "report.html"
    page = Page(path)

    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page.source))
    expected = {
        "name": "tiny",
        "method": "pix2pix (generator unet, discriminator patch)",
        "data": "paired /data/shoes",
        "step": "50",
        "images seen": "200",
        "last.safetensors": "step 50, 200 images",
        "values in the file": "generator 10",
        "versions": "translate 0.1.0, torch 2.15.0, Python 3.11.7",
        "command": "translate train tiny",
    }
    assert expected.items() <= facts.items()
    assert re.fullmatch(r"2023-11-1[45] \d\d:\d\d", facts["started"])  # 1700000000 is 14 November, 22:13 UTC

    assert page.row("LPIPS (Alex) ↓") == ["0.1376"]
    assert "channels rgb, border 0, size 128x128" in page.text and "a note < 1" in page.text
    assert page.row("L1 ↓") == ["0.5000 best 0.3000 at step 20"]  # rows of validation at steps 20 and 40
    assert page.row("AtoB FID ↓") == ["46.00 best 46.00 at step 40"]
    charts = [values["aria-label"] for values in page.of("svg") if "aria-label" in values]
    expected_charts = ["L1", "AtoB FID", "adversarial", "gradient norm", "D(real)", "learning rate of generator"]
    assert charts == expected_charts
    assert "seed: 3" in page.text and page.of("details")

    pictures = [opened(image) for image in page.of("img")]
    assert len(pictures) == 3 + 2 * 3
    for grid, grey in zip(pictures, (10, 30, 50), strict=False):
        assert np.abs(np.asarray(grid.convert("L")).astype(int) - grey).max() <= 2  # WebP's loss
    assert all(shown.size == (256, 128) for shown in pictures[3:])  # 300x150 made to fit
    assert "shoe 1.png" in page.text and "LPIPS (Alex) 0.6100" in page.text

    assert not page.of("script")  # one run needs none
    for values in (values for _, values in page.tags):
        assert values.get("src", "data:").startswith("data:")
        assert values.get("href", "#").startswith(("#", "data:"))
    assert "url(" not in page.source and "@import" not in page.source


def test_what_training_writes_is_read(tmp_path: Path) -> None:
    """The formats are those of training's own writers, not just of these tests."""
    config = configs.load("pix2pix", ["name=real"])
    run = Run.create(tmp_path, "real", configs.dump(config, comments=["translate 9.9", "translate train pix2pix"]))
    networks = torch.nn.ModuleDict({"generator": torch.nn.Linear(3, 4)})
    run.export("best", config, networks, step=7, images=28)
    log = RunLog(run.path, step=0, rows_size=0)
    log.row(7, 28, {"generator/reconstruction": 0.25, "validation/psnr": 21.0}, {"epoch": 0.5, "stage": "main"})
    log.grid(7, {"A": torch.zeros(2, 3, 8, 8), "B": torch.ones(2, 3, 8, 8)})
    log.close()
    page = written(run.path)
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page.source))
    assert facts["name"] == "real" and facts["versions"] == "translate 9.9"
    assert facts["best.safetensors"] == "step 7, 28 images" and facts["values in the file"] == "generator 16"
    assert "started" in facts
    assert page.row("PSNR ↑") == ["21.00 dB best 21.00 dB at step 7"]
    assert "28 images, step 7" in page.text
    assert len(page.of("img")) == 1 and "remark" not in {values.get("class") for values in page.of("p")}


# ---- several runs ----------------------------------------------------------------------------------------------------


def test_runs_side_by_side(tmp_path: Path) -> None:
    one, two, three = (make_run(tmp_path / "runs" / f"000{n}-tiny") for n in (1, 2, 3))
    evaluate(one, [score("psnr", 20.0), score("fid", 40.0, resize="tensorflow"), score("l1", 0.25)])
    evaluate(two, [score("psnr", 21.5), score("fid", 39.0, resize="clean"), score("l1", 0.25)])
    path = write_run_report([one, two, three, one / "."], default_page([one, two, three]))
    assert path == tmp_path / "runs" / "report.html"
    page = Page(path)
    assert page.row("PSNR ↑") == ["20.00 dB", "21.50 dB", "–"]
    assert re.findall(r'class="best"[^>]*>([^<]+)<', page.source) == ["21.50 dB", "0.2500", "0.2500"]
    assert page.row("FID ↓") == ["not comparable: resize tensorflow / clean"]
    assert "40.00" not in page.text and "39.00" not in page.text
    assert (
        f"translate evaluate {three.resolve()}" in page.text and f"translate evaluate {one.resolve()}" not in page.text
    )
    assert page.row("name") == ["tiny"] * 3 and page.row("command") == ["translate train tiny"] * 3
    assert {values["style"] for values in page.of("path") if "style" in values} == {
        f"stroke: var(--run{place})" for place in range(3)
    }
    assert len(page.of("script")) == 1


def test_the_lower_is_the_best_where_lower_is_better(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name) for name in ("a", "b"))
    evaluate(one, [score("lpips-vgg", 0.2), score("kid", math.nan), score("ssim", 0.9)])
    evaluate(two, [score("lpips-vgg", 0.3), score("kid", 0.01)])
    page = written(one, two)
    assert re.findall(r'class="best"[^>]*>([^<]+)<', page.source) == ["0.2000"]  # alone, one is not the best
    assert page.row("KID ↓") == ["no number", "0.01000"] and page.row("SSIM ↑") == ["0.9000", "–"]


def test_different_references_have_no_best_but_by_their_digest(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name) for name in ("a", "b"))
    evaluate(one, [score("psnr", 20.0), score("ssim", 0.5, target="1f2e"), score("ms-ssim", 0.1, target="1f2e")])
    evaluate(
        two,
        [score("psnr", 21.0), score("ssim", 0.6, target="1f2e"), score("ms-ssim", 0.2, target="other")],
        reference="moved",
    )
    page = written(one, two)
    assert page.row("PSNR ↑") == ["20.00 dB", "21.00 dB"] and "references differ" in page.text
    assert re.findall(r'class="best"[^>]*>([^<]+)<', page.source) == ["0.6000"]
    assert page.row("MS-SSIM ↑") == ["not comparable: target 1f2e / other"]


def test_evaluations_of_one_run_stand_together_where_they_compare(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name, value, size in (("test", 20.0, 64), ("test-input", 12.0, 64), ("test-small", 23.0, 32)):
        evaluate(run, [score("psnr", value, size=size)], name=name)
    evaluate(run, [score("psnr", 22.0, size=64)], name="validation", reference="validation split")
    page = written(run)
    lines = [row[1:] for table in page.tables for row in table if row[0].startswith("PSNR")]
    assert lines == [["20.00 dB", "12.00 dB"], ["23.00 dB"], ["22.00 dB"]]
    assert re.findall(r"<h3>([^<]+)</h3>", page.source)[:3] == ["test, test-input", "test-small", "validation"]
    assert re.findall(r'class="best"[^>]*>([^<]+)<', page.source) == ["20.00 dB"]


def test_only_differing_keys_of_the_configs(tmp_path: Path) -> None:
    other = json.loads(json.dumps(CONFIG))
    other["training"]["stages"][0]["optimiser"]["lr"] = 1e-3
    other["method"]["generator"] = {"kind": "unet", "depth": 5}
    one, two = make_run(tmp_path / "a"), make_run(tmp_path / "b", config=other)
    assert differing(written(one, two)) == {
        "method.generator.depth": ["4", "5"],
        "training.stages.0.optimiser.lr": ["0.0002", "0.001"],
    }
    assert "configs are equal" in written(one, make_run(tmp_path / "c")).text


def test_configs_that_are_no_longer_valid_are_compared_as_they_are(tmp_path: Path) -> None:
    other = json.loads(json.dumps(CONFIG))
    other["method"] = {"kind": "of another version", "parts": [{"a": 1}, {"b": None}]}
    one, two = make_run(tmp_path / "a"), make_run(tmp_path / "b", config=other)
    assert differing(written(one, two)) == {
        "method.discriminator": ["{kind: patch}", "–"],
        "method.generator": ["{kind: unet, depth: 4}", "–"],
        "method.kind": ["pix2pix", "of another version"],
        "method.parts": ["–", "[{a: 1}, {b: null}]"],
    }


def differing(page: Page) -> dict[str, list[str]]:
    """The table of the configs' differences."""
    (table,) = [table for table in page.tables if any(row[0].startswith("method.") for row in table)]
    return {row[0]: row[1:] for row in table[1:]}


def test_defaults_that_an_older_version_did_not_write_are_no_difference(tmp_path: Path) -> None:
    whole = configs.load("pix2pix", ["name=whole", "data.root=/data"]).model_dump(mode="json")
    older = json.loads(json.dumps(whole))
    del older["checkpoints"], older["deterministic"], older["training"]["stages"][0]["clip"]
    page = written(make_run(tmp_path / "a", config=whole), make_run(tmp_path / "b", config=older))
    assert "configs are equal" in page.text


def test_previews_of_several_runs_move_together(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a", grids=range(1, 51))
    two = make_run(tmp_path / "b", grids=(25, 50), rows=[{"step": 50, "images": 100}])  # two images a step
    page = written(one, two)
    frames = page.of("figure", lambda values: "frame" in values.get("class", ""))
    moments = [int(frame["data-moment"]) for frame in frames]
    assert len(moments) == FRAMES + 2
    assert moments[0] == 4 and moments[FRAMES - 1] == 200 and moments[FRAMES:] == [50, 100]
    (slider,) = page.of("input")
    assert json.loads(slider["data-moments"]) == sorted(set(moments))
    assert slider["max"] == slider["value"] == str(len(set(moments)) - 1)
    printed = [frame for frame in frames if "printed" in frame["class"]]
    assert len(printed) == 3 + 2  # first, middle, last; of two, both


def test_equal_folder_names_are_told_apart(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / parent / "0001-tiny") for parent in ("here", "there"))
    assert written(one, two).row("step") == ["50", "50"]
    assert {"here/0001-tiny", "there/0001-tiny"} <= {cell.strip() for cell in written(one, two).tables[0][0]}


# ---- what is missing or broken ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        ("config.yaml", "config.yaml is missing: shown is the config inside the weights"),
        ("metrics.jsonl", "metrics.jsonl is missing"),
        ("last.safetensors", "no weights; continue the run: translate train --resume"),
        ("samples", "no preview grids"),
        ("evaluation", "not evaluated; run: translate evaluate"),
    ],
)
def test_a_missing_file_is_said_and_the_rest_is_shown(tmp_path: Path, removed: str, said: str) -> None:
    run = make_run(tmp_path / "a run")
    evaluate(run, [score("psnr", 20.0)])
    assert said not in written(run).text
    place = run / removed
    place.rename(tmp_path / "away")
    page = written(run)
    assert said in page.text
    assert removed == "evaluation" or page.row("PSNR ↑") == ["20.00 dB"]
    assert removed == "metrics.jsonl" or "adversarial" in page.text
    assert "pix2pix (generator unet" in page.text  # also where just the weights know
    if "translate " in said:
        assert f"'{run}'" in page.text  # quoted for a shell, as it has a space


def test_damaged_files_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": 60, "ima\n[1]\n{"step": 60}\n{"images": 240, "D(real)": "x"}\n\xff\xfe\n')
        stream.write(b'{"images": 280, "D(real)": null, "new": NaN}\n{"images": 320, "new": 1e999}\n' + b"[" * 9999)
    (run / "config.yaml").write_text("a: [1\n")
    (run / "last.safetensors").write_bytes(b"no weights")
    (run / "samples/step-000000030.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (run / "evaluation/test").mkdir(parents=True)
    (run / "evaluation/test/evaluation.json").write_text("{}")
    page = written(run)
    assert "5 of 15 lines are damaged" in page.text  # a text where a number should be is left out alone, as `stage` is
    for said in (
        "config.yaml cannot be read",
        "last.safetensors cannot be read",
        "is no evaluation",
        "step-000000030.png",
    ):
        assert said in page.text
    assert "new no finite value" in page.text
    assert len(page.of("img")) == 2


def test_everything_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)<b>&\"'"
    config = {**CONFIG, "name": evil, evil: evil, "data": {"kind": evil, "root": evil}}
    rows = [{**row, f"generator/{evil}": 1.0, f"{evil}/x": 2.0, f"validation/{evil}": 3.0} for row in log_rows()]
    runs = [make_run(tmp_path / f"{evil}{number}", config={**config, "seed": number}, rows=rows) for number in (1, 2)]
    for run in runs:
        folder = evaluate(run, [])
        shown = trio(folder, evil, "best", 0.1).model_copy(update={"files": {evil: "best-input.png", "b": evil}})
        protocol = {evil: evil}
        evaluate(run, [score("psnr", 1.0, **protocol)], reference=evil, pictures=[shown], notes=[evil], images=[evil])
        evaluate(run, [score("psnr", 1.0)], name=f"{evil}", reference=evil)
    for chosen, scripts in ((runs[:1], 0), (runs, 1)):
        page = written(*chosen)  # Page fails where tags do not match
        assert len(page.of("script")) == scripts and not page.of("b", lambda values: not values)
        assert "alert(1)" in page.text
    assert not any(name.startswith("on") for _, values in page.tags for name in values)


def test_pictures_stay_inside_the_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", grids=())
    secret = picture(tmp_path / "secret.png", (9, 9), 200)
    folder = evaluate(run, [])
    (folder / "link.png").symlink_to(secret)
    files = {"a": "../../../secret.png", "b": str(secret), "c": "link.png", "d": "zero\0byte.png", "e": "none.png"}
    shown = [Pictures(name="x", rank="best", value=0.5, files=files), trio(folder, "y", "best", 0.6)]
    evaluate(run, [score("psnr", 1.0)], pictures=shown)
    page = written(run)
    assert len(page.of("img")) == 3 and page.text.count("leads out of the folder") == 3
    assert "none.png: the picture cannot be read" in page.text


def test_every_kind_of_picture_is_shown_small(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", grids=())
    folder = evaluate(run, [])
    Image.fromarray(np.full((700, 40), 51400, np.uint16)).save(folder / "deep.png")  # 200 of 255
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(folder / "clear.png")
    Image.new("P", (8, 8), 0).save(folder / "palette.png")
    Image.new("CMYK", (8, 8)).save(folder / "ink.jpg")
    files = {name: name for name in ("deep.png", "clear.png", "palette.png", "ink.jpg")}
    evaluate(run, [score("psnr", 1.0)], pictures=[Pictures(name="x", rank="worst", value=0.5, files=files)])
    Image.new("RGB", (3000, 500)).save(run / "samples/step-000000050.png")
    grid, deep, clear, *_ = [opened(image) for image in written(run).of("img")]
    assert grid.size == (GRID_SIZE[0], 107)
    assert deep.size == (15, PICTURE_SIZE[1]) and abs(int(np.asarray(deep.convert("L")).mean()) - 200) <= 2
    assert clear.mode == "RGBA" and np.asarray(clear)[..., 3].max() == 0


def test_a_long_log_stays_small(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    values = chance.normal(size=(6000, 8)).round(6).tolist()
    rows = [
        {"step": n, "images": 4 * n, **{f"generator/{k}": v for k, v in enumerate(row)}} for n, row in enumerate(values)
    ]
    run = make_run(tmp_path / "run", rows=rows, grids=())
    path = write_run_report([run], tmp_path / "page.html")
    assert path.stat().st_size < 150_000  # eight charts of at most 600 + 200 points, some 12 bytes each, and the frame
    assert len([values for values in Page(path).of("svg") if "aria-label" in values]) == 8


def test_one_row_and_no_row(tmp_path: Path) -> None:
    one, none = make_run(tmp_path / "one", rows=log_rows(1)), make_run(tmp_path / "none", rows=[])
    page = written(one, none)
    assert page.row("images seen") == ["40", "–"]
    assert "none: metrics.jsonl holds no row yet" in page.text
    assert [values for values in page.of("svg") if "aria-label" in values]


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for wrong, said in (
        (tmp_path / "nowhere", "there is no such folder; expected a run folder"),
        (run / "config.yaml", "is a file; expected a run folder"),
        (tmp_path / "empty", "is no run folder"),
    ):
        with pytest.raises(UserError, match=said) as error:
            write_run_report([run, wrong], tmp_path / "page.html")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no run was named"):
        write_run_report([], tmp_path / "page.html")
    with pytest.raises(UserError, match="is a folder; expected a file"):
        write_run_report([run], tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        write_run_report([run], run / "config.yaml" / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_page_of_one_run_needs_no_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    evaluate(run, [score("psnr", 20.0)])
    code = (
        "import sys; from pathlib import Path; from translate.evaluation.report import write_run_report; "
        "write_run_report([Path(sys.argv[1])], Path(sys.argv[2])); print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(run), str(tmp_path / "page.html")], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
