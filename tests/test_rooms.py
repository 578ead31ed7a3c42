"""The floors of the house: which room may import which, and who alone imports a library."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "jrobust"
GROUND = {"errors", "units", "loops", "keys", "pickle_machine", "pickled", "provenance", "replicated", "xla_flags"}
CONTRACT = "jrobust.training.method"

# A room, and the rooms above which it stands.
BELOW = {
    "attacks": set(),
    "attributions": set(),
    "models": set(),
    "data": set(),
    "weights": {"models"},
    "methods": {"attacks", "attributions", "models"},
    "training": set(),
    "evaluation": {"attacks", "attributions", "data"},
    "reporting": set(),
}
# A library, and the files or rooms that alone may import it.
IMPORTERS = {
    "orbax": {"training/checkpoint.py"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "flax": {"models"},
    "tensorboardX": {"training/logging.py"},
    "matplotlib": {"reporting"},
    "jinja2": {"reporting"},
    "torch": set(),
    "tensorflow": set(),
    "cv2": {"data"},
}
# Imported where they are used, so that training from arrays works without them.
LAZY = {"grain", "tensorflow_datasets", "tensorboardX", "matplotlib", "cv2"}
FILES = sorted(ROOT.rglob("*.py"))


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_upwards_or_across(path):
    name = path.relative_to(ROOT)
    tree = ast.parse(path.read_text())
    top_level = {id(node) for node in tree.body}
    room = name.parts[0] if len(name.parts) > 1 else None
    for module, node in imports(tree):
        library = module.split(".")[0]
        if library == "jrobust" and module not in ("jrobust", "jrobust.__version__"):
            target = module.split(".")[1]
            allowed = GROUND | (BELOW[room] | {room} if room else set())
            assert target in allowed or module.startswith(CONTRACT), f"{name} imports {module}"
        if library in IMPORTERS:
            allowed_files = IMPORTERS[library]
            assert room in allowed_files or str(name) in allowed_files, f"{name} imports {library}"
        if library in LAZY:
            assert id(node) not in top_level, f"{name} imports {library} when it is itself imported"


def test_every_room_is_listed():
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(BELOW)


def test_no_room_of_odds_and_ends():
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "misc", "common")]
