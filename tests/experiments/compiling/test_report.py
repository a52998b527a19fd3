"""Findings are told as what they are: a bound, and whether the program fits."""

import json

import pytest

from configs import digits
from experiments.compiling import identity, report
from experiments.compiling.chips import CHIPS
from resnet_flax.config import RunConfig, parse
from resnet_flax.errors import UserError

FITS = {
    "topology": "v5e:2x2", "program": {"model": {"dtype": "float32"}}, "fits": True,
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


@pytest.mark.parametrize(
    "counted, said",
    [
        ("memory", "about 0.250 ms a step, by memory; a cache may save some, not measured"),
        ("FLOPs", "at least 0.250 ms a step, by FLOPs; a bound, not measured"),
    ],
)
def test_by_bytes_a_gpu_may_be_faster(counted, said):
    assert said in "\n".join(report.lines(FITS | {"bound_by": counted}, CHIPS["h100"]))


def config_with(**fields):
    config = digits.get_config("resnet8")
    config.update_from_flattened_dict(fields)
    return parse(config.to_dict(), RunConfig)


def test_a_row_replaces_that_of_the_same_program_and_no_other(tmp_path):
    path = tmp_path / "rows.json"
    others = [{"model.negative_slope": 0.5}, {"model.depth": 20}, {"optim.optimizer": "adam"}]
    others += [{"data.pad": 1}, {"data.train_split": "train[:128]"}, {"steps_per_dispatch": 2}]
    for fields in ({}, *others):
        report.save(FITS | {"program": identity.of(config_with(**fields))}, path)
    same = {"program": identity.of(config_with(**{"optim.lr": 0.5, "seed": 3}))}
    report.save(FITS | same | {"topology": "h100:1"}, path)
    report.save(FITS | same | {"bytes": 7}, path)
    found = [row["bytes"] for row in report.load(path)]
    assert sorted(found) == [7] + [10**6] * (len(others) + 1)


def test_a_row_from_before_a_field_existed_is_of_the_program_with_its_default(tmp_path):
    path, program = tmp_path / "rows.json", identity.of(config_with())
    old = {name: dict(part) if isinstance(part, dict) else part for name, part in program.items()}
    del old["model"]["negative_slope"], old["optim"]["frozen"], old["data"]["color"]
    path.write_text(json.dumps([FITS | {"program": old}]))
    report.save(FITS | {"program": program, "bytes": 7}, path)
    assert [row["bytes"] for row in report.load(path)] == [7]


def test_programs_that_differ_have_different_names():
    fields = [{}, {"model.remat": True}, {"model.bn_scope": "global"}, {"model.dtype": "bfloat16"}]
    names = [report.name_of(config_with(**one)) for one in fields]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("text", ["no JSON", '{"rows": []}', "[3]", '[{"chips": 1}]'])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"^Expected .*x\.json"):
        report.load(tmp_path / "x.json")
