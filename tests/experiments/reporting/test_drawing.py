import json

from experiments import report
from experiments.reporting import drawing


def test_signs_that_no_font_has_are_named_once(tmp_path, capsys, recwarn):
    assert drawing.unreadable("plain, lr 0.1 ± β ≤") == ""
    assert drawing.unreadable("plain \U00013080\U00013080") == "\U00013080"  # A hieroglyph.
    config = {"seed": 0, "steps": 9, "data": {"batch_size": 10, "name": "digits"}}
    run = {"kind": "plain \U00013080", "config": config | {"model": {"depth": 8}}}
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": {"plain-8-s0": run}}))
    folder = tmp_path / "plain-8-s0"
    folder.mkdir()
    lines = [json.dumps({"step": step, "error": 0.5}) for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    report.write(tmp_path)
    said = capsys.readouterr().out
    assert said.count("boxes for \U00013080:") == 1
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
