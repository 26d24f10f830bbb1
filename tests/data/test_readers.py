import hashlib

import pytest
import scipy.io
import torch
from torchvision import datasets

from phalanx.data import catalog, load_data, readers
from phalanx.errors import DataError


def write_idx(path, values):
    """A file in MNIST's format."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.numpy().tobytes())


@pytest.fixture
def small_mnist(tmp_path):
    """A MNIST of 5 and 3 images, and what the catalog would have to say of it."""
    digest = []
    for part, count in (("train", 5), ("t10k", 3)):
        images = torch.randint(256, (count, 28, 28), dtype=torch.uint8)
        labels = torch.arange(count, dtype=torch.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = tmp_path / "MNIST" / "raw" / f"{part}-{name}-ubyte"
            write_idx(path, values)
            digest.append(hashlib.md5(path.read_bytes()).hexdigest())
    known = catalog.info("mnist").model_copy(
        update={"md5": tuple(digest), "train_size": 5, "test_size": 3}
    )
    return tmp_path, known


def test_idx(small_mnist):
    root, known = small_mnist
    (images, labels), (test_images, test_labels) = readers.read(
        known, root=root, download=False
    ).parts
    assert images.shape == (5, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert (len(test_images), test_labels.dtype) == (3, torch.int64)


def test_missing(tmp_path):
    with pytest.raises(DataError) as error:
        load_data("mnist", root=tmp_path)
    assert str(error.value) == (
        f"data set 'mnist' is not in {tmp_path}: missing MNIST/raw/train-images-idx3-ubyte, "
        "MNIST/raw/train-labels-idx1-ubyte, MNIST/raw/t10k-images-idx3-ubyte, "
        "MNIST/raw/t10k-labels-idx1-ubyte. Add --download (download=True) to fetch it, or name "
        "the folder that has it by --data-root or PHALANX_DATA (root=)"
    )


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"])
def test_missing_of_any_kind(name, tmp_path):
    with pytest.raises(DataError, match=f"data set '{name}' is not in "):
        load_data(name, root=tmp_path / "no" / "such" / "folder")


def test_no_root():
    with pytest.raises(DataError) as error:
        load_data("cifar10")
    assert str(error.value) == (
        "data set 'cifar10' needs a folder: give root= (on the command line --data-root or "
        "PHALANX_DATA)"
    )


def test_one_flipped_bit(small_mnist):
    root, known = small_mnist
    path = root / known.files[0]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        readers.read(known, root=root, download=False)
    found = hashlib.md5(content).hexdigest()
    assert str(error.value) == (
        f"data set 'mnist' in {root} is damaged (train-images-idx3-ubyte has MD5 {found}, not "
        f"{known.md5[0]}). Delete {root / 'MNIST'} and fetch it again, by --download "
        "(download=True)"
    )


def test_truncated_cifar(tmp_path):
    for file in catalog.info("cifar10").files:
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x80\x02half of a pickle")
    with pytest.raises(DataError, match=r"'cifar10' in .* is damaged \(RuntimeError: "):
        load_data("cifar10", root=tmp_path)


def test_a_folder_in_place_of_a_file(small_mnist):
    root, known = small_mnist
    (root / known.files[1]).unlink()
    (root / known.files[1]).mkdir()
    with pytest.raises(DataError, match="missing MNIST/raw/train-labels-idx1-ubyte"):
        readers.read(known, root=root, download=False)


def test_another_number_of_images(small_mnist):
    root, known = small_mnist
    known = known.model_copy(update={"train_size": 6})
    with pytest.raises(DataError, match=r"is damaged \(images \(5, 1, 28, 28\), labels 5\)"):
        readers.read(known, root=root, download=False)


def test_svhn(tmp_path, monkeypatch):
    """The real one is not at hand: files of the same format, with 10 for the digit 0."""
    sizes = {"train": 4, "test": 2}
    table = {}
    for split, count in sizes.items():
        pixels = torch.arange(32 * 32 * 3 * count).remainder(251).reshape(32, 32, 3, count)
        labels = torch.tensor([[10], [1], [2], [9]][:count])
        path = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": pixels.to(torch.uint8).numpy(), "y": labels.numpy()})
        table[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", table)
    known = catalog.info("svhn").model_copy(update={"train_size": 4, "test_size": 2})
    (images, labels), _ = readers.read(known, root=tmp_path, download=False).parts
    assert images.shape == (4, 3, 32, 32)
    assert images.is_contiguous()
    assert labels.tolist() == [0, 1, 2, 9]
    assert int(images[1, 2, 0, 3]) == (((0 * 32 + 3) * 3 + 2) * 4 + 1) % 251


def test_download_only_when_asked(small_mnist, monkeypatch):
    root, known = small_mnist
    asked = []
    monkeypatch.setattr(
        datasets.MNIST, "__init__", lambda self, root, download: asked.append((root, download))
    )
    readers.read(known, root=root, download=False)
    assert asked == []
    readers.read(known, root=root, download=True)
    assert asked == [(root, True)]


def test_failed_download(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("Error downloading train.gz")

    monkeypatch.setattr(datasets.MNIST, "download", refuse)
    with pytest.raises(DataError) as error:
        load_data("mnist", root=tmp_path, download=True)
    assert str(error.value) == (
        f"data set 'mnist' could not be downloaded to {tmp_path}: Error downloading train.gz. Put "
        "its files (MNIST/raw/train-images-idx3-ubyte, MNIST/raw/train-labels-idx1-ubyte, "
        "MNIST/raw/t10k-images-idx3-ubyte, MNIST/raw/t10k-labels-idx1-ubyte) there by hand"
    )
