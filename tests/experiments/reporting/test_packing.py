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


def unpacked(text, name):
    size, packed = re.search(rf'id="{name}" data-bytes="(\d+)">([^"]*?)</script>', text).groups()
    return zlib.decompress(base64.b85decode(packed)[: int(size)]).decode()


def test_a_page_is_below_two_megabytes_and_says_how_much_is_plotly(text):
    assert len(text.encode()) < 2e6
    assert "1.8 MB of it are" in text
    assert "plotly.js v" in unpacked(text, "plotly")[:200]


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
