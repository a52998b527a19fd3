"""Findings are told as what they are: a bound, and whether the program fits."""

import pytest

from configs import digits
from experiments.compiling import report
from experiments.compiling.chips import CHIPS
from resnet_flax.config import RunConfig, parse

FITS = {
    "topology": "v5e:2x2", "data": "cifar10", "batch_size": 128, "dtype": "float32", "fits": True,
    "lower_s": 1, "compile_s": 2,
    "memory": {"arguments": 2**30, "temporaries": 2**31, "total": 3 * 2**30}, "least_ms": 0.25,
    "collectives": {"all-reduce": {"count": 1, "bytes": 4000}}, "bound_by": "memory", "padded": [],
    "serial_loops": [], "relayouts": [], "flops": 10**9, "bytes": 10**6,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, "at least 0.250 ms a step, by memory; a bound, not measured"),
        ({}, "3.00 GiB of 16.0 (arguments 1.00, temporaries 2.00)"),
        ({}, "1 all-reduce, 4,000 bytes"),
        ({"collectives": {}}, "collectives a step: none"),
        ({"fits": False}, "DOES NOT FIT: 3.00 GiB of 16.0"),
        ({"error": "Ran out of memory"}, "REFUSED: Ran out of memory"),
        ({"serial_loops": [{"times": 64, "source": "crop"}]}, "WARNING: a loop over 64 images"),
        (
            {"estimate": {"step_ms": 2, "network_ms": 1.5, "others": [[0.5, "copy"]]}},
            "2.000 ms a step, 1.500 of it in the network; a model, not measured",
        ),
    ],
)
def test_a_finding_is_said_in_words(changes, said):
    assert said in "\n".join(report.lines(FITS | changes, CHIPS["v5e"]))


def test_a_row_replaces_that_of_the_same_program_and_no_other(tmp_path):
    path = tmp_path / "rows.json"
    config = parse(digits.get_config("resnet8").to_dict(), RunConfig)
    model = config.model.model_dump(mode="json")
    adam, leaky, other = {"optim": {"optimizer": "adam"}}, {"negative_slope": 0.5}, {"depth": 20}
    first = {**FITS, **model, "optim": {}}
    for changes in ({}, adam, leaky, other, {"topology": "h100:1"}, {"bytes": 7}):
        report.save(first | changes, path)
    found = [row["bytes"] for row in report.load(path)]
    assert sorted(found) == [7, 10**6, 10**6, 10**6, 10**6]
