"""FCN scores by hand and pixel by pixel; a user's segmenter, good and bad."""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from translate.errors import UserError
from translate.metrics.foreign import import_callable
from translate.metrics.segmentation import Confusion, load_segmenter


def maps(count: int, classes: int, seed: int) -> Tensor:
    return torch.randint(classes, (count, 6, 5), generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    # Truth 0 0 0 1, prediction 0 0 1 2: class 0 is right 2 of 3 (union 3), class 1 0 of 1 (union 2), class 2 is only
    # predicted (union 1), class 3 nowhere.
    confusion = Confusion(4)
    confusion.add(torch.tensor([[[0, 0], [1, 2]]]), torch.tensor([[[0, 0], [0, 1]]]))
    assert confusion.scores() == {
        "pixel-accuracy": pytest.approx(2 / 4),
        "class-accuracy": pytest.approx((2 / 3 + 0) / 2),
        "mean-iou": pytest.approx((2 / 3 + 0 + 0) / 3),
    }


@pytest.mark.parametrize("ignore", [None, 2, 255])
def test_equals_counting_class_by_class(ignore: int | None) -> None:
    predicted, truth = maps(8, 5, 1), maps(8, 5, 2)
    truth = torch.where(maps(8, 3, 3) > 0, predicted, truth)
    if ignore == 255:
        truth[:, 0] = 255
    confusion, other = Confusion(5), Confusion(5)
    confusion.add(predicted[:3], truth[:3], ignore)
    other.add(predicted[3:].to(torch.uint8), truth[3:].to(torch.uint8), ignore)
    confusion.merge(other)
    p, t = (labels.numpy()[truth.numpy() != ignore] for labels in (predicted, truth))
    classes = [c for c in range(5) if c in t or c in p]
    expected = {
        "pixel-accuracy": (p == t).mean(),
        "class-accuracy": np.mean([(p[t == c] == c).mean() for c in classes if c in t]),
        "mean-iou": np.mean([((p == c) & (t == c)).sum() / ((p == c) | (t == c)).sum() for c in classes]),
    }
    assert confusion.scores() == pytest.approx(expected, rel=1e-12)


def test_what_can_not_be_counted() -> None:
    confusion = Confusion(3)
    with pytest.raises(UserError, match="true labels: expected classes from 0 to 2, not 255"):
        confusion.add(torch.zeros(1, 2, 2, dtype=torch.uint8), torch.full((1, 2, 2), 255, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"predicted labels: .* not -1"):
        confusion.add(torch.full((1, 2, 2), -1), torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="one shape"):
        confusion.add(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="3 classes"):
        confusion.merge(Confusion(4))
    confusion.add(torch.zeros(1, 2, 2), torch.ones(1, 2, 2), ignore=1)
    with pytest.raises(UserError, match="no pixel"):
        confusion.scores()


Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module that can be imported, and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> str:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return name

    return write


def test_a_segmenter_of_scores_or_classes(write: Write) -> None:
    module = write(
        "users_segmenter",
        """
        import torch

        class Scores(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = torch.nn.BatchNorm2d(3)
            def forward(self, images):
                return self.norm(images)[:, :, ::2, ::2]

        def classes():
            return lambda images: (images[:, 0] > 0).to(torch.uint8)
        """,
    )
    images = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scores, classes = (load_segmenter(f"{module}:{name}", "cpu") for name in ("Scores", "classes"))
    assert isinstance(scores, nn.Module)
    found = scores(images)
    assert found.dtype is torch.int64
    assert not scores.training
    # In eval mode a new batch norm is the identity (but for its epsilon): the largest channel, in its own coarser grid.
    assert torch.equal(found, images.argmax(1)[:, ::2, ::2])
    assert torch.equal(classes(images), (images[:, 0] > 0).long())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("number", "returned int; expected a module"), ("fails", r"without arguments \(OSError: no weights\)")],
)
def test_a_factory_that_makes_no_segmenter(write: Write, name: str, expected: str) -> None:
    module = write(
        "users_factory", "def number(): return 3\ndef fails(): raise OSError('no\\n weights')\n"
    )  # two lines become one
    with pytest.raises(UserError, match=expected):
        load_segmenter(f"{module}:{name}", "cpu")


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ("images[:1]", r"\(1, 3, 4, 4\) torch.float32"),
        ("images[:, 0]", r"\(2, 4, 4\) torch.float32"),
        ("images.long()", r"\(2, 3, 4, 4\) torch.int64"),
        ("{'out': images}", "dict"),
    ],
)
def test_a_segmenter_that_returns_something_else(write: Write, result: str, told: str) -> None:
    name = f"users_result_{zlib.crc32(result.encode())}"  # each a module of its own
    module = write(name, f"def make(): return lambda images: {result}\n")
    segmenter = load_segmenter(f"{module}:make", "cpu")
    with pytest.raises(UserError, match=f"{name}:make returned {told}"):
        segmenter(torch.zeros(2, 3, 4, 4))


def test_import_by_name(write: Write) -> None:
    write("users_package.__init__", "")
    write("users_package.inner", "class Outer:\n    @staticmethod\n    def make(): return 7\n")
    assert import_callable("users_package.inner:Outer.make", "features")() == 7
    assert import_callable("math:sqrt", "features")(9) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("math.sqrt", "expected package.module:callable, not 'math.sqrt'"),
        (":sqrt", "expected package.module:callable"),
        ("math:", "expected package.module:callable"),
        ("my folder/file.py:make", "expected package.module:callable"),
        ("no_such_module:make", "no module 'no_such_module'"),
        ("math.no_such:make", "no module 'math.no_such'"),
        ("users_broken:make", r"importing 'users_broken' failed \(ZeroDivisionError: division by zero\)"),
        ("users_needy:make", r"importing 'users_needy' failed \(ModuleNotFoundError: No module named 'no_such'\)"),
        ("math:no_such", "'math' has no 'no_such'"),
        ("math:sqrt.no_such", "'math' has no 'sqrt.no_such'"),
        ("math:pi", "'math:pi' is no callable but float"),
    ],
)
def test_names_that_lead_nowhere(write: Write, text: str, expected: str) -> None:
    write("users_broken", "1 / 0\n")
    write("users_needy", "import no_such\n")
    with pytest.raises(UserError, match=f"^features: .*{expected}") as caught:
        import_callable(text, "features")
    assert "\n" not in str(caught.value)
