"""`interrupted_run.py AT SIGNAL FLAGS`: launch/run.py, but it gets a signal as its batch number AT is asked for."""

import os
import pathlib
import signal
import sys


def main():
    at, number = int(sys.argv.pop(1)), signal.Signals[sys.argv.pop(1)]
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "launch"))
    import command
    import run

    from jrobust import data

    following = data.TrainBatches.__next__

    def interrupted(batches):
        if batches.get_state()["step"] == at:
            os.kill(os.getpid(), number)
        return following(batches)

    data.TrainBatches.__next__ = interrupted
    command.define_config()
    command.run(run.main)


if __name__ == "__main__":
    main()
