"""What launch/run.py makes sure of before it trains."""

import subprocess
import sys

import command


def test_suites_are_checked_against_the_images_as_they_are_evaluated(tmp_path):
    config = f"--config={command.ROOT}/configs/art_digits.py:variant=natural,runlocal"
    changes = ["--config.data.augment.crop_size=6", "--config.evaluation.attribution.top_k=50"]
    script = [sys.executable, str(command.ROOT / "launch" / "run.py"), config, *changes, f"--workdir={tmp_path}/run"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: top_k=50 of images of 6 x 6")
    assert not (tmp_path / "run" / "checkpoints").exists()
