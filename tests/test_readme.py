import json
import re
import shutil
from pathlib import Path

from resnet_flax.storage import sweep_folder

README = Path("README.md").read_text()


def test_the_examples_of_looking_inside_run(tmp_path, monkeypatch, capsys):
    # The names, not the depth, of the README's runs: the golden run, and, by its config, the plain
    # network of the same parameters.
    section = README.split("## Look inside")[1].split("\n## ")[0]
    code = "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    folder, entries = tmp_path / "runs" / "digits", {}
    for kind, shortcut in (("plain", "none"), ("residual", "pad")):
        name = f"{kind}-56-s0"
        shutil.copytree("tests/golden/run", folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        config["model"]["shortcut"] = shortcut
        (folder / name / "config.json").write_text(json.dumps(config))
        entries[name] = {"kind": kind, "config": config}
    sweep_folder.add_runs(folder, entries)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "24 none" in printed and "residual  8" in printed
    assert Path("gradients.png").stat().st_size > 1000
