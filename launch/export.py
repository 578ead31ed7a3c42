"""Write the weights of a trained run for use elsewhere.

    python launch/export.py --workdir=RUN --output=model.safetensors [--format=safetensors] [--step=best]
    python launch/export.py --workdir=RUN --output=model.stablehlo --format=stablehlo

--format=safetensors: the library's own file. Any safetensors reader opens it; the manifest inside it and in FILE.json
says what images the model takes, its classes, and what it was trained on and against.
--format=torch: the same numbers under PyTorch's names and axis orders, for `load_state_dict`; of a CLIP both towers,
so that model.weights of another config takes the file.
--format=stablehlo: one program with the weights inside, which answers logits and input gradients wherever JAX is,
without this library; FILE.json says how.

--step is latest, best (by accuracy during training; on the test split that is an oracle) or the number of a saved step.
"""

from __future__ import annotations

import pathlib

# isort: off
import command  # first: it makes the rest importable

# isort: on
import assembly
import exporting
from absl import flags

from jrobust.errors import InputError, unknown
from jrobust.training.state import count_parameters

# Format -> ending of its files.
FORMATS = {"safetensors": ".safetensors", "torch": ".safetensors", "stablehlo": ".stablehlo"}

WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run")
OUTPUT = flags.DEFINE_string("output", "", "the file to write, ending in .safetensors or .stablehlo")
FORMAT = flags.DEFINE_string("format", "safetensors", f"one of {', '.join(FORMATS)}")
STEP = flags.DEFINE_string("step", "latest", "latest, best or the number of a saved step")
DATA_DIR = flags.DEFINE_string("data_dir", None, "where the data are now, if not where they were at training")


def main() -> None:
    """Run the command."""
    if FORMAT.value not in FORMATS:
        raise unknown("format", FORMAT.value, FORMATS)
    ending = FORMATS[FORMAT.value]
    for flag in (WORKDIR, OUTPUT):
        if not flag.value:
            raise InputError(f"--{flag.name} is missing: expected --workdir=RUN --output=FILE{ending}")
    output = pathlib.Path(OUTPUT.value).expanduser()
    if output.suffix != ending:
        raise InputError(
            f"--output is {OUTPUT.value!r}: expected a name that ends in {ending} for --format={FORMAT.value}"
        )
    print(f"exporting step {STEP.value} of {WORKDIR.value} as {FORMAT.value}", flush=True)
    parts, deployed, step = assembly.restore(WORKDIR.value, STEP.value, DATA_DIR.value)
    chosen = assembly.choice(parts.config, STEP.value)
    if FORMAT.value == "torch":
        layout = exporting.torch(parts, deployed, output)
        written, kind = [output], f"PyTorch names ({layout} layout)"
    else:
        write = exporting.program if FORMAT.value == "stablehlo" else exporting.weights
        manifest = write(parts, deployed, step, output, chosen=chosen)
        written = [output, output.with_name(output.name + ".json")]
        kind = f"SHA-256 {manifest['sha256'][:16]}"
    images = "x".join(map(str, parts.classifier.input_shape))
    size = f"{count_parameters(deployed.params):,} parameters, images {images}, {parts.classifier.num_classes} classes"
    print(f"{parts.config.model.name}: {size}; step {step}{f', {chosen}' if chosen else ''}; {kind}")
    print("wrote " + "\n      ".join(str(path) for path in written))


if __name__ == "__main__":
    command.run(main)
