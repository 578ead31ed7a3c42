"""What the README and the docstrings of the configs say can be typed as it stands."""

import ast
import importlib
import pathlib
import re
import shlex

import pytest

from jrobust.data import registry
from jrobust.evaluation import suites

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = {"README.md": README} | {
    f"configs/{path.name}": ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    for path in sorted((ROOT / "configs").glob("[!_]*_*.py"))
}


def commands(text):
    """Return the words behind `python` of every command line in a text."""
    lines = re.findall(r"(?:^ *|`)python ((?:launch|benchmarks)/[^`\n]*)", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


COMMANDS = [
    pytest.param(words, id=" ".join([where, *words])) for where in DOCUMENTS for words in commands(DOCUMENTS[where])
]


def test_the_commands_are_found():
    assert len(commands(README)) >= 7
    assert all(commands(text) for text in DOCUMENTS.values())


def get_config(value):
    """Return what a value of --config names, read as the command reads it."""
    path, _, argument = value.partition(":")
    assert (ROOT / path).is_file(), path
    return importlib.import_module(path.removesuffix(".py").replace("/", ".")).get_config(argument)


def flag_names(script):
    """Return the flags that a script, or the file of shared options beside it, defines in its source."""
    text = script.read_text(encoding="utf-8")
    if script.parent.name == "benchmarks":
        text += (script.parent / "options.py").read_text(encoding="utf-8")
    names = re.findall(r'flags\.DEFINE_\w+\(\s*"([\w.]+)"', text)
    return {*names, *re.findall(r'add_argument\(\s*"--([\w-]+)"', text)}


@pytest.mark.parametrize("words", COMMANDS)
def test_command(words):
    script, *arguments = words
    assert (ROOT / script).is_file()
    options = dict(re.fullmatch(r"--([\w.-]+)=?(.*)", word).groups() for word in arguments if word.startswith("--"))
    config = get_config(options.pop("config")).lock() if "config" in options else None
    assert script == "launch/evaluate.py" or (config is not None) == (script in ("launch/run.py", "launch/study.py"))
    for name, value in options.items():
        if name.startswith("config."):
            section = config
            *sections, key = name.split(".")[1:]
            for part in sections:
                section = section[part]
            assert key in section, name
        elif name.startswith("suite."):
            suites.overridden(options["suite"].split(","), {}, {name.removeprefix("suite."): value})
        else:
            assert name in flag_names(ROOT / script), name


def test_python_blocks(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    found = {}
    exec(compile("".join(blocks), "README.md", "exec"), found)
    assert found["result"].success.all() and found["result"].adv_images.shape == (4, 8, 8, 3)
    assert found["verdict"].success.all() and set(found["verdict"].broken_by) == {"apgd-ce"}
    assert capsys.readouterr().out.startswith("[ True")


def test_words_behind_the_colon():
    values = re.findall(r"`--config=(configs/\S+?)`", README)
    assert values
    for value in values:
        get_config(value)


def test_make_targets():
    named = set(re.findall(r"^make (\w+)", README, re.MULTILINE)) | set(re.findall(r"`make (\w+)`", README))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test", "parity"} <= named <= targets


def test_data_sets_and_suites():
    rows = re.findall(r"^\| (`.*?) \|", README, re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert names | {"digits"} == {*registry.DATA_SETS, *registry.FORMS}
    (line,) = re.findall(r"^\* Suites: (.*)\.$", README, re.MULTILINE)
    assert re.findall(r"`(\w+)`", line) == list(suites.SUITES)


def test_paths():
    tree = re.search(r"^```\n(configs/ .*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    inside = re.findall(r"^  (\w+/) ", tree, re.MULTILINE)
    assert {*inside} == {f"{path.parent.name}/" for path in (ROOT / "jrobust").glob("*/__init__.py")}
    outside = re.findall(r"(?:^| {3})(\w+/)(?: |$)", tree, re.MULTILINE)
    assert {"configs/", "launch/", "benchmarks/", "docs/", "jrobust/"} <= {*outside} - {*inside}
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    found = set(re.findall(r"(?<![\w./=*])(?:\.?[a-z][\w.-]*/)+[\w.-]*\w(?=[\s`:,)]|\.\s)", prose))
    found = {path for path in found if not path.endswith("/s") and not path.startswith("runs/")}  # units, results
    assert {"tests/test_rooms.py", "jrobust/training/method.py", ".ci/run"} <= found
    for path in [*outside, *found]:
        assert (ROOT / path).exists() or path in inside, path
