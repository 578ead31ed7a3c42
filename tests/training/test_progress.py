import io

from jrobust.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_off_a_terminal():
    stream = io.StringIO()
    progress = Progress(100, stream=stream)
    progress.advance(1)
    progress.record(50, {"loss": 1.23456, "learning_rate": 0.1, "norm": 3.0}, images_per_second=512.4, seconds_left=75)
    progress.line("step 50/100: test accuracy 12.00%")
    progress.close()
    assert stream.getvalue() == (
        "step 50/100: loss 1.235, learning_rate 0.1, 512 images/s, 1 min 15 s left\nstep 50/100: test accuracy 12.00%\n"
    )


def test_a_bar_on_a_terminal():
    stream = Terminal()
    progress = Progress(100, step=10, stream=stream)
    progress.record(50, {"loss": 1.2}, images_per_second=5, seconds_left=3)
    progress.line("a [line] with brackets")
    progress.close()
    shown = stream.getvalue()
    assert "50/100" in shown and "3.0 s left" in shown and "a [line] with brackets" in shown
