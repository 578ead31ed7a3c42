import json
import subprocess
import sys

import pytest

from jrobust.errors import InputError
from jrobust.training import run_folder

CONFIG = {"seed": 0, "train": {"steps": 3, "batch_size": 4}, "model": {"mean": (0.1, 0.2)}}


def test_the_config_is_written_and_the_same_one_is_let_in(tmp_path):
    for _ in range(2):
        with run_folder.opened(tmp_path / "a" / "run", CONFIG) as folder:
            saved = json.loads((folder / "config.json").read_text())
    assert saved == json.loads(json.dumps(CONFIG))


def test_another_config_is_named(tmp_path):
    with run_folder.opened(tmp_path, CONFIG):
        pass
    before = (tmp_path / "config.json").read_bytes()
    other = CONFIG | {"train": {"steps": 3, "batch_size": 8}, "new": 1}
    with (
        pytest.raises(InputError, match=r"new is 'not set' there and 1 here; train.batch_size is 4 there and 8 here"),
        run_folder.opened(tmp_path, other),
    ):
        pass
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_run_may_be_made_longer(tmp_path):
    with run_folder.opened(tmp_path, CONFIG):
        pass
    longer = CONFIG | {"train": {"steps": 6, "batch_size": 4}, "evaluation": {"examples": 3}}
    with run_folder.opened(tmp_path, longer):
        assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 6


def test_one_process_at_a_time(tmp_path):
    script = (
        "import sys; from jrobust.training import run_folder\n"
        "with run_folder.opened(sys.argv[1], {}): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(InputError, match=r"another process is training in"), run_folder.opened(tmp_path, {}):
            pass
        other.stdin.close()
        other.wait()
    with run_folder.opened(tmp_path, {}):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to"), run_folder.opened(tmp_path / "file" / "run", {}):
        pass


def test_environment(tmp_path):
    run_folder.record_environment(tmp_path, 5, step=0)
    first = json.loads((tmp_path / "environment.json").read_text())
    assert first["seed"] == 5 and first["devices"]["count"] == 8 and first["versions"]["jax"]
    run_folder.record_environment(tmp_path, 5, step=20)
    second = json.loads((tmp_path / "environment.json").read_text())
    assert second.pop("resumed") == [{"step": 20} | first]
    assert second == first
