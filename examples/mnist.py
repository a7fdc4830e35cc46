"""Where the demo and the tests get handwritten digits from: a folder with the four MNIST files, or their like.

1. `DEEPLAMBDA_MNIST_DIR`, when it is set
2. a download, checked against the SHA-256 of what the original files hold
3. the 1,797 digits that scikit-learn ships, scaled to 28×28 and written as IDX files of the same names
"""

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import numpy as np
import urllib3
from numpy.typing import NDArray

from deeplambda.errors import ConfigurationError, CorruptObject
from deeplambda.idx import write_idx

_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"  # PyTorch's mirror
FILES = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def mnist_folder(scratch: Path) -> tuple[Path, str]:
    """The folder, and a sentence that says what is in it. Raises: ConfigurationError."""
    if configured := os.environ.get("DEEPLAMBDA_MNIST_DIR"):
        folder = Path(configured)
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise ConfigurationError(
                f"DEEPLAMBDA_MNIST_DIR={folder} has no {missing[0]}", f"it should hold {', '.join(FILES)}"
            )
        return folder, f"MNIST from {folder}"
    folder = scratch / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    origin = "found in" if all((folder / name).is_file() for name in FILES) else "downloaded to"
    try:
        for name, sha256 in FILES.items():
            _download(name, sha256, folder)
    except urllib3.exceptions.HTTPError as exc:
        folder = scratch / "digits-of-scikit-learn"
        write_small_digits(folder)
        return folder, f"scikit-learn's 1,797 digits, for MNIST could not be downloaded ({type(exc).__name__})"
    return folder, f"MNIST, {origin} {folder}"


def _download(name: str, sha256: str, folder: Path) -> None:
    if (folder / name).is_file():
        return
    retries = urllib3.Retry(2, backoff_factor=0.5)
    form: dict[str, Any] = {"timeout": urllib3.Timeout(connect=5, read=30), "retries": retries}
    proxy = getproxies().get("https")
    with urllib3.ProxyManager(proxy, **form) if proxy else urllib3.PoolManager(**form) as pool:
        response = pool.request("GET", _MIRROR + name)
    if response.status != 200:
        raise urllib3.exceptions.HTTPError(f"{name}: status {response.status}")
    if hashlib.sha256(gzip.decompress(response.data)).hexdigest() != sha256:
        raise CorruptObject(
            f"{response.url} is not the original {name}", "set DEEPLAMBDA_MNIST_DIR to a folder with it"
        )
    partial = folder / f"{name}.partial"
    partial.write_bytes(response.data)
    partial.replace(folder / name)


def write_small_digits(folder: Path) -> None:
    """Scikit-learn's digits as MNIST's files, the test split every sixth of them."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    images_NHW = np.stack([_enlarged(image_HW, Image) for image_HW in digits.images])
    labels_N = digits.target.astype(np.uint8)
    test_N = np.arange(len(labels_N)) % 6 == 0
    folder.mkdir(parents=True, exist_ok=True)
    arrays = (images_NHW[~test_N], labels_N[~test_N], images_NHW[test_N], labels_N[test_N])
    for name, array in zip(FILES, arrays, strict=True):
        (folder / name).write_bytes(write_idx(array))


def _enlarged(image_HW: NDArray[np.float64], image_module: type) -> NDArray[np.uint8]:
    """An 8×8 image of values 0 to 16 as MNIST shows digits: 20×20 pixels in the middle of 28×28, 0 to 255."""
    grey = image_module.fromarray((image_HW * 255 / 16).astype(np.uint8))
    return np.pad(np.asarray(grey.resize((20, 20), image_module.Resampling.BICUBIC)), 4)
