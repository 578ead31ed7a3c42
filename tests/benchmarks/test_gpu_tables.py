"""The commands of the tables of a GPU are ones that the benchmarks take."""

import importlib
import re

import pytest

from benchmarks import measure

TEXT = (measure.ROOT / "benchmarks" / "gpu_tables.sh").read_text()
COMMANDS = dict(re.findall(r'^  \[(\w+)\]="(.*)"$', TEXT, re.MULTILINE))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_one_of_the_benchmark(name, capsys):
    script, *words = COMMANDS[name].split()
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{script.removesuffix('.py')}").main(["--help"])
    known = set(re.findall(r"--[\w.-]+", capsys.readouterr().out.partition("options:")[2]))
    assert end.value.code == 0
    assert {word.partition("=")[0] for word in [*words, "--output="]} <= known


def test_each_has_its_place():
    assert sorted(re.search(r"^ORDER=\(([\w\s]+)\)", TEXT, re.MULTILINE)[1].split()) == sorted(COMMANDS)
