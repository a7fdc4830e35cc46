"""Applications with one mistake each: the check has to find it, in words that lead to it.

All share one interpreter and a model of a few parameters; what is wrong before the export is found without it.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from deeplambda.testing import check_application

SOUND = """
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from deeplambda.application import Application, Choice, Event, LogUniform
from deeplambda.objective import Classification
from deeplambda.sources import ByHash, Csv


class Seen(Event):
    size: Annotated[float, Field(ge=0, le=10)]
    kind: Literal["a", "b"]
    note: str | None = None


class Small(Application):
    name = "small"
    event = Seen
    sources = (Csv("rows.csv", label="answer"),)
    splits = ByHash(train=0.5, test=0.5)
    objective = Classification(("no", "yes"))
    metrics = ("accuracy",)
    hyperparameters = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2, "weight_decay": 0.0}
    search_space = {"learning_rate": LogUniform(1e-4, 1e-2)}

    def transform(self, batch):
        size = np.array(batch["size"].to_pylist(), np.float32)
        kind = np.array([value == "a" for value in batch["kind"].to_pylist()], np.float32)
        length = np.array([len(value or "") for value in batch["note"].to_pylist()], np.float32)
        return np.column_stack([size, kind, length / 1000])

    def build_model(self):
        from torch import nn

        return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
"""

TWO_TENSORS = (
    "return np.column_stack([size, kind, length / 1000])",
    'return {"size": size.reshape(-1, 1), "kind": kind.reshape(-1, 1)}',
)
MODEL = "return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))"
FEATURES = "return np.column_stack([size, kind, length / 1000])"


def net(forward: str, layers: str = "self.last = nn.Linear(3, 2)", arguments: str = "features") -> str:
    """Source of a model of its own within build_model."""
    return f"""
        import torch

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                {layers}

            def forward(self, {arguments}):
                {forward}

        return Net()
"""


def learning(
    body: str, use: str = "return np.column_stack([size, kind, length / 1000])"
) -> tuple[tuple[str, str], ...]:
    """Changes that give the application a `fit`."""
    return (
        (
            "    def transform(self, batch):",
            f"    def fit(self, batches):\n        {body}\n\n    def transform(self, batch, state):",
        ),
        (FEATURES, use),
    )


def hook(name: str, arguments: str, body: str) -> tuple[tuple[str, str], ...]:
    """Changes that give the application a hook of training."""
    return (("    def build_model", f"    def {name}(self, {arguments}):\n        {body}\n\n    def build_model"),)


@dataclass(frozen=True)
class Mistake:
    """changes: what is exchanged in SOUND. check: where it is found. words: that the finding has. rows: of rows.csv.

    line: what stands in the line that a finding names.
    """

    name: str
    changes: tuple[tuple[str, str], ...]
    check: str
    words: tuple[str, ...]
    rows: str | None = None
    line: str | None = None


MISTAKES = [
    Mistake("another name", (('name = "small"', 'name = "other"'),), "source", ("'other'", "one name")),
    Mistake(
        "two applications",
        (("class Small(", "class Second(Application):\n    pass\n\n\nclass Small("),),
        "source",
        ("2 applications, Second, Small", "exactly one"),
    ),
    Mistake(
        "no Python",
        (("class Small(Application):", "class Small(Application)"),),
        "source",
        ("no Python",),
        line="class Small(Application)",
    ),
    Mistake(
        "an expectation of a field that is never null",
        (
            ("import Application, Choice, Event, LogUniform", "import Application, Choice, Event, Expect, LogUniform"),
            ('    name = "small"', '    name = "small"\n    expectations = (Expect("nulls", 0.1, field="size"),)'),
        ),
        "event",
        ("nulls of 'size'", "note"),
        line="expectations =",
    ),
    Mistake(
        "no column type",
        (("size: Annotated", "parts: set[int]\n    size: Annotated"),),
        "source",
        ("Seen.parts", "no column type", "list"),
        line="parts: set[int]",
    ),
    Mistake(
        "a field named label",
        (("size: Annotated", "label: str\n    size: Annotated"),),
        "source",
        ("'label'", "another name"),
        line="label: str",
    ),
    Mistake(
        "fields that differ in case alone",
        (("size: Annotated", "Size: float\n    size: Annotated"),),
        "source",
        ("Seen.size", "the field 'Size'", "another name"),
        line="size: Annotated",
    ),
    Mistake(
        "torch at the top",
        (("import numpy as np", "import numpy as np\nimport torch"),),
        "source",
        ("torch", "within build_model"),
        line="import torch",
    ),
    Mistake(
        "epochs are missing", (('"epochs": 1, ', ""),), "hyperparameters", ("lacks 'epochs'",), line="hyperparameters ="
    ),
    Mistake(
        "epochs are searched",
        (("search_space = {", 'search_space = {"epochs": Choice((1, 2)), '),),
        "hyperparameters",
        ("'epochs'", "leave it out"),
        line="search_space =",
    ),
    Mistake(
        "an unknown one is searched",
        (("search_space = {", 'search_space = {"width": Choice((1, 2)), '),),
        "hyperparameters",
        ("'width'", "default"),
        line="search_space =",
    ),
    Mistake(
        "an unknown metric",
        (('("accuracy",)', '("acuracy",)'),),
        "source",
        ("'acuracy'", "accuracy"),
        line="metrics =",
    ),
    Mistake("a list", ((FEATURES, FEATURES + ".tolist()"),), "transform", ("as list", "NumPy")),
    Mistake("rows are missing", ((FEATURES, FEATURES + "[:-1]"),), "transform", ("one row for each event",)),
    Mistake("a wrong dtype", ((FEATURES, FEATURES + ".astype(np.float64)"),), "transform", ("float64", "float32")),
    Mistake(
        "not as declared",
        (
            ("    hyperparameters =", '    features = Tensor("float32", (4,))\n    hyperparameters ='),
            ("import Classification", "import Classification\nfrom deeplambda.features import Tensor"),
        ),
        "transform",
        ("(N, 4)", "(N, 3)", "declared"),
    ),
    Mistake(
        "batch mates",
        ((FEATURES, "return np.column_stack([size - size.mean(), kind, length])"),),
        "transform",
        ("alone", "fit"),
    ),
    Mistake(
        "NaN",
        (
            (
                FEATURES,
                "return np.column_stack([size, kind, length * np.float32('nan')])",
            ),
        ),
        "transform",
        ("NaN",),
    ),
    Mistake(
        "the empty string",
        (('len(value or "") for value', "ord(value[0]) if value is not None else 0 for value"),),
        "transform",
        ("note=''", "IndexError", "min_length"),
    ),
    Mistake("None is forgotten", (('len(value or "")', "len(value)"),), "transform", ("NoneType", "TypeError")),
    Mistake(
        "random",
        ((FEATURES, "return np.column_stack([size, kind, np.random.random(len(size))]).astype(np.float32)"),),
        "transform",
        ("second time", "randomness"),
    ),
    Mistake(
        "the state is changed",
        learning("return {'seen': 0}", "state['seen'] += 1\n        " + FEATURES),
        "transform",
        ("changes what fit learned",),
    ),
    Mistake(
        "slow",
        ((FEATURES, "import time\n        time.sleep(0.012 * len(size))\n        " + FEATURES),),
        "transform",
        ("ms a row", "whole columns"),
    ),
    Mistake(
        "unserialisable", learning("return {'kinds': {object()}}"), "learning", ("cannot be kept", "pydantic model")
    ),
    Mistake(
        "a column that is not there",
        learning("return {'n': sum(len(batch['answer']) for batch in batches)}"),
        "learning",
        ("KeyError", "answer", "label"),
    ),
    Mistake(
        "a model that is not named",
        (
            *learning("return Learned(mean=1.0)", FEATURES.replace("size,", "size - np.float32(state.mean),")),
            ("class Small(", "class Learned(BaseModel):\n    mean: float\n\n\nclass Small("),
            ("import Field", "import BaseModel, Field"),
        ),
        "transform",
        ("'dict' object has no attribute 'mean'",),
    ),
    Mistake(
        "ids as float32",
        ((MODEL, "return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))"),),
        "model",
        ("int64", "float32"),
    ),
    Mistake(
        "an input of another name",
        (TWO_TENSORS, (MODEL, net("return self.last(size)", "self.last = nn.Linear(1, 2)", "size"))),
        "model",
        ("'kind'", "forward"),
    ),
    Mistake(
        "an input is ignored",
        (TWO_TENSORS, (MODEL, net("return self.last(size)", "self.last = nn.Linear(1, 2)", "size, kind"))),
        "model",
        ("do not depend", "'kind'"),
    ),
    Mistake("a wrong width", ((MODEL, MODEL.replace("16, 2", "16, 3")),), "model", ("(48, 3)", "(48, 2)", "2 outputs")),
    Mistake(
        "batch norm without statistics",
        ((MODEL, MODEL.replace("nn.ReLU()", "nn.BatchNorm1d(16, track_running_stats=False)")),),
        "model",
        ("alone", "BatchNorm"),
    ),
    Mistake("squeezed", ((MODEL, net("return self.last(features).squeeze()")),), "model", ("alone", "squeeze")),
    Mistake(
        "an unexpected argument",
        (('"weight_decay": 0.0', '"weight_decay": 0.0, "width": 3'),),
        "model",
        ("width", "build_model"),
    ),
    Mistake(
        "an infinite loss",
        (
            (
                "    def build_model",
                "    def loss(self, outputs, labels_N, features):\n        return outputs.sum() / 0\n\n"
                "    def build_model",
            ),
        ),
        "model",
        ("loss", "inf"),
        line="def loss",
    ),
    Mistake("detached", ((MODEL, net("return self.last(features).detach()")),), "model", ("no gradient",)),
    Mistake(
        "a loss of each row",
        hook("loss", "outputs, labels_N, features", "return outputs.mean(dim=1)"),
        "model",
        ("the loss is float32 (16,)", "one number"),
        line="def loss",
    ),
    Mistake(
        "a loss without a gradient",
        hook("loss", "outputs, labels_N, features", "return (outputs.argmax(1) != labels_N).float().mean()"),
        "model",
        ("no gradient", "argmax()"),
        line="def loss",
    ),
    Mistake(
        "a loss with a gradient that is not finite",
        hook("loss", "outputs, labels_N, features", "return (outputs * 0).pow(2).sum().sqrt()"),
        "model",
        ("gradient of the loss is NaN", "square roots"),
        line="def loss",
    ),
    Mistake(
        "a hyperparameter that is not there",
        hook("optimizer", "parameters, hyperparameters", "return hyperparameters['momentum']"),
        "model",
        ("optimizer raised KeyError", "'momentum'", "learning_rate"),
        line="def optimizer",
    ),
    Mistake(
        "no optimizer",
        hook("optimizer", "parameters, hyperparameters", "return 'adam'"),
        "model",
        ("optimizer gives str", "torch.optim.Optimizer"),
        line="def optimizer",
    ),
    Mistake(
        "an optimizer that wants a closure",
        hook("optimizer", "parameters, hyperparameters", "import torch\n        return torch.optim.LBFGS(parameters)"),
        "model",
        ("a step of LBFGS raised", "no argument"),
        line="def optimizer",
    ),
    Mistake(
        "an optimizer of other parameters",
        hook(
            "optimizer",
            "parameters, hyperparameters",
            "import torch\n        return torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)",
        ),
        "model",
        ("a step of SGD changes nothing", "learning rate"),
        line="def optimizer",
    ),
    Mistake(
        "augmented to other rows",
        hook("augment", "features", "return features[:3]"),
        "model",
        ("augment gives 'features' float32 (3, 3)", "(16, 3)", "same shape and dtype"),
        line="def augment",
    ),
    Mistake(
        "augmented to another dtype",
        hook("augment", "features", "return features.double()"),
        "model",
        ("augment gives 'features' float64", "same shape and dtype"),
        line="def augment",
    ),
    Mistake(
        "augmented to nothing",
        hook("augment", "features", "features.mul_(2)"),
        "model",
        ("augment gives 'features' NoneType",),
        line="def augment",
    ),
    Mistake(
        "augmented by dividing by zero",
        hook("augment", "features", "return features / 0"),
        "model",
        ("augment gives NaN",),
        line="def augment",
    ),
    Mistake(
        "not exportable",
        ((MODEL, net("return self.last(features) if features.sum().item() >= 0 else -self.last(features)")),),
        "artefacts",
        ("ONNX",),
    ),
    Mistake(
        "what training learns is no weight",
        (
            (
                MODEL,
                net(
                    "self.mean = features.mean(0).detach() if self.training else self.mean\n"
                    "                return self.last(features - self.mean)",
                    "self.last, self.mean = nn.Linear(3, 2), torch.zeros(3)",
                ),
            ),
        ),
        "artefacts",
        ("other outputs when its weights are loaded into a fresh one", "register_buffer"),
    ),
    Mistake(
        "weights that training makes",
        (
            (
                MODEL,
                net(
                    "if self.training and not hasattr(self, 'scale'):\n"
                    "                    self.scale = nn.Parameter(torch.ones(2))\n"
                    "                return self.last(features)"
                ),
            ),
        ),
        "artefacts",
        ("no place for scale",),
    ),
    Mistake(
        "labels outside the classes",
        (),
        "rows",
        ("'maybe'", "no, yes"),
        line="objective =",
        rows="size,kind,note,answer\n"
        + "".join(f"{n % 10},a,n{n},{'maybe' if n % 4 == 0 else 'yes'}\n" for n in range(80)),
    ),
    Mistake(
        "the label among the fields",
        (("size: Annotated", "said: str\n    size: Annotated"),),
        "rows",
        ("'said'", "tells the answer"),
        rows="size,kind,note,said,answer\n"
        + "".join(f"{n % 10},a,n{n},{w},{w}\n" for n in range(80) for w in ["yes" if n % 3 else "no"]),
    ),
    Mistake(
        "rows twice",
        (),
        "rows",
        ("two splits", "learned by heart"),
        rows="size,kind,note,answer\n" + "".join(f"{n % 10},a,n{n},yes\n{n % 10},a,n{n},no\n" for n in range(80)),
    ),
    Mistake(
        "nothing is seen",
        ((FEATURES, "return np.column_stack([size, kind, length]) * np.float32(0)"),),
        "transform",
        ("the same for each of", "not alike"),
        rows="size,kind,note,answer\n" + "".join(f"{n % 10},a,n{n},{'yes' if n % 3 else 'no'}\n" for n in range(80)),
    ),
    Mistake(
        "a missing file", (("rows.csv", "raws.csv"),), "rows", ("raws.csv",), rows="size,kind,note,answer\n1,a,n,yes\n"
    ),
]


@pytest.fixture(autouse=True)
def _own_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAMBDA_DATA_DIR", str(tmp_path / "data"))


def written(folder: Path, changes: tuple[tuple[str, str], ...]) -> Path:
    source = SOUND
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    folder.mkdir()
    (folder / "application.py").write_text(source)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_planted_mistake_is_found_in_words_that_lead_to_it(mistake: Mistake, tmp_path: Path) -> None:
    folder = written(tmp_path / "small", mistake.changes)
    data = None
    if mistake.rows is not None:
        data = tmp_path / "rows"
        data.mkdir()
        (data / "rows.csv").write_text(mistake.rows)
    report = check_application(folder, data)
    told = [str(finding) for finding in report.findings if finding.check == mistake.check]
    assert any(all(word in each for word in mistake.words) for each in told), [str(each) for each in report.findings]
    if mistake.line is not None:
        source = (folder / "application.py").read_text().splitlines()
        assert any(mistake.line in source[each.line - 1] for each in report.findings if each.line is not None)


def test_hooks_that_keep_the_contract_are_used_and_found_right(tmp_path: Path) -> None:
    changes = (
        *hook("augment", "features", "return features + 0.01 * features.std()"),
        *hook("loss", "outputs, labels_N, features", "return self.objective.loss(outputs, labels_N) + 1e-6"),
        *hook("optimizer", "parameters, given", "from torch.optim import SGD; return SGD(parameters, 0.1)"),
    )
    report = check_application(written(tmp_path / "small", changes))
    assert not report.findings, [str(each) for each in report.findings]


@pytest.mark.slow
def test_a_model_may_keep_what_it_computed(tmp_path: Path) -> None:
    kept = net(
        "self.seen = self.first(features)\n                return self.last(self.seen)",
        "self.first = nn.utils.weight_norm(nn.Linear(3, 8)); self.last = nn.utils.spectral_norm(nn.Linear(8, 2))",
    )
    report = check_application(written(tmp_path / "small", ((MODEL, kept),)))
    assert not report.findings, [str(each) for each in report.findings]


def test_a_sound_application_keeps_the_contract(tmp_path: Path) -> None:
    report = check_application(written(tmp_path / "small", ()))
    assert not report.findings, [str(each) for each in report.findings]
    assert list(report.passed) == [
        *("source", "event", "hyperparameters", "rows", "learning", "transform", "request", "model", "artefacts"),
    ]
    assert "/v1/models/small:predict" in (report.request or "")
