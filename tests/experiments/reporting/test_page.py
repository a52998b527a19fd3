"""The report in a real browser, from a sweep whose free text is hostile wherever it can be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments import report
from experiments.reporting import page
from resnet_flax.storage import findings
from resnet_flax.storage.findings import Initial, Layer, Layers, Line, Network, Plane

HOSTILE = "</script><script>hacked = 1</script><img src=x onerror='hacked = 2'>$\\frac{{{ 7 * 7 }}"
CHROMIUM = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
LONG = "residual_" + "with_projections_" * 5
TRAIN_ERRORS = [0.8, 0.4, 0.2]


def layers(step):
    values = {name: 0.5 for name in Layer.model_fields if name != "name"}
    return Layers(
        step=step,
        batches=1,
        batch_size=1,
        loss=1.0,
        layers=tuple(
            Layer(name=f"{HOSTILE}{i}", **values | {"weight_gradient_norm": 10.0**-i})
            for i in range(3)
        ),
    )


def write_findings(workdir, runs):
    networks = [
        Network(kind=f"plain{HOSTILE}", depth=8, norm=norm, seed=0, at=layers(0))
        for norm in ("batch", HOSTILE)
    ]
    findings.save(workdir / findings.INITIAL, Initial(networks=tuple(networks)))
    ends = {"step": 9, "images": 1, "positions": (0.0, 1.0)}
    for run in runs:
        for step in (0, 9):
            findings.save(findings.layers_file(workdir / run, step), layers(step))
        folder = findings.folder(workdir / run)
        findings.save(folder / findings.LINE, Line(losses=(2.0, 0.0), errors=(1.0, 0.0), **ends))
        square = ((1.0, None), (0.1, 0.0))
        plane = Plane(seed=0, losses=square, errors=square, **ends)
        findings.save(folder / findings.PLANE, plane)


def write_sweep(workdir, seeds=(0, 1)):
    runs = {}
    for kind, depth, seed in (
        (k, d, s) for s in seeds for d in (8, 20) for k in ("plain", "residual")
    ):
        config = {
            "seed": seed,
            "steps": 9,
            "model": {"depth": depth, "more": HOSTILE},
            "data": {"batch_size": 10, "more": HOSTILE},
        }
        name = f"{kind}-{depth}-s{seed}"
        runs[name] = {"kind": LONG if kind == "residual" else kind, "config": config}
        folder = workdir / name
        folder.mkdir(parents=True)
        error = depth / 100 + seed / 1000 if kind == "plain" else 0.01
        lines: list[dict[str, Any]] = [
            {"step": i, "error": e, "images_per_second": 5 if i == 1 else 10}
            for i, e in enumerate(TRAIN_ERRORS, 1)
        ]
        lines += [{"step": 3, "split": split, "error": error} for split in ("test", "train")]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        (folder / "environment.json").write_text(json.dumps([{"parameters": 9, HOSTILE: HOSTILE}]))
        failed = name == "residual-20-s1"
        status = {"state": "failed" if failed else "finished", "step": 3, "attempt": 1}
        status |= {"updated": "", "error": HOSTILE if failed else None}
        (folder / "status.json").write_text(json.dumps(status))
    (workdir / "sweep.json").write_text(json.dumps({"runs": runs}))
    return list(runs)


def write_page(workdir):
    return page.write(*report.read(workdir))


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    if not path:
        pytest.skip("there is no chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def said():
    """What the browser complained of, and what it asked for beside the page."""
    return []


@pytest.fixture(scope="module")
def loaded(browser, said, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweeps") / "<img src=x onerror=alert(1)>"
    write_findings(workdir, write_sweep(workdir))
    url = write_page(workdir).as_uri()
    tab = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="light")
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: request.url == url or said.append(request.url))
    tab.goto(url)
    wait_until_drawn(tab)
    return tab


def wait_until_drawn(tab):
    for _ in range(600):  # Playwright's own waiting is stopped by the page's security policy.
        if tab.evaluate("typeof divs !== 'undefined' && divs.every(d => d._fullLayout)"):
            return
        tab.wait_for_timeout(50)
    raise AssertionError("the figures were not drawn")


def test_every_chart_is_drawn_without_complaint_or_a_request(loaded, said):
    expected = {
        "degradation", "curves", "gradients", "identity_share", "responses", "initialisation",
        "gradient_ratio", "line", "plane", "costs", "curves_by_depth",
    }  # fmt: skip
    drawn = loaded.eval_on_selector_all(
        "[data-chart]:has(.trace)", "divs => divs.map(div => div.dataset.chart)"
    )
    assert set(drawn) == expected
    assert len(drawn) == loaded.locator("[data-chart]").count()
    assert said == []


def test_the_page_is_as_wide_as_a_phone(loaded):
    loaded.get_by_text("Show or hide runs").click()
    assert loaded.evaluate("document.documentElement.scrollWidth") == 390
    loaded.get_by_text("Show or hide runs").click()


def test_a_plot_offers_to_save_it_and_to_send_it_nowhere(loaded):
    titles = loaded.eval_on_selector_all(
        ".modebar-btn", "all => all.map(button => button.dataset.title)"
    )
    assert any("Download" in title for title in titles)
    for word in ("share", "studio", "cloud"):
        assert not any(word in title.lower() for title in titles)
    assert loaded.evaluate("divs[0]._context.plotlyServerURL") == ""


def test_ticks_of_both_axes_are_of_one_size(loaded):
    for axis in ("x", "y"):
        sizes = loaded.eval_on_selector_all(
            f"[data-chart=gradients] .{axis}tick text",
            "ticks => ticks.map(tick => getComputedStyle(tick).fontSize)",
        )
        assert set(sizes) == {"13px"}


def test_a_touch_screen_has_no_buttons_over_its_plots(browser, loaded):
    context = browser.new_context(
        viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True
    )
    tab = context.new_page()
    tab.goto(loaded.url)
    wait_until_drawn(tab)
    assert tab.locator("[data-chart] .main-svg").count() > 0
    assert tab.locator(".modebar-btn").count() == 0
    context.close()


def test_what_stands_in_files_is_shown_and_never_run(loaded):
    text = loaded.evaluate("document.querySelector('main').textContent")
    assert text.count(HOSTILE) >= 1 + 2 + 2 + 2  # The failure, environment, config, labels.
    assert loaded.locator("header b").text_content() == "<img src=x onerror=alert(1)>"
    assert loaded.evaluate("typeof hacked") == "undefined"
    assert loaded.locator("main img").count() == 0
    names = loaded.evaluate("plots.gradients[0].data[0].text")
    assert "<" not in names[0], "Plotly would read markup"


def test_a_switch_hides_the_curves_of_its_run_and_its_group_those_of_all(loaded):
    curves = loaded.locator("[data-chart=curves] .scatterlayer .trace")
    before = curves.count()
    loaded.get_by_text("Show or hide runs").click()
    loaded.locator("[name=run][value=plain-8-s0]").uncheck()
    assert curves.count() == before - 2
    group = loaded.locator("fieldset", has=loaded.locator("[value=plain-8-s0]")).locator(
        "[name=group]"
    )
    group.uncheck()
    assert curves.count() == before - 4
    group.check()
    loaded.get_by_label("training", exact=True).uncheck()
    assert curves.count() == before / 2
    loaded.get_by_label("training", exact=True).check()
    assert curves.count() == before


def test_curves_are_smoothed_and_drawn_logarithmically(loaded):
    loaded.locator("[name=smoothing]").fill("0.5")
    mean = (0.25 * 0.8 + 0.5 * 0.4) / 0.75
    smoothed = loaded.evaluate("plots.curves[0].data.find(t => t.line.dash === 'dash').y")
    assert smoothed[:2] == pytest.approx([0.8, mean])
    loaded.locator("[name=smoothing]").fill("0")
    loaded.get_by_label("log scale").check()
    types = "divs.filter(d => d.dataset.chart === 'curves').map(d => d._fullLayout.yaxis.type)"
    assert loaded.evaluate(types) == ["log", "log"]
    loaded.get_by_label("log scale").uncheck()
    assert loaded.evaluate(types) == ["linear", "linear"]


def test_a_table_sorts_by_keyboard_up_and_down_and_what_is_missing_is_last(loaded):
    loaded.get_by_text("Every run, with its folder").scroll_into_view_if_needed()
    header = loaded.locator("#runs th").filter(has_text="training")
    header.get_by_role("button").press("Enter")
    column = "table => [...table.tBodies[0].rows].map(row => row.cells[6].textContent)"
    ascending = loaded.locator("#runs").evaluate(column)
    assert ascending == ["1.00", "1.00", "1.00", "8.00", "8.10", "20.00", "20.10", "–"]
    assert header.get_attribute("aria-sort") == "ascending"
    header.get_by_role("button").press("Enter")
    assert loaded.locator("#runs").evaluate(column) == ascending[-2::-1] + ["–"]
    assert header.get_attribute("aria-sort") == "descending"


def test_a_run_leads_to_its_folder(loaded):
    href = loaded.get_by_role("link", name="plain-8-s0").get_attribute("href")
    assert href == "plain-8-s0/"


def test_plots_follow_the_theme_and_are_light_on_paper(loaded):
    color = "divs[0]._fullLayout.font.color + divs[0]._fullLayout.modebar.color"
    assert loaded.evaluate("divs[0]._fullLayout.modebar.bgcolor") == "rgba(0,0,0,0)"
    light = loaded.evaluate(color)
    loaded.emulate_media(color_scheme="dark")
    for _ in range(100):  # Playwright's own waiting is stopped by the page's security policy.
        if loaded.evaluate(color) != light:
            break
        loaded.wait_for_timeout(50)
    dark = loaded.evaluate(color)
    assert dark != light
    loaded.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert loaded.evaluate(color) == light
    loaded.evaluate("dispatchEvent(new Event('afterprint'))")
    assert loaded.evaluate(color) == dark


def test_a_page_of_many_runs_hides_its_bands_while_curves_are_smoothed(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page.render(*report.read(Path("experiments/results/digits"))))
    tab = browser.new_page()
    tab.goto(path.as_uri())
    wait_until_drawn(tab)
    traces = "divs.find(d => d.dataset.chart === 'curves').querySelectorAll('.trace').length"
    lines = 2 * 5  # Training and test, five depths, a panel for each kind.
    assert tab.evaluate(traces) == 2 * lines
    tab.locator("[name=smoothing]").fill("0.5")
    assert tab.evaluate(traces) == lines
    tab.locator("[name=smoothing]").fill("0")
    tab.get_by_text("Show or hide networks").click()
    tab.locator("[name=group]").first.uncheck()  # plain 8
    assert tab.evaluate(traces) == 2 * lines - 4
    axes = "divs.map(d => d._fullLayout.yaxis).filter(y => y.tickformat)"
    assert tab.evaluate(f"Math.min(...{axes}.map(y => y.range[0]))") == 0
    tab.close()
