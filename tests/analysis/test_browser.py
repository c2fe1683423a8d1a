"""The report in a real browser, where there is one: it opens without an error, and what it shows can be read."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from matplotlib.image import imread

from analysis.report import write_report
from analysis.store.schema import ROW
from tests.analysis.test_report import HOSTILE, fitted, held_out, run, runs
from tests.conftest import run_process

POINT = """<script>
const told = [...document.querySelectorAll(".told")];
const hit = told.filter(mark => {
  mark.scrollIntoView({block: "center"});
  const box = mark.getBoundingClientRect();
  const at = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return at && at.closest(".told");
});
document.title = `${hit.length} of ${told.length} marks are under the pointer`;
</script>"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Return `browse(page, *options)`: what a headless Chromium says of a page, as (stdout, stderr)."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("NO BROWSER: the report was not opened; `apt-get install chromium`")
    profile = tmp_path_factory.mktemp("profile")

    def browse(page, *options):
        argv = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        argv += ["--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", *options, page.as_uri()]
        done = run_process(argv, timeout_s=110)
        assert done.status == 0, done.stderr
        return done.stdout, done.stderr

    return browse


def test_a_browser_opens_the_report_and_shows_values_under_the_pointer(chromium, tmp_path):
    given = runs(held_out(), held_out(HOSTILE))
    page = write_report(tmp_path, "widths", given, fitted())
    dom, talk = chromium(page, "--dump-dom", f"--screenshot={tmp_path}/shot.png", "--window-size=1000,3000")
    assert "CONSOLE" not in talk, "no error, no refused script, no missing file"
    titles = re.findall(r"<title>(.*?)</title>", dom)
    for one in given[:-1]:
        assert any(f"{one.run_id}: loss {one.measured:.4f}, N {one.N:,.0f}" in title for title in titles)
    assert "<script" not in dom, "the hostile name is text"
    shot = imread(tmp_path / "shot.png")[..., :3]
    assert shot.shape[:2] == (3000, 1000)
    colours = np.unique((shot * 15).astype(int).reshape(-1, 3), axis=0)
    assert len(colours) > 20, "plots have colours"
    red = np.abs(shot - np.array([0xD1, 0x49, 0x5B]) / 255).max(axis=-1) < 0.02
    assert red.sum() > 50, "the star of the held-out run"


def test_every_mark_is_where_the_pointer_finds_it(chromium, tmp_path):
    first = runs()[0]
    line = np.zeros(2, ROW)
    line["tokens"], line["value"] = [first.D / 2, 2 * first.D], first.curves["val_loss"]["value"][-1]
    crossing = run("crossing", first.N, 2 * first.D, first.loss, curves={"val_loss": line})
    page = write_report(tmp_path, "widths", runs(held_out(), crossing), fitted())
    page.write_text(page.read_text().replace("</body>", POINT + "</body>"))
    dom, _ = chromium(page, "--dump-dom", "--window-size=1000,800")
    [(hit, told)] = re.findall(r"<title>(\d+) of (\d+) marks are under the pointer", dom)
    assert hit == told
    assert int(told) > 60
