"""Sources: the usual layouts are found, labels are the class map's, and no image is in both parts."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pictures import PREPROCESSING, folders, png, tar, values
from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions

from ptmq_lightning.data import sources as sources_file
from ptmq_lightning.data.images import UNLABELED
from ptmq_lightning.data.sources import open_data, permutation
from ptmq_lightning.runtime.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folders(tmp_path / "train", "ab", 4)
    folders(tmp_path / "val", "ab", 3, first=100)
    return tmp_path


def test_a_root_of_folders_is_found(root: Path) -> None:
    sources = open_data("imagefolder", root=root, preprocessing=PREPROCESSING)
    assert values(sources.train) == list(range(8))
    assert [sources.val[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert sources.describe() == {
        "name": "imagefolder",
        "train": str(root / "train"),
        "val": str(root / "val"),
        "train_images": 8,
        "val_images": 6,
        "num_classes": 2,
    }


def test_a_root_of_tars_gives_what_its_folders_give(root: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    tar(packed / "calib.tar", root / "train")
    tar(packed / "val.tar", root / "val")
    plain = open_data("imagefolder", root=root, preprocessing=PREPROCESSING)
    tars = open_data("imagefolder", root=packed, preprocessing=PREPROCESSING)
    for ours, theirs in ((plain.train, tars.train), (plain.val, tars.val)):
        assert len(ours) == len(theirs)
        assert all(torch.equal(ours[i][0], theirs[i][0]) and ours[i][1] == theirs[i][1] for i in range(len(ours)))


def test_images_of_the_networks_size_are_neither_resized_nor_cropped(root: Path) -> None:
    image, _ = open_data("imagefolder", root=root, preprocessing=PREPROCESSING).train[3]
    expected = (torch.tensor([3, 0, 252]) / 255 - 0.5) / 0.5
    assert torch.equal(image, expected.view(3, 1, 1).expand(3, 8, 8))


def test_the_class_map_beside_the_data_numbers_the_classes(root: Path) -> None:
    (root / "class_map.txt").write_text("z\nb\ny\na\n")
    sources = open_data("imagefolder", root=root, preprocessing=PREPROCESSING)
    assert [sources.val[i][1] for i in range(6)] == [3, 3, 3, 1, 1, 1]
    assert sources.num_classes == 4


def test_imagenet_folders_get_their_usual_numbers_without_a_class_map(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "n15075141").mkdir(parents=True)  # the last class, toilet tissue
        (tmp_path / part / "n15075141" / "x.png").write_bytes(png(7 if part == "train" else 8))
    sources = open_data("imagenet", root=tmp_path, preprocessing=PREPROCESSING)
    assert (sources.val[0][1], sources.num_classes) == (999, 1000)


def test_calibration_images_need_no_class_folders(root: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    (loose / "1.png").write_bytes(png(1))
    sources = open_data("imagefolder", train=loose, val=root / "val", preprocessing=PREPROCESSING)
    assert sources.train[0][1] == UNLABELED
    assert sources.num_classes == 2


def test_the_evaluation_subset_is_seeded(root: Path) -> None:
    def chosen(seed: int) -> list[int]:
        return values(open_data("imagefolder", root=root, val_images=3, seed=seed, preprocessing=PREPROCESSING).val)

    assert chosen(0) == chosen(0) == sorted(chosen(0))
    assert len({tuple(chosen(seed)) for seed in range(5)}) > 1


def test_the_permutation_is_the_same_on_every_platform() -> None:
    assert permutation(10, 0) == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]  # numpy's frozen legacy stream


def test_one_source_for_both_is_divided_without_overlap(root: Path) -> None:
    place = root / "train"
    sources = open_data("imagefolder", train=place, val=place, calibration_images=5, preprocessing=PREPROCESSING)
    train, val = set(values(sources.train)), set(values(sources.val))
    assert (len(train), len(val), train & val) == (5, 3, set())


def test_one_source_with_too_few_images_is_an_error(root: Path) -> None:
    place = root / "train"
    keys = {"train": place, "val": place, "calibration_images": 6, "val_images": 3}
    with pytest.raises(DataError) as error:
        open_data("imagefolder", **keys, preprocessing=PREPROCESSING)
    assert str(error.value) == (
        "data.train and data.val are one source of 8 images, too few for 6 calibration and 3 evaluation images without "
        "overlap; lower data.calibration_images or data.val_images"
    )


def test_a_folder_inside_the_other_is_an_error(root: Path) -> None:
    with pytest.raises(DataError) as error:
        open_data("imagefolder", train=root, val=root / "val", preprocessing=PREPROCESSING)
    assert str(error.value) == (
        f"data.train={root} and data.val={root / 'val'} overlap: one folder lies in the other; give "
        "two separate folders, "
        "or the same one for both (disjoint images are then drawn from it)"
    )


CURE = (
    "Set data.root=DIR (holding train.tar or train or calib.tar or calib for calibration and val.tar "
    "or val or validation "
    "for evaluation), or data.train=... and data.val=..., each a folder of class folders, a .tar of "
    "them or hfds/NAME:SPLIT"
)


def test_no_data_at_all_is_one_error_that_says_what_to_set() -> None:
    with pytest.raises(DataError) as error:
        open_data("imagenet", preprocessing=PREPROCESSING)
    assert str(error.value) == f"data=imagenet: data.train is not set; data.val is not set. {CURE}"


def test_an_empty_root_is_one_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_data("cifar10", root=tmp_path, preprocessing=PREPROCESSING)
    assert str(error.value) == (
        f"data=cifar10: none of train.tar, train, calib.tar, calib in data.root={tmp_path}; "
        f"none of val.tar, val, validation in data.root={tmp_path}. {CURE}"
    )


def test_a_missing_path_is_named(root: Path) -> None:
    with pytest.raises(DataError) as error:
        open_data("imagefolder", root=root, val="nowhere", preprocessing=PREPROCESSING)
    assert str(error.value) == f"data=imagefolder: data.val=nowhere does not exist. {CURE}"


def test_class_folders_that_differ_want_a_class_map(tmp_path: Path) -> None:
    train, val = folders(tmp_path / "t", "ab", 1), folders(tmp_path / "v", "bc", 1, first=50)
    with pytest.raises(DataError) as error:
        open_data("imagefolder", train=train, val=val, preprocessing=PREPROCESSING)
    assert str(error.value) == (
        "data=imagefolder: the class folders of data.train (2) and data.val (2) differ, so neither "
        "numbers the classes; "
        "set data.class_map=FILE with one folder name a line"
    )


def test_evaluation_folders_beyond_the_class_map_are_an_error(root: Path) -> None:
    (root / "map.txt").write_text("a\n")
    with pytest.raises(DataError) as error:
        open_data("imagefolder", root=root, class_map=root / "map.txt", preprocessing=PREPROCESSING)
    assert str(error.value) == (
        f"data=imagefolder: 1 class folders of data.val={root / 'val'} are not in the class map ('b'); "
        "set data.class_map=FILE with one folder name a line"
    )


def test_a_class_map_that_is_no_text_file_is_an_error(root: Path) -> None:
    with pytest.raises(DataError) as error:
        open_data("imagefolder", root=root, class_map="map.json", preprocessing=PREPROCESSING)
    assert str(error.value) == (
        "data.class_map=map.json is not a text file; expected one class folder's name a line, "
        "the line's number (from 0) being the class"
    )


def test_evaluation_images_without_class_folders_are_an_error(root: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    (loose / "1.png").write_bytes(png(1))
    with pytest.raises(DataError) as error:
        open_data("imagefolder", train=root / "train", val=loose, preprocessing=PREPROCESSING)
    assert str(error.value) == (
        f"data.val={loose} has images but no classes; evaluation wants each image in a folder named by its class"
    )


def test_other_folders_are_no_cifar10(root: Path) -> None:
    with pytest.raises(DataError) as error:
        open_data("cifar10", root=root, preprocessing=PREPROCESSING)
    assert str(error.value) == (
        "data=cifar10: 2 class folders found, expected the 10 classes of CIFAR-10; use "
        "data=imagefolder for other images"
    )


def test_more_evaluation_images_than_there_are_is_an_error(root: Path) -> None:
    with pytest.raises(DataError) as error:
        open_data("imagefolder", root=root, val_images=7, preprocessing=PREPROCESSING)
    assert str(error.value) == ("data.val_images=7, but data.val holds 6 images; set data.val_images between 1 and 6")


def test_a_source_without_images_is_an_error(root: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError) as error:
        open_data("imagefolder", train=empty, val=root / "val", preprocessing=PREPROCESSING)
    assert str(error.value).startswith(f"data.train={empty} cannot be read as images (")
    assert str(error.value).endswith("); expected a folder of class folders, a .tar of them or hfds/NAME:SPLIT")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A hub of one data set with four images; what was asked of it, (name, split) each."""
    asked: list[tuple[str, str]] = []

    class Reader:
        def __init__(self) -> None:
            self.class_to_idx = {"tench, Tinca tinca": 0, "goldfish": 1}

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
            return io.BytesIO(png(index)), index % 2

        def filename(self, index: int) -> str:
            return str(index)

    def create_dataset(name: str, split: str) -> SimpleNamespace:
        asked.append((name, split))
        return SimpleNamespace(reader=Reader())

    monkeypatch.setattr(sources_file, "create_dataset", create_dataset)
    return asked


def test_a_hub_data_set_is_asked_for_its_splits_and_numbers_its_own_classes(hub: list[tuple[str, str]]) -> None:
    keys = {"train": "hfds/org/name", "val": "hfds/org/name"}
    sources = open_data("imagenet", **keys, preprocessing=PREPROCESSING)
    assert hub == [("hfds/org/name", "train"), ("hfds/org/name", "validation")]
    assert [label for _, label in sources.val] == [0, 1, 0, 1]


def test_one_split_of_a_hub_data_set_is_divided(hub: list[tuple[str, str]]) -> None:
    keys = {"train": "hfds/org/name:test", "val": "hfds/org/name:test"}
    sources = open_data("imagefolder", **keys, calibration_images=3, preprocessing=PREPROCESSING)
    assert (len(sources.train), len(sources.val)) == (3, 1)


def test_an_unknown_source_is_an_error() -> None:
    with pytest.raises(DataError) as error:
        open_data("mnist", preprocessing=PREPROCESSING)
    assert str(error.value) == "data='mnist' is not known; expected one of cifar10, digits, imagefolder, imagenet"


def test_an_image_that_cannot_be_decoded_is_an_error_and_not_its_neighbor(root: Path) -> None:
    (root / "train" / "a" / "000.png").write_bytes(b"no image")
    sources = open_data("imagefolder", root=root, preprocessing=PREPROCESSING)
    with pytest.raises(DataError, match=r"'a/000\.png of data\.train=.*'"):
        sources.train[0]


def test_pictures_of_every_suffix_are_read_and_timms_list_stays_its_own(root: Path) -> None:
    for suffix in ("webp", "bmp", "gif", "tif"):
        Image.open(root / "val" / "a" / "100.png").save(root / "val" / "a" / f"more.{suffix}")
    before = get_img_extensions()
    assert len(open_data("imagefolder", root=root, preprocessing=PREPROCESSING).val) == 10
    assert get_img_extensions() == before


def test_hidden_folders_are_no_classes(root: Path) -> None:
    shutil.copytree(root / "val" / "b", root / "val" / ".ipynb_checkpoints")
    sources = open_data("imagefolder", root=root, preprocessing=PREPROCESSING)
    assert sources.num_classes == 2 and [sources.val[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]


def test_links_that_lead_nowhere_are_counted(root: Path) -> None:
    (root / "val" / "a" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match=r"1 links lead nowhere \(first: .*gone\.png"):
        open_data("imagefolder", root=root, preprocessing=PREPROCESSING)


def test_a_network_on_gray_images_gets_one_channel(root: Path) -> None:
    gray = SimpleNamespace(**vars(PREPROCESSING) | {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)})
    assert open_data("imagefolder", root=root, preprocessing=gray).val[0][0].shape == (1, 8, 8)


def test_classes_are_called_by_their_folders(root: Path) -> None:
    assert open_data("imagefolder", root=root, preprocessing=PREPROCESSING).classes == ("a", "b")


def test_classes_of_a_map_keep_their_numbers(root: Path) -> None:
    (root / "class_map.txt").write_text("z\nb\ny\na\n")
    assert open_data("imagefolder", root=root, preprocessing=PREPROCESSING).classes == ("z", "b", "y", "a")


def test_imagenets_ids_are_said_in_english(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "n01440764").mkdir(parents=True)
        (tmp_path / part / "n01440764" / "x.png").write_bytes(png(7 if part == "train" else 8))
    classes = open_data("imagenet", root=tmp_path, preprocessing=PREPROCESSING).classes
    assert len(classes) == 1000 and classes[0].startswith("tench") and classes[999].startswith("toilet tissue")


def test_numbered_folders_of_cifar10_have_the_names_of_cifar10(tmp_path: Path) -> None:
    folders(tmp_path / "train", "0123456789", 1)
    folders(tmp_path / "val", "0123456789", 1, first=100)
    assert open_data("cifar10", root=tmp_path, preprocessing=PREPROCESSING).classes[3:5] == ("cat", "deer")
    assert open_data("imagefolder", root=tmp_path, preprocessing=PREPROCESSING).classes[3] == "3"
