"""The sources known by name."""

from __future__ import annotations

from dataclasses import dataclass

from cnnfeat.errors import UsageError, near_names


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """One file of a data set, packed by gzip."""

    name: str  # "train-images-idx3-ubyte.gz"
    sha256: str  # of the file as it is downloaded
    unpacked_sha256: str | None = None  # None: not published


@dataclass(frozen=True, slots=True)
class Dataset:
    """A source known by name. One without files comes with an installed package."""

    name: str
    description: str
    classes: tuple[str, ...]
    mirrors: tuple[str, ...] = ()  # addresses of folders, each ends in "/"
    files: tuple[DatasetFile, ...] = ()


_DIGITS = tuple("0123456789")

DATASETS: dict[str, Dataset] = {
    "mnist": Dataset(
        name="mnist",
        description="70,000 handwritten digits, 28×28 grey",
        classes=_DIGITS,
        mirrors=(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://raw.githubusercontent.com/fgnt/mnist/master/",
        ),
        files=(
            DatasetFile(
                "train-images-idx3-ubyte.gz",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            DatasetFile(
                "train-labels-idx1-ubyte.gz",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            DatasetFile(
                "t10k-images-idx3-ubyte.gz",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            DatasetFile(
                "t10k-labels-idx1-ubyte.gz",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
    ),
    "fashion-mnist": Dataset(
        name="fashion-mnist",
        description="70,000 articles of clothing, 28×28 grey",
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        files=(
            DatasetFile(
                "train-images-idx3-ubyte.gz",
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            DatasetFile(
                "train-labels-idx1-ubyte.gz",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            DatasetFile(
                "t10k-images-idx3-ubyte.gz",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            DatasetFile(
                "t10k-labels-idx1-ubyte.gz",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ),
    ),
    "digits": Dataset(
        name="digits",
        description="1,797 handwritten digits, 8×8 grey, inside scikit-learn",
        classes=_DIGITS,
    ),
}


def get_dataset(name: str) -> Dataset:
    """Find a data set by its name.

    Raises
    ------
    UsageError
        With the names there are.
    """
    if name not in DATASETS:
        raise UsageError(
            f"no source is named {name!r}; known by name: {', '.join(DATASETS)}",
            hint=near_names(name, DATASETS),
        )
    return DATASETS[name]
