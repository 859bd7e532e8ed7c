from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from translate.data.images import read_image, write_image
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.inference.folder import ConvertOptions, convert
from translate.inference.report import THUMBNAIL, Entry, write_report
from translate.inference.translator import Translator


class Page(HTMLParser):
    """The pictures, links and text of a page; nothing may come from elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        if tag == "img":
            self.images.append(values)
        if tag == "a":
            self.links.append(values["href"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_shows_input_output_and_target(
    negative: Translator, folder: Path, tmp_path: Path, picture: Callable[..., np.ndarray]
) -> None:
    write_image(folder / "big <b>&name's.png", picture(20, 900))
    (folder / "bad.png").write_text("<script>")
    target = tmp_path / "target"
    write_image(target / "a.bmp", 255 - read_image(folder / "a.png").pixels)  # the perfect answer
    write_image(target / "deep" / "c.jpg", picture(8, 8))  # of another size
    out = tmp_path / "out"
    summary = convert(negative, folder, out, ConvertOptions(report=True, target=target))
    assert summary.report == out / "index.html"
    page = Page(summary.report)
    assert not page.tags & {"script", "link", "iframe"}
    assert "<b>&name" not in summary.report.read_text() and "big <b>&name's.png" in page.text
    assert len(page.images) == 6 * 2 + 2
    assert all(image["loading"] == "lazy" and image["alt"] for image in page.images)
    for image in page.images:
        file = out / unquote(image["src"] or "")
        pixels = read_image(file).pixels
        assert pixels.shape[:2] == (int(image["height"] or 0), int(image["width"] or 0))
        assert max(pixels.shape[:2]) <= THUMBNAIL
    for link in page.links:
        assert (out / unquote(link)).resolve().is_file()
    assert "SSIM 1.0000" in page.text and "L1 0.0000" in page.text and "PSNR 100.00 dB" in page.text
    assert "over 1 images with a target" in page.text
    assert "40 x 40 and 8 x 8" in page.text
    assert "1 failed" in page.text and "bad.png" in page.text
    for fact in ("AtoB", "default", "fp32", "cpu", "torch"):
        assert fact in page.text


def test_skipped_files_are_shown_too(negative: Translator, folder: Path, tmp_path: Path) -> None:
    convert(negative, folder, tmp_path / "out")
    summary = convert(negative, folder, tmp_path / "out", ConvertOptions(report=True))
    assert summary.skipped == 5 and summary.report is not None
    assert len(Page(summary.report).images) == 10


def test_no_target_belongs_to_the_inputs(negative: Translator, folder: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "target" / "other.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"expected one such as a\.png"):
        convert(negative, folder, tmp_path / "out", ConvertOptions(target=tmp_path / "target"))
    assert not (tmp_path / "out").exists()


def test_every_kind_of_picture_has_a_thumbnail(tmp_path: Path, picture: Callable[..., np.ndarray]) -> None:
    deep = picture(9, 9, 4, np.uint16)
    write_image(tmp_path / "in.png", deep[..., :3], alpha=deep[..., 3])
    write_image(tmp_path / "out.png", picture(9, 9, 1) % 5)
    labels = ImageSpec(kind="labels", classes=5)
    entry = Entry("in.png", tmp_path / "in.png", tmp_path / "out.png")
    write_report(tmp_path / "page.html", [entry], source=ImageSpec(), target=labels, facts={})
    source, output = (read_image(tmp_path / "report" / f"00001-{kind}.webp") for kind in ("input", "output"))
    assert source.alpha is not None
    np.testing.assert_array_equal(source.alpha, deep[..., 3] // 257)  # WebP keeps alpha exactly
    assert output.pixels.std() > 30  # five colours, not five shades of black
    many = ImageSpec(channels=6)
    np.save(tmp_path / "many.npy", picture(9, 9, 6))
    entry = Entry("many.npy", tmp_path / "many.npy", tmp_path / "many.npy")
    write_report(tmp_path / "page.html", [entry], source=many, target=many, facts={})
    assert len(Page(tmp_path / "page.html").images) == 2
