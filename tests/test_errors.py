import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from resnet_flax.errors import UserError, summary
from resnet_flax.runtime.progress import RunProgress

anything = st.text(st.characters(codec=None, categories=None), max_size=20) | st.sampled_from(
    ["\ud800", "\x1b[2J", "a\nb", "\u202eabc", "\x9b0m"]
)


@given(anything)
def test_what_is_shown_moves_no_cursor_and_reorders_no_text(text):
    progress = RunProgress()
    terminal = io.StringIO()
    progress.console = Console(file=terminal, soft_wrap=True)
    progress.say(f"|{text}|")
    shown = [
        str(UserError(text)),
        summary(ValueError(f"|{text}")),
        terminal.getvalue(),
    ]
    assert all(line.removesuffix("\n").isprintable() for line in shown)
    if text.isprintable():
        assert shown[0] == text
