"""Token translation through the trainer: its stages and their border, tokenizers of other runs, exact resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import stop_after
from test_vqgan_runs import ADAM, TOKENISING, tiny_vqgan
from test_vqgan_runs import SMALL as VQGAN_SMALL
from tiny import Listener, assert_same_runs, make_run, train, trainer_for, write_pairs

from translate import config as configs
from translate.config import Config
from translate.errors import UserError
from translate.methods.token_translation import TokenTranslation
from translate.run import Run, build_for_inference, load_weights, write_weights
from translate.training.trainer import Trainer

CODER = {"name": "tokenizer", "length": "4 steps", "optimiser": ADAM, "players": ["tokenizer", "discriminator"]}
MODEL = {"name": "translation", "length": "4 steps", "optimiser": ADAM, "players": ["transformer"]}
SMALL: dict[str, Any] = {
    **VQGAN_SMALL,
    "method": {
        "kind": "token-translation",
        "tokenizer": TOKENISING,
        "transformer": {"layers": 1, "heads": 2, "width": 8, "dropout": 0.1},
        "decoding": "masked",
        "sampling": {"steps": 2},
    },
    "data": {
        "kind": "paired",
        "validation": "val",
        "test": None,
        "workers": 0,
        "augment": {"resize": None, "crop": 16, "flip": True},
    },
    "training": {**VQGAN_SMALL["training"], "ema": {"half_life": "8 images"}, "stages": [CODER, MODEL]},
    "validation": {"every": "2 steps", "batch_size": 2},
}
ALONE = {"training": {"stages": [MODEL]}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 2, "val", size=16)
    return write_pairs(folder, 6, size=16)


TOKENS = ("vqgan", "token-prior", "token-translation")
SHIPPED = [name for name in configs.shipped_configs() if configs.load(name).method.kind in TOKENS]


def shrunk(raw: Any, key: str = "") -> Any:
    """A config's settings with tiny networks, small batches, short stages whose discriminators begin at once, and no
    LPIPS, whose weights may not be here; nothing else is changed."""
    small = {
        "width": 8, "heads": 2, "multipliers": [1, 2], "attention": [2], "mlp": 8, "patch": 8, "blocks": 1, "latent": 8,
        "size": 32, "layers": 1, "batch_size": 2, "accumulation": 2, "resize": 36, "crop": 32, "half_life": "8 images",
        "length": "3 steps", "start": "1 steps", "ramp": "1 steps", "warmup": "1 steps", "previews": "1000 steps",
        "workers": 0, "lpips": None, "steps": 2, "cache": "none", "images": 2,
    }  # fmt: skip
    if key == "measures" and raw is not None:
        return ["l1"]
    if key == "best" and raw is not None:
        return "l1"
    if key == "lpips" or (key in small and isinstance(raw, int | list) and key not in ("ramp", "start")):
        return small[key]
    spans = ("length", "start", "ramp", "warmup", "half_life", "previews", "cache")
    if key in spans and (isinstance(raw, str) or key == "start"):
        return small[key]
    if isinstance(raw, dict):
        return {k: shrunk(v, k) for k, v in raw.items()}
    return [shrunk(v) for v in raw] if isinstance(raw, list) else raw


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_of_tokens_trains_all_its_stages(name: str, tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "pairs", 6, size=36)
    raw = shrunk(configs.load(name).model_dump(mode="json"))
    raw["data"] |= {"root": str(root), "validation": 0.3}
    raw["training"] |= {"device": "cpu", "precision": "fp32"}
    config = configs.validate(raw, name).resolved()
    before = trainer_for(config, tmp_path / "before").method.state_dict()
    outcome, run, _ = train(config, tmp_path / "run")
    assert outcome.reason == "finished" and outcome.step == 3 * len(config.training.stages)
    checkpoint = run.load_checkpoint(print)
    assert checkpoint is not None
    for player in {key.split(".")[1] for key in before if key.startswith("players.")}:
        weights = {k: v for k, v in before.items() if k.startswith(f"players.{player}.") and v.is_floating_point()}
        assert any(not torch.equal(v, checkpoint.model[f"method.{k}"]) for k, v in weights.items()), player
    assert build_for_inference(load_weights(run.path))


@pytest.fixture(scope="module")
def tokenizers(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Two runs of VQGAN, on A and on B with half the codes."""
    runs = {}
    for side, size in (("A", 32), ("B", 16)):
        method = {"tokenizer": {"quantiser": {"size": size}}, "reconstruction": {"kind": "l2", "weight": 1.0}}
        stage = {"length": "2 steps", "optimiser": ADAM, "weights": {"adversarial": 0, "discriminator": 0}}
        change = {
            "method": method,
            "data": {"image": {"path": f"{{split}}/{side}"}},
            "training": {"stages": [stage]},
        }
        runs[side] = train(tiny_vqgan(root, change), tmp_path_factory.mktemp(f"tokenizer_{side}"))[1]
    return runs


def tiny_translation(root: Path, *changes: dict[str, Any]) -> Config:
    raw = configs.merge(SMALL, {"data": {"root": str(root)}})
    for change in changes:
        raw = configs.merge(raw, change)
    return configs.validate(raw, "tiny")


def method_of(trainer: Trainer) -> TokenTranslation:
    assert isinstance(trainer.method, TokenTranslation)
    return trainer.method


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


VARIANTS: dict[str, tuple[dict[str, Any], list[int]]] = {
    # Where the first stage ends and within the second; else just behind the border.
    "masked": ({}, [4, 6]),
    "causal, two tokenizers": (
        {
            "method": {
                "decoding": "causal",
                "tokenizers": "two",
                "tokenizer": {"tokenizer": {"quantiser": {"update": "average", "restart": 1}}},
            },
            "training": {"batch_size": 1, "accumulation": 2},
        },
        [5],
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_stages_and_a_resume_across_their_border(variant: str, root: Path, tmp_path: Path) -> None:
    change, stops = VARIANTS[variant]
    config = tiny_translation(root, change)
    outcome, whole, listener = train(config, tmp_path / "whole")
    assert (outcome.reason, outcome.step) == ("finished", 8)
    run = make_run(tmp_path / "stopped", config)
    for step in stops:
        trainer = Trainer(config, Listener())
        stop_after(step)(trainer)
        assert trainer.train(run).reason == "interrupted"
    trainer = Trainer(config, Listener())
    assert trainer.train(run).reason == "finished" and bool(method_of(trainer).translates)
    assert_same_runs(whole, run, names=("best", "last", "stage-tokenizer"))

    # The tokenizer is what its stage left, and no average of it; the transformer began with the second.
    first, last = (load_weights(whole.path / f"{name}.safetensors").tensors for name in ("stage-tokenizer", "last"))
    for name, tensor in first.items():
        if name.startswith("tokenizer."):
            assert torch.equal(tensor, last[name]), name
    assert any(not torch.equal(first[name], last[name]) for name in first if name.startswith("transformer."))

    # What reconstructs best is no best translation: nothing is chosen before the second stage.
    rows = rows_of(whole)
    measured = {row["step"]: row for row in rows if any(key.startswith("validation") for key in row)}
    assert sorted(measured) == [2, 4, 6, 8]
    for step, row in measured.items():
        assert ("validation/reconstruction/l1" in row) == (step <= 4)
        assert ("validation/l1" in row) == ("validation/bits per token" in row) == (step > 4)
    assert load_weights(whole.path / "best.safetensors").step in (6, 8)
    said = [message for message in listener.messages if message.startswith("validation at")]
    assert [message.endswith("(best so far)") for message in said[:3]] == [False, False, True]

    # Each player's terms stand in its own stage alone.
    of = "_B" if "two" in variant else ""
    for row in rows:
        if "stage" in row:
            assert (f"tokenizer/reconstruction{of}" in row) == (row["stage"] == "tokenizer")
            assert ("transformer/tokens" in row) == (row["stage"] == "translation")
    assert sum(f"codebook{of}/perplexity" in row for row in rows) == 2  # an epoch has three steps, the stage four


def test_patience_waits_for_the_translation(root: Path, tmp_path: Path) -> None:
    """Three validations of reconstructions are none without a better translation."""
    patient = {"validation": {"every": "1 steps", "patience": 1}, "logging": {"every": "8 steps"}}
    stages = [{**CODER, "weights": {"adversarial": 0}}, {**MODEL, "optimiser": {**ADAM, "lr": 1e-12}}]
    outcome, _, _ = train(tiny_translation(root, patient, {"training": {"stages": stages}}), tmp_path)
    assert (outcome.reason, outcome.step) == ("early stop", 6)  # the fifth is the first, the sixth no better


def test_trained_tokenizers_are_taken_as_they_are(root: Path, tokenizers: dict[str, Run], tmp_path: Path) -> None:
    trained = {"tokenizers": "two", "trained": str(tokenizers["A"].path), "trained_B": str(tokenizers["B"].path)}
    config = tiny_translation(root, ALONE, {"method": trained}).resolved()
    assert config.method.recipe("A").tokenizer.quantiser.size == 32
    assert config.method.recipe("B").tokenizer.quantiser.size == 16
    assert config.method.recipe("B").reconstruction.kind == "l2"
    assert config.resolved() == config
    outcome, run, _ = train(config, tmp_path / "run")
    assert outcome.reason == "finished"

    # The files of the tokenizers' runs are needed no more, neither to convert nor to resume.
    moved = {side: one.path.rename(one.path.with_name(f"{one.path.name}-gone")) for side, one in tokenizers.items()}
    try:
        weights = load_weights(run.path / "last.safetensors")
        method = build_for_inference(weights)
        assert Trainer(run.load_config(), Listener()).train(run).reason == "finished"
    finally:
        for side, path in moved.items():
            path.rename(tokenizers[side].path)
    for side, one in tokenizers.items():
        for name, tensor in load_weights(one.path).tensors.items():
            assert torch.equal(weights.tensors[f"tokenizer.{side}.{name.removeprefix('tokenizer.')}"], tensor), name
    assert isinstance(method, TokenTranslation) and method.tokenizer("B").codes == method.transformer.codes == 16


def test_what_is_no_trained_tokenizer_is_told_in_one_line(
    root: Path, tokenizers: dict[str, Run], tmp_path: Path
) -> None:
    trained = {"method": {"trained": str(tokenizers["A"].path)}}
    config = tiny_translation(root, ALONE, trained)
    run = make_run(tmp_path / "run", config.resolved())
    trainer = Trainer(run.load_config(), Listener())
    stop_after(1)(trainer)
    trainer.train(run)
    with pytest.raises(
        UserError, match=r"^method\.trained: .*run is a run of method token-translation; expected one of"
    ):
        tiny_translation(root, ALONE, {"method": {"trained": str(run.path)}}).resolved()
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        tiny_translation(root, ALONE, {"method": {"trained": str(tmp_path / "nowhere")}}).resolved()
    # A config that was written by hand, with other networks than the run's.
    with pytest.raises(UserError, match=r"^method\.trained: .* is from another architecture") as raised:
        other = {"method": {"tokenizer": {"tokenizer": {"quantiser": {"size": 8}}}}}
        train(tiny_translation(root, ALONE, trained, other), tmp_path / "other")
    assert "\n" not in str(raised.value)


def test_what_nobody_trains_is_told(root: Path, tokenizers: dict[str, Run]) -> None:
    with pytest.raises(UserError, match=r"^training\.stages: no stage moves 'tokenizer', which has learnt nothing yet"):
        Trainer(tiny_translation(root, ALONE), Listener())
    trained = {"method": {"trained": str(tokenizers["A"].path)}}
    alone = {"training": {"stages": [{**CODER, "players": ["tokenizer"]}]}}
    with pytest.raises(UserError, match=r"^training\.stages: no stage moves 'transformer'"):
        Trainer(tiny_translation(root, alone).resolved(), Listener())
    # Who comes trained stays so, and nothing of how it learnt can be weighed.
    with pytest.raises(UserError, match=r"^training\.stages\.0\.players: 'tokenizer' comes from another run"):
        Trainer(tiny_translation(root, trained, alone).resolved(), Listener())
    weighed = {"training": {"stages": [{**MODEL, "weights": {"reconstruction": 2.0}}]}}
    with pytest.raises(UserError, match=r"^training\.stages\.0\.weights: 'reconstruction' is unknown"):
        Trainer(tiny_translation(root, trained, weighed).resolved(), Listener())
    Trainer(tiny_translation(root, ALONE, trained).resolved(), Listener())


def delayed(start: str) -> dict[str, Any]:
    return {"kind": "delayed", "start": start}


@pytest.mark.parametrize("tokenizers", ["shared", "two"])
def test_a_term_s_name_is_of_both_tokenizers(tokenizers: str, root: Path, tmp_path: Path) -> None:
    schedules = {"discriminator": delayed("1 steps"), "adversarial": delayed("2 steps")}
    weights = {"quantiser": 3.0, "discriminator": 0.25}
    of = ["_A", "_B"] if tokenizers == "two" else [""]
    if tokenizers == "two":
        weights["reconstruction_B"] = 5.0
    stages = [{**CODER, "weights": weights, "weight_schedules": schedules}, MODEL]
    changes = {"method": {"tokenizers": tokenizers}, "training": {"stages": stages}}
    trainer = trainer_for(tiny_translation(root, changes), tmp_path)
    for step in range(4):
        trainer.images = step * trainer.batch
        trainer._set_rates_and_weights()
        found = dict(trainer.method.weights)
        for side in of:
            assert found.pop(f"discriminator{side}") == (0.25 if step >= 1 else 0), (step, side)
            assert found.pop(f"adversarial{side}") == (0.8 if step >= 2 else 0), (step, side)
            assert found.pop(f"quantiser{side}") == 3
            assert found.pop(f"reconstruction{side}") == (5 if side == "_B" else 1)
        assert found == {"tokens": 1}


@pytest.mark.parametrize("where", ["weights", "weight_schedules"])
def test_a_term_that_is_not_there_is_told(where: str, root: Path) -> None:
    two = {"method": {"tokenizers": "two"}}
    for name in ("adversarail", "adversarial_C", "tokenizer"):
        stage = {**CODER, where: {name: 1.0 if where == "weights" else delayed("1 steps")}}
        with pytest.raises(UserError, match=rf"^training\.stages\.0\.{where}: '{name}' is unknown to this method; it"):
            Trainer(tiny_translation(root, two, {"training": {"stages": [stage, MODEL]}}), Listener())


@pytest.mark.parametrize("name", ["token-translation", "token-translation-emoji"])
def test_shipped_configs_are_also_of_two_tokenizers(name: str, root: Path) -> None:
    """Their stages as they are; the networks and images are small."""
    shipped = configs.load(name)
    raw = configs.merge(shipped.model_dump(mode="json"), tiny_translation(root).model_dump(mode="json"))
    raw["method"]["tokenizers"] = "two"
    raw["training"]["stages"] = [stage.model_dump(mode="json") for stage in shipped.training.stages]
    trainer = Trainer(configs.validate(raw, name), Listener())
    assert trainer.method.terms("adversarial") == ("adversarial_A", "adversarial_B")
    assert list(trainer.stages[0].weight_schedules) == ["discriminator", "adversarial"]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"channels": 1}, "image data of 1 channels"),
        ({"kind": "labels", "classes": 3}, "labels data of 3 channels"),
    ],
    ids=["grey", "labels"],
)
def test_a_tokenizer_of_other_images_is_told(image: dict[str, Any], said: str, root: Path, tmp_path: Path) -> None:
    config = tiny_vqgan(root, {"data": {"image": image}})
    path = tmp_path / "other.safetensors"
    write_weights(path, config, config.method.build(config.data).exported(), 1, 1)
    for side in ("A", "B"):
        trained = {"tokenizers": "two", "trained": str(path), "trained_B": str(path)}
        right = {"data": {"AB".replace(side, ""): image}}  # fits the other side
        key = "trained" if side == "A" else "trained_B"
        with pytest.raises(UserError, match=rf"^method\.{key}: .* knows {said}, not image data of 3; train one"):
            tiny_translation(root, ALONE, {"method": trained}, right).resolved()
    prior = {"method": {**SMALL["method"], "kind": "token-prior", "trained": str(path)}}
    with pytest.raises(UserError, match=rf"^method\.trained: .* knows {said}, not image data of 3"):
        tiny_vqgan(root, prior).resolved()
