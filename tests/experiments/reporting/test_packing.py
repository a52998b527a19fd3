"""The page is small, and shows means where there are many runs."""

import base64
import json
import re
import zlib
from pathlib import Path

import pytest

from experiments import report
from experiments.reporting import page

RESULTS = Path("experiments/results")


@pytest.fixture(scope="module")
def text():
    return page.render(*report.read(RESULTS / "digits"))


def found(text, name):
    return re.search(rf'id="{name}" data-bytes="(\d+)">([^"]*?)</script>', text).groups()


def packed(text, name):
    return found(text, name)[1]


def unpacked(text, name):
    size, of = found(text, name)
    return zlib.decompress(base64.b85decode(of)[: int(size)]).decode()


def test_a_page_is_small_beside_plotly_and_says_how_much_that_is(text):
    assert "plotly.js v" in unpacked(text, "plotly")[:200]
    plotly = len(packed(text, "plotly"))
    assert f"{plotly / 1e6:.1f} MB of it are" in text
    # The other half of a megabyte may grow, Plotly is not ours.
    assert len(text.encode()) - plotly < 5e5


def test_fifty_runs_are_shown_as_means_with_bands_that_switches_hide(text):
    traces = [t for panel in json.loads(unpacked(text, "plots"))["curves"] for t in panel["data"]]
    switches = re.findall('name="run" value="(.*?)" checked hidden', text)
    assert len(switches) == 2 * 5
    assert {trace["meta"]["run"] for trace in traces if trace["x"]} == {*switches}
    bands = [trace for trace in traces if trace.get("fill") == "toself"]
    assert bands and min(y for band in bands for y in band["y"]) == 0


def test_few_runs_are_shown_one_by_one():
    few = page.render(*report.read(RESULTS / "cifar10_short"))
    traces = [t for panel in json.loads(unpacked(few, "plots"))["curves"] for t in panel["data"]]
    runs = {"plain-20-s0", "plain-56-s0", "residual-20-s0", "residual-56-s0"}
    assert {trace["meta"]["run"] for trace in traces if trace["x"]} == runs
