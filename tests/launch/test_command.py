"""Flags and errors of the commands, in this process."""

import subprocess
import sys

import assembly
import command
import pytest
from absl import flags
from ml_collections import config_flags

from jrobust.errors import InputError

CONFIG = str(command.ROOT / "configs" / "art_digits.py")


@pytest.fixture
def parse(monkeypatch):
    """Parse a command line with flags of its own."""

    def parse(*arguments):
        own = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=own)
        flags.mark_flag_as_required("config", flag_values=own)
        monkeypatch.setattr(command, "FLAGS", own)
        monkeypatch.setattr(command, "set_up", lambda: None)
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        command._parse(sys.argv)
        return own.config

    return parse


def test_overrides(parse):
    config = parse(f"--config={CONFIG}:variant=pgd", "--config.train.steps=7", "--config.method.eps=4/255")
    assert (config.train.steps, config.method.eps, config.method.name) == (7, "4/255", "adversarial")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], r"--config is missing: expected --config=configs/FILE.py"),
        ([f"--config={CONFIG}:variant=foo"], r"^unknown variant 'foo': expected one of natural, pgd, art"),
        ([f"--config={CONFIG}:runlcal"], r"^unknown config argument 'runlcal'.*did you mean 'runlocal'"),
        ([f"--config={CONFIG}", "--config.train.stepz=3"], r"key 'train.stepz'.*did you mean 'train.steps'"),
        ([f"--config={CONFIG}", "--config.trian.steps=3"], r"key 'trian': expected one of .*did you mean 'train'"),
        ([f"--config={CONFIG}", "--config.seed.x=3"], r"seed is no section of the config: it has no key 'x'"),
        ([f"--config={CONFIG}", "--noconfig.data.residnt"], r"did you mean 'data.resident'"),
        ([f"--config={CONFIG}", "--config.train.steps=3.5"], r"--config.train.steps=3.5: expected a whole number"),
        ([f"--config={CONFIG}", "--config.optimizer.momentum=x"], r"--config.optimizer.momentum=x: expected a number"),
        ([f"--config={CONFIG}", "--config.train=3"], r"--config.train=3: this is a section; set one of its keys"),
        (
            ["--config.seed=1", f"--config={CONFIG}"],
            r"--config.seed=1 comes before --config: write --config=FILE first",
        ),
        (["--config=configs/art_digit.py"], r"unknown config file.*did you mean 'configs/art_digits.py'"),
        ([f"--config={CONFIG}", "--cnfig=x"], r"Unknown command line flag 'cnfig'. Did you mean: config"),
        ([f"--config={CONFIG}", "more"], r"unexpected argument 'more'"),
    ],
)
def test_mistakes(parse, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)


def test_a_config_with_an_error_of_its_own(parse, tmp_path):
    for text, message in (
        ("import nothing_like_this", "nothing_like_this"),
        ("def get_config(): return 1 + ''", "str"),
    ):
        path = tmp_path / "bad.py"
        path.write_text(text)
        with pytest.raises((InputError, ImportError), match=message):
            parse(f"--config={path}")


def test_the_name_of_a_run(parse):
    config = parse(f"--config={CONFIG}:variant=pgd,runlocal", "--config.seed=3")
    assert assembly.run_name(command.config_argument(), config) == "art_digits-pgd-runlocal-3"
    config = parse("--config", CONFIG)
    assert assembly.run_name(command.config_argument(), config) == "art_digits-art-0"


def test_a_config_comes_back_from_its_file(parse, tmp_path):
    config = parse(f"--config={CONFIG}")
    (tmp_path / "config.json").write_text(config.to_json())
    assert assembly.read_config(tmp_path).to_dict() == config.to_dict()
    with pytest.raises(InputError, match="expected the folder of a run"):
        assembly.read_config(tmp_path / "nowhere")


SCRIPT = """
import sys; sys.path.insert(0, sys.argv.pop(1)); import command
from jrobust.errors import InputError
def main():
    import warnings; warnings.warn("mind the gap")
    raise InputError("found x: expected y")
command.run(main)
"""


@pytest.mark.parametrize("arguments, shows", [([], False), (["--traceback"], True)])
def test_one_line_and_status_1(arguments, shows):
    script = [sys.executable, "-c", SCRIPT, str(command.ROOT / "launch"), *arguments]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "warning: mind the gap" and lines[-1] == "error: found x: expected y"
    assert ("Traceback" in done.stderr) == shows and (len(lines) == 2) != shows


def test_what_failed_is_said_in_the_end(capsys):
    assert command.conclude([]) == 0 and capsys.readouterr().err == ""
    assert command.conclude(["sanity failed: this", "sanity failed: that"]) == 1
    assert capsys.readouterr().err == "sanity failed: this\nsanity failed: that\n"
