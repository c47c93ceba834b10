"""The command, and what a browser makes of its page."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from monai_ext.errors import UserError
from monai_ext.evaluation.report.__main__ import main, parse_overlays

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@pytest.mark.slow
def test_the_page_is_written(outputs, tmp_path, capsys):
    path = tmp_path / "docs" / "report.html"
    main(
        [
            str(outputs("ours")),
            str(outputs("other", seed=1)),
            "--output",
            str(path),
            "--overlays",
            "none",
            "--names",
            "A",
            "B",
        ]
    )
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert "A against the others" in path.read_text()
    assert f"written to {path}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "found"), [(["none"], (5, False)), (["worst", "3"], (3, True)), (["worst", "0"], (0, True))]
)
def test_overlays_are_none_or_of_the_worst(words, found):
    assert parse_overlays(words) == found


@pytest.mark.parametrize("words", [["all"], ["worst"], ["worst", "-1"], ["none", "out"], ["worst", "3", "out"]])
def test_other_overlays_are_refused(words):
    with pytest.raises(UserError, match="say none, or worst and a number, after the folders"):
        parse_overlays(words)


def browse(page: Path, folder: Path, *options: str) -> str:
    """Open a page in a browser without a screen; return what it prints."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}",
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def cells(html: str) -> list[str]:
    """Return the texts of all cells of a page's tables."""
    found = re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", html, re.DOTALL)
    return [unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in found]


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no chromium to look with")
def test_a_browser_shows_the_page(outputs, tmp_path):
    page, picture = tmp_path / "report.html", tmp_path / "page.png"
    main([str(outputs("ours")), str(outputs("other", seed=1)), "--output", str(page)])
    dom = browse(page, tmp_path, "--window-size=800,1200", f"--screenshot={picture}", "--dump-dom")
    with Image.open(picture) as shown:
        assert shown.size == (800, 1200)
        colours = {colour for _, colour in shown.convert("RGB").getcolors(10**6) or ()}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours  # the style is applied, both methods are there
    assert len(cells(dom)) > 100
    assert cells(dom) == cells(page.read_text())
