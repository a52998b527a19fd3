from resnet_flax.runtime.progress import RunProgress


def test_a_command_in_a_notebook_prints_lines_and_draws_nothing(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # As notebooks do.
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert RunProgress().console.is_terminal
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert not RunProgress().console.is_terminal


def test_the_time_left_is_known_though_records_are_an_hour_apart(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # A terminal.
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    progress, clock = RunProgress(), [0.0]
    progress._bar.get_time = lambda: clock[0]
    progress.start("run", 0, 1000)
    for step in (100, 200, 300):
        clock[0] += 3600
        progress.update(step, 1.0, 0.5, 8.0)
    assert progress._bar.tasks[0].time_remaining == 7 * 3600


def test_a_runs_name_is_shown_as_it_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with RunProgress() as progress:
        progress.start("run[a] [bold red]", 0, 10)
        with progress.console.capture() as shown:
            progress.console.print(progress._render())
    assert "run[a] [bold red]" in shown.get()
