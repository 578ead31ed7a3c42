import pytest

from jrobust.errors import InputError
from jrobust.training import durations


@pytest.mark.parametrize(
    "section, steps",
    [
        ({"steps": 7, "examples": 999, "epochs": 9.0}, 7),
        ({"steps": 0, "examples": 1000, "epochs": 9.0}, 10),
        ({"steps": 0, "examples": 1, "epochs": 0.0}, 1),
        ({"steps": 0, "examples": 0, "epochs": 2.5}, 50),
        ({"epochs": 100}, 2000),
    ],
)
def test_length(section, steps):
    assert durations.total_steps(section, steps_per_epoch=20, batch_size=100) == steps


def test_no_length():
    with pytest.raises(InputError, match=r"set one of train.steps"):
        durations.total_steps({"steps": 0, "epochs": 0.0}, steps_per_epoch=20, batch_size=100)
    with pytest.raises(InputError, match=r"train.epochs is -1.0"):
        durations.total_steps({"epochs": -1.0}, steps_per_epoch=20, batch_size=100)


def test_period():
    assert durations.period({"every_steps": 3, "every_epochs": 1.0}, "every", steps_per_epoch=20) == 3
    assert durations.period({"every_steps": 0, "every_epochs": 0.001}, "every", steps_per_epoch=20) == 1
    with pytest.raises(InputError, match=r"every_steps is -3"):
        durations.period({"every_steps": -3}, "every", steps_per_epoch=20)


def test_never_is_still_at_the_end():
    assert [step for step in range(1, 6) if durations.due(step, every=0, total=5)] == [5]
