from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets.classes import COCO14, VOC12, ClassList, load_class_list, palette
from pipelines.errors import UsageError


@pytest.mark.parametrize(
    ("classes", "key", "names"), [(VOC12, "voc12", "official"), (COCO14, "coco14", "official_80_contiguous")]
)
def test_shipped_lists_equal_the_published_facts(shared_data: Path, classes: ClassList, key: str, names: str) -> None:
    facts = json.loads((shared_data / "reference" / "class_names.json").read_text())
    assert list(classes.names) == facts[key][names]
    assert list(classes.prompts) == facts[key]["prompt_names"]
    assert list(classes.background) == facts[key]["background"]
    assert classes.template == facts["prompt_template"]


def test_shipped_lists_have_their_sizes() -> None:
    assert (len(VOC12.names), len(VOC12.background), len(COCO14.names), len(COCO14.background)) == (20, 25, 80, 23)
    assert VOC12.label_map_names[:2] == ("background", "aeroplane")
    assert len(VOC12.label_map_names) == 21


def test_shipped_lists_have_super_classes() -> None:
    voc, coco = (dict(zip(one.names, one.supers, strict=True)) for one in (VOC12, COCO14))
    assert sorted(Counter(voc.values()).items()) == [
        ("animal", 6), ("furniture", 3), ("household", 3), ("person", 1), ("vehicle", 7)
    ]  # fmt: skip
    assert (len(set(coco.values())), voc["boat"], coco["boat"]) == (12, "vehicle", "vehicle")
    assert (coco["bench"], coco["tie"], coco["kite"], coco["bowl"]) == ("outdoor", "accessory", "sports", "kitchen")
    assert (coco["cake"], coco["toilet"], coco["cell phone"]) == ("food", "furniture", "electronic")
    assert (coco["refrigerator"], coco["toothbrush"], coco["giraffe"]) == ("appliance", "indoor", "animal")


def test_coco_knows_official_names() -> None:
    ours = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "potted plant": "pottedplant"}
    ours |= {"dining table": "diningtable", "tv": "tvmonitor", "person": "person"}
    assert {official: COCO14.names[COCO14.index(official)] for official in ours} == ours


@pytest.mark.parametrize(("wrong", "near"), [("aeroplan", "aeroplane"), ("Person", "person"), ("tv monitor", "tvmonitor")])
def test_unknown_class_says_which_is_near(wrong: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"unknown class '{wrong}'.*did you mean '{near}'"):
        VOC12.index(wrong)


def test_unknown_class_without_neighbour() -> None:
    with pytest.raises(UsageError, match=r"unknown class 'qqqq', expected one of 20 classes \("):
        VOC12.index("qqqq")


def test_indices_are_ascending_and_single() -> None:
    assert VOC12.indices(["person", "aeroplane", "person"], "here") == (0, 14)
    with pytest.raises(UsageError, match=r"^here: unknown class 'x'"):
        VOC12.indices(["x"], "here")


TOML = """
template = "a photo of a {}."
background = ["sky"]
[[classes]]
name = "cat"
prompt = "small cat"
aliases = ["kitten"]
[[classes]]
name = "dog"
"""
YAML = """
template: a photo of a {}.
background: [sky]
classes:
  - {name: cat, prompt: small cat, aliases: [kitten]}
  - name: dog
"""


@pytest.mark.parametrize(
    ("name", "text"), [("c.toml", TOML), ("c.yaml", YAML), ("c.yml", "\ufeff" + YAML.replace("\n", "\r\n"))]
)
def test_own_list(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    classes = load_class_list(path)
    assert classes == ClassList(("cat", "dog"), ("small cat", "dog"), ("sky",), "a photo of a {}.", (("kitten", "cat"),))
    assert classes.index("kitten") == 0


def test_own_list_has_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("classes: [{name: cat}]")
    assert load_class_list(path) == ClassList(("cat",), ("cat",), VOC12.background, "a clean origami {}.")
    path.write_text("background: []\nclasses: [{name: cat}]")
    assert load_class_list(path).background == ()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.toml", "classes = [", "line 1|Invalid|Unclosed"),
        ("c.toml", "", "classes: missing, expected a list `classes` with one table a class"),
        ("c.toml", "[[classes]]\nname = 3", r"classes\.0\.name: expected text; YAML needs quotes around yes, .*found 3"),
        ("c.toml", "[[classes]]\nname = 'a'\ncolour = 3", r"classes\.0\.colour: unknown key, expected name, prompt"),
        ("c.toml", "[[classes]]\nname = 'a'\n[[classes]]\nname = 'a'", "'a' occurs twice"),
        ("c.toml", "[[classes]]\nname = 'a'\naliases = ['a']", "'a' occurs twice"),
        ("c.toml", "[[classes]]\nname = 'background'", "'background' cannot be a class name"),
        ("c.toml", "[[classes]]\nname = 'a;b'", "'a;b' cannot be a class name"),
        ("c.toml", "[[classes]]\nname = ''", "'' cannot be a class name"),
        ("c.toml", "[[classes]]\nname = 'a'\nprompt = ' '", "prompt or background word is empty"),
        ("c.toml", "classes = [{name = 'a', super = 's'}, {name = 'b'}]", "class 'b' has no super-class, others have"),
        ("c.toml", "classes = []", "expected 1 to 254 classes, found 0"),
        ("c.toml", "template = 'a photo'\n[[classes]]\nname = 'a'", "expected a template with one {}"),
        ("c.toml", "template = '{} {0.__class__}'\n[[classes]]\nname = 'a'", "expected a template with one {}"),
        ("c.yaml", "classes: [{name: no}]", r"classes\.0\.name: expected text; YAML needs quotes .*found False"),
        ("c.yaml", "classes: [mug, cup]", r"classes\.0: expected a table with a `name`, such as {name: mug}, found 'mug'"),
        ("c.toml", "classes = 'mug'", "classes: expected a list `classes`.*found 'mug'"),
        ("c.yaml", "classes: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("c.yaml", "just text", "expected a list `classes` with one table a class, each with a `name`, found 'just text'"),
        ("c.json", "{}", "expected a class list .toml or .yaml, found '.json'"),
    ],
)
def test_bad_list_is_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_class_list(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_and_binary_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_class_list(tmp_path / "c.toml")
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="utf-8"):
        load_class_list(tmp_path / "c.toml")


def test_label_maps_bound_the_number_of_classes() -> None:
    names = tuple(f"c{number}" for number in range(255))
    with pytest.raises(UsageError, match="expected 1 to 254 classes, found 255"):
        ClassList(names, names, ())
    assert len(ClassList(names[:254], names[:254], ()).label_map_names) == 255


def test_palette_equals_the_devkit_loop() -> None:
    twin = np.zeros((256, 3), np.uint8)
    for index in range(256):
        rest, colour = index, [0, 0, 0]
        for bit in range(7, -1, -1):
            for channel in range(3):
                colour[channel] |= ((rest >> channel) & 1) << bit
            rest >>= 3
        twin[index] = colour
    assert palette().dtype == np.uint8
    np.testing.assert_array_equal(palette(), twin)
    assert palette()[[0, 1, 15, 255]].tolist() == [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]


@pytest.mark.parametrize("classes", [VOC12, COCO14])
def test_shipped_lists_keep_all_their_words(classes: ClassList) -> None:
    assert classes.notes == ()


def test_background_words_that_are_classes_are_left_out() -> None:
    words = ("Tree", "road", "wall", "sea side", "kerb", "streets", "box", "grass", "gras")
    names, prompts = ("trees", "way", "coast", "boxes", "glass"), ("trees", "road,street", "coast", "boxes", "glass")
    classes = ClassList(names, prompts, words, aliases=(("sea-side", "coast"),))
    assert classes.background == ("wall", "kerb", "grass", "gras")
    assert classes.notes == ("background words that are classes are left out: Tree, road, sea side, streets, box",)
