"""What a text tower is told of each class: a sentence around its cleaned name, as PMG-AFT and TeCoA word it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jrobust.data import imagenet_names, shapes
from jrobust.data.catalogue import DATA_SETS
from jrobust.data.prompt_templates import OPENAI_80
from jrobust.errors import InputError, unknown

PHOTO = "This is a photo of a {}"
ENSEMBLES = {"openai_80": OPENAI_80}
# The first word is misspelt in all published results.
_PCAM = ("Tthis is a photo of healthy lymph node tissue.", "This is a photo of lymph node tumor tissue.")
_PCAM_NAMES = ("healthy lymph node tissue", "lymph node tumor tissue")
_WNID = re.compile(r"n\d{8}")


class Wording(NamedTuple):
    """How the classes of a data set are put into words.

    Attributes:
      template: the sentence, with the name in place of {}.
      cleaned: from the name that the data set gives a class to that of the sentence.
      whole: there is one list of classes, so that a shorter one is an error; of others a part may be there.
      same: classes may share a name; where they do, the lower one is predicted.
    """

    template: str
    cleaned: Callable[[str], str]
    whole: bool = False
    same: bool = False


def _spaced(name: str, spaces: str = "_-") -> str:
    """Return the name in lower case, with each of `spaces` a space, and single spaces."""
    return " ".join(name.lower().translate(dict.fromkeys(map(ord, spaces), " ")).split())


def _plain(name: str) -> str:
    return _spaced(name, "_-/")


def _scene(name: str) -> str:
    return _plain(re.sub(r"^/?\w/", "", name))  # /a/abbey


def _together(name: str) -> str:
    return "".join(_spaced(name).split())  # AnnualCrop


def _aircraft(name: str) -> str:
    return _spaced(f"Boeing {name}" if name.startswith("7") else name, "_")


def _without_year(name: str) -> str:
    return _spaced(re.sub(r" \d{4}$", "", name))


def _without_number(name: str) -> str:
    return _spaced(re.sub(r"^\d{3}\.", "", name))  # 008.bathtub


def _lemma(name: str) -> str:
    """Return the first lemma of a WordNet id, of a list "kit fox, Vulpes macrotis", or of a name with its id behind."""
    if _WNID.fullmatch(name):
        if name not in imagenet_names.lemmas():
            raise InputError(
                f"class {name} is none of ImageNet's 1000, and its name is not known: lay the data set's words.txt "
                "beside its classes"
            )
        name = imagenet_names.lemmas()[name]
    return _plain(re.sub(rf" \({_WNID.pattern}\)$", "", name).split(",")[0])


# They have ImageNet's classes, and its words.
_AS_IMAGENET = ("imagenet_samples", "imagenet_v2", "imagenet_r", "imagenet_sketch", "imagenet_a")
WORDINGS = {
    "cifar10": Wording(PHOTO, _plain, whole=True),
    "cifar100": Wording(PHOTO, _plain, whole=True),
    "stl10": Wording(PHOTO, _plain, whole=True),
    "sun397": Wording(PHOTO, _scene),
    "food101": Wording("A photo of {}, a type of food.", _spaced),
    "oxford_pets": Wording("A photo of a {}, a type of pet.", _spaced),
    "flowers102": Wording("A photo of a {}, a type of flower.", _spaced),
    "dtd": Wording("A surface with a {} texture.", _spaced),
    "eurosat": Wording("A centered satellite photo of {}.", _together),
    "fgvc_aircraft": Wording("A photo of a {}, a type of aircraft.", _aircraft),
    "tiny_imagenet": Wording(PHOTO, _lemma, same=True),
    "imagenet": Wording(PHOTO, _lemma, same=True),  # crane and maillot twice, and the corgi Cardigan and the jacket
    "caltech101": Wording("A photo of a {}.", _spaced),
    "caltech256": Wording("A photo of a {}.", _without_number),
    "stanford_cars": Wording("A photo of a {}.", _without_year, same=True),  # years apart: Audi S4 Sedan 2007, 2012
    "pcam": Wording(PHOTO, _plain, whole=True),
}


def prompts(
    data_set: str, class_names: Sequence[str], template: str | Sequence[str] = "", *, num_classes: int | None = None
) -> list[list[str]]:
    """Return what each class is called in text: one list of texts a class, more than one with several templates.

    Args:
      data_set: the name by which it was loaded. The data sets of `WORDINGS` have their own template and their own way
        of cleaning names, "shapes" those of its tasks (the class names tell which); all others have `PHOTO`, with names
        in lower case and `_`, `-` and `/` a space.
      class_names: as the source has them.
      template: replaces the data set's own: a text with {}, several of them, or "openai_80" of `ENSEMBLES`, which takes
        ImageNet's classes by the names that CLIP's authors gave them.
      num_classes: what labels or a network have, to be compared with the names.

    >>> prompts("stanford_cars", ["Audi S4 Sedan 2012", "Ford GT Coupe 2006"])
    [['A photo of a audi s4 sedan.'], ['A photo of a ford gt coupe.']]
    >>> prompts("own", ["Maple_leaf"], ("a {}.", "my {}."))
    [['a maple leaf.', 'my maple leaf.']]

    Raises:
      InputError: a template without {}; a class without a name, or two with the same one; numbers for names; or another
        number of classes than the data set or `num_classes` have.
    """
    names = [str(name) for name in class_names]
    data_set, _, task = data_set.partition(":") if data_set.startswith("shapes:") else (data_set, "", "")
    data_set = "imagenet" if data_set in _AS_IMAGENET else data_set
    wording = _shapes_wording(names, task) if data_set == "shapes" else WORDINGS.get(data_set, Wording(PHOTO, _plain))
    _check_count(data_set, names, wording.whole, num_classes)
    texts = _templates(template)
    if data_set == "pcam":
        return [[text] for text in _PCAM] if not texts else _filled(texts, _PCAM_NAMES)
    _check_given(data_set, names)
    if data_set == "imagenet" and template == "openai_80":
        return _filled(texts, _openai(names))
    cleaned = [wording.cleaned(name) for name in names]
    _check_cleaned(data_set, names, cleaned, wording.same)
    return _filled(texts or (wording.template,), cleaned)


def _filled(templates: Sequence[str], names: Sequence[str]) -> list[list[str]]:
    return [[template.replace("{}", name) for template in templates] for name in names]


def _templates(template: str | Sequence[str]) -> tuple[str, ...]:
    """Return the templates that are asked for; none for the data set's own."""
    texts = ENSEMBLES.get(template, (template,) if template else ()) if isinstance(template, str) else tuple(template)
    for text in texts:
        if text.count("{}") != 1:
            if " " not in text:
                raise unknown("template", text, ENSEMBLES, "or a text with {} where the name of the class goes")
            raise InputError(
                f"template {text!r} has {text.count('{}')} times {{}}: expected one, where the name of the class goes, "
                f"as in {PHOTO!r}"
            )
    return texts


def _shapes_wording(names: list[str], task: str) -> Wording:
    """Return the template of the task that has these classes, which are named as they are."""
    tasks = [known for known in shapes.TASKS if shapes.class_names(known) == tuple(names)]
    if task and task not in shapes.TASKS:
        raise unknown("task of shapes", task, shapes.TASKS)
    if not tasks or (task and task not in tasks):
        raise InputError(
            f"shapes has no task with the {len(names)} classes {', '.join(names):.60}: expected those of "
            f"{task or 'one of ' + ', '.join(shapes.TASKS)}"
        )
    return Wording(shapes.TEMPLATES[tasks[0]], str, whole=True)


def _check_count(data_set: str, names: list[str], whole: bool, num_classes: int | None) -> None:
    known = DATA_SETS[data_set].num_classes if data_set in WORDINGS and data_set in DATA_SETS else None
    if known is not None and (len(names) > known or (whole and len(names) < known)):
        raise InputError(f"{len(names)} class names for {data_set}: it has {known} classes; give one name for each")
    if not names or (num_classes is not None and len(names) != num_classes):
        expected = "at least one" if num_classes is None else str(num_classes)
        raise InputError(f"{len(names)} class names for {data_set}: expected {expected}, one for each label")


def _check_given(data_set: str, names: list[str]) -> None:
    if data_set in WORDINGS and all(name.isdecimal() for name in names):
        raise InputError(
            f"the classes of {data_set} are numbers, {', '.join(names[:3])}: expected names, for "
            "prompts; put the list of names there that the data set comes with"
        )


def _check_cleaned(data_set: str, names: list[str], cleaned: list[str], same: bool) -> None:
    """Raise if a class has no name, or two share one where the data set knows of none that do."""
    first: dict[str, int] = {}
    for k, name in enumerate(cleaned):
        if not name:
            raise InputError(
                f"class {k} of {data_set} is called {names[k]!r}: expected a name, of which a prompt is made"
            )
        if name in first and not same:
            j = first[name]
            raise InputError(
                f"classes {j} and {k} of {data_set}, {names[j]!r} and {names[k]!r}, are both {name!r} in prompts, so "
                "that no text tells them apart: rename one"
            )
        first.setdefault(name, k)


def _openai(names: list[str]) -> list[str]:
    """Return the names of CLIP's authors: by WordNet id, or by position if all 1000 classes are there."""
    known = imagenet_names.openai_names()
    if all(name in known for name in names):
        return [known[name] for name in names]
    if len(names) != len(known):
        raise InputError(
            f"{len(names)} classes of imagenet for openai_80, such as {names[0]!r}: expected WordNet ids, or all "
            f"{len(known)} classes in the order of their ids"
        )
    return list(known.values())
