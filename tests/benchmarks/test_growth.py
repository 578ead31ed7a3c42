import doctest
import json

import jax
import pytest

from benchmarks import growth, options
from jrobust.errors import InputError
from jrobust.reporting import growth as picture


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setattr(options, "simulate_devices", lambda count: None)  # the tests have theirs
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def row(axis, value, seconds, flops, memory):
    fields = {"seconds_median": seconds, "flops": flops, "program_bytes": memory}
    return {"axis": axis, "value": value, "dtype": "float32"} | fields


def test_examples():
    assert not doctest.testmod(growth).failed


def test_exponents_are_of_each_axis_alone():
    rows = [row("batch", n, 2.0 * n, 5.0 * n**2, None) for n in (1, 2, 4)]
    rows += [row("devices", n, 3.0 * n, 7.0 * n, 8.0 / n) for n in (1, 8)] + [row("steps", 2, 1.0, 1.0, 1.0)]
    assert growth.notes(rows) == [
        "float32 exponents with batch: seconds 1.00, FLOPs 2.00",
        "float32 exponents with devices: seconds 1.00, FLOPs 1.00, memory of the plan -1.00",
        "float32 exponents with steps: one point has none",
    ]


def test_steps_of_an_attack_cost_work_and_no_memory(settings, tmp_path, capsys):
    output, document = tmp_path / "rows.json", tmp_path / "pages" / "growth.md"
    arguments = ["--local", "--batch=4", "--repeats=1", "--axes=steps", f"--output={output}", f"--document={document}"]
    assert growth.main(arguments) == []
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["value"] for row in rows] == [2, 4, 8] == [row["steps"] for row in rows]
    work, memory = ([row[key] for row in rows] for key in ("flops", "program_bytes"))
    assert growth.exponent([2, 4, 8], work) == pytest.approx(1, abs=0.03)
    assert growth.exponent([2, 4, 8], memory) == pytest.approx(0, abs=0.1)
    assert "float32 exponents with steps: seconds" in capsys.readouterr().out
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    assert document.with_suffix(".png").read_bytes() == (tmp_path / "rows.png").read_bytes()
    text = document.read_text()
    assert "(growth.png)" in text and "| steps 8 |" in text and "* float32 exponents with steps: seconds" in text


def test_what_grows_otherwise_is_named():
    well = [row("steps", n, 1.0, 7.0 * n, 9.0) for n in (2, 4, 8)]
    assert growth.surprises(well) == []
    work = [row("steps", n, 1.0, 7.0 * n**2, 9.0) for n in (2, 4, 8)]
    memory = [row("points", n, 1.0, 7.0 * n, 9.0 * n) for n in (2, 4, 8)]
    assert growth.surprises(work + memory) == [
        "float32 steps: FLOPs grow with exponent 2.00, not 0.85 to 1.05",
        "float32 points: memory of the plan grow with exponent 1.00, not -0.1 to 0.1",
    ]
    assert growth.surprises([row("devices", 1, 1.0, 7.0, 9.0)]) == []


def test_nothing_to_draw(tmp_path):
    assert not picture.draw([], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [("--axes=step", "did you mean 'steps'"), ("--batch=6", "--batch=6: expected a multiple of 4")],
)
def test_bad_options(argument, message, settings, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(InputError, match=message):
        growth.main(["--local", argument])
