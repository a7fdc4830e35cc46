"""Source text of drafted applications, with places for what a sample shows; `{{` and `}}` are braces of the draft."""

import json
from typing import Any

BLOCKS: dict[str, dict[str, str]] = {
    "constants": {
        "numbers": "NUMBERS = {numbers}\n",
        "categories": "CATEGORIES = {categories}\nCATEGORY_IDS = 64  # of each column; rarer values share an id\n",
        "texts": "TEXTS = {texts}\nWORDS, TEXT_WORDS = 5000, 32  # DECIDE: words known in all, words read of a text\n",
    },
    "learned": {
        "numbers": "    numbers: Standardization\n",
        "categories": "    categories: dict[str, Categories]\n",
        "texts": "    words: Vocabulary\n",
    },
    "fit": {
        "numbers": "            numbers=Standardization.of(rows.to_batches(), NUMBERS),\n",
        "categories": (
            "            categories={{name: Categories.of(rows[name].to_pylist()) for name in CATEGORIES}},\n"
        ),
        "texts": (
            "            words=Vocabulary.of((text for n in TEXTS for text in rows[n].to_pylist()), size=WORDS),\n"
        ),
    },
    "transform": {
        "numbers": '            "numbers": learned.numbers.of_batch(batch),\n',
        "categories": (
            '            "categories": np.column_stack(\n'
            "                [learned.categories[n].codes(batch[n]).clip(max=CATEGORY_IDS - 1) for n in CATEGORIES]\n"
            "            ),\n"
        ),
        "texts": (
            '            "texts": np.hstack([learned.words.padded(batch[name], TEXT_WORDS) for name in TEXTS]),\n'
        ),
    },
    "layers": {
        "numbers": "                inputs += len(NUMBERS)\n",
        "categories": (
            "                self.of_categories = nn.ModuleList(nn.Embedding(CATEGORY_IDS, 8) for _ in CATEGORIES)\n"
            "                inputs += 8 * len(CATEGORIES)\n"
        ),
        "texts": (
            "                self.of_words = nn.Embedding(WORDS, width, padding_idx=0)\n"
            "                inputs += width\n"
        ),
    },
    "forward": {
        "numbers": "                parts.append(numbers)\n",
        "categories": (
            "                parts += [embedding(categories[:, n]) for n, embedding in enumerate(self.of_categories)]\n"
        ),
        "texts": (
            "                known = (texts > 0).unsqueeze(-1)\n"
            "                parts.append((self.of_words(texts) * known).sum(dim=1) / known.sum(dim=1).clamp(min=1))\n"
        ),
    },
    "filled": {
        "numbers": ("    columns |= {{name: batch[name].cast(pa.float64()).fill_null(0.0) for name in NUMBERS}}\n"),
        "categories": '    columns |= {{name: batch[name].fill_null("") for name in CATEGORIES}}\n',
        "texts": '    columns |= {{name: batch[name].fill_null("") for name in TEXTS}}\n',
    },
}
"""By place in TABLE and kind of feature: what is there for that kind."""

TABLE = '''"""{title}: drafted after a sample; the comments that begin with DECIDE are yours."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from deeplambda.application import Application, Choice, Event, LogUniform
from deeplambda.learned import {learned_imports}
from deeplambda.objective import {objective_class}
from deeplambda.sources import {imports}

{constants}{label_constants}

class {title}Event(Event):
    # DECIDE: bound what you can, as Annotated[float, Field(ge=0)]: what the schema refuses, no model has to answer.
{fields}
{dropped}

class Learned(BaseModel):
    """What the training rows teach: it is kept with each version of the model."""

{learned}

class {title}(Application):
    name = "{name}"
    event = {title}Event
    # DECIDE: which files; a glob, as "2026-*.csv", takes those that are put later as well
{identified}    sources = {sources}
{splits}    # DECIDE: the label is taken to be {label}.
    objective = {objective}
    metrics = {metrics}  # DECIDE: {judged}
    hyperparameters = {{"epochs": 5, "batch_size": 64, "learning_rate": 3e-3, "weight_decay": 1e-4, "width": 64}}
    search_space = {{"learning_rate": LogUniform(3e-4, 1e-2), "width": Choice((32, 64, 128))}}

    def fit(self, batches: Iterator[pa.RecordBatch]) -> Learned:
        rows = pa.Table.from_batches([filled(batch) for batch in batches])  # the train split, in memory
        return Learned(
{fit}        )

    def transform(self, batch: pa.RecordBatch, learned: Learned) -> dict[str, np.ndarray]:
        batch = filled(batch)
        return {{
{transform}        }}

    def build_model(self, *, width: int = 64) -> Any:
        # DECIDE: a small network to begin with.
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                inputs = 0
{layers}                self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, {outputs}))

            def forward(self, {arguments}):
                parts = []
{forward}                return {result}

        return Net()


def filled(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The columns that are used, with a value for each row."""
    # DECIDE: what stands for a missing value.
    columns: dict[str, pa.Array] = {{}}
{filled}    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
'''

IMAGES = '''"""{title}: drafted after a sample; the comments that begin with DECIDE are yours."""

from io import BytesIO
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, ConfigDict

from deeplambda.application import Application, Choice, Event, LogUniform
from deeplambda.fields import as_seen
from deeplambda.objective import Classification
from deeplambda.sources import {imports}

SIDE = 32  # DECIDE: pixels that an image is brought to; more show more and take longer
LARGEST = 16_000_000  # pixels of an image: a small file can hold very many


def picture(content: bytes) -> bytes:
    """Refuses what is no whole image, or one of very many pixels, before a model has to answer for it."""
    from PIL import Image

    try:
        with Image.open(BytesIO(content), formats=["PNG", "JPEG"]) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{{image.width}} × {{image.height}} pixels")
            image.load()
    except Exception as exc:
        raise ValueError(f"no PNG or JPEG that can be taken: {{exc}}") from exc
    return content


class {title}Event(Event):
    model_config = ConfigDict(val_json_bytes="base64", ser_json_bytes="base64")  # how JSON carries an image

    image: Annotated[bytes, AfterValidator(picture)]


class {title}(Application):
    name = "{name}"
    event = {title}Event
    sources = {sources}
{splits}    objective = Classification({classes})  # DECIDE: the folders' names
    metrics = ("accuracy", "log_loss")  # DECIDE: the first decides
    hyperparameters = {{"epochs": 5, "batch_size": 64, "learning_rate": 2e-3, "weight_decay": 1e-4, "width": 32}}
    search_space = {{"learning_rate": LogUniform(3e-4, 1e-2), "width": Choice((16, 32, 64))}}

    def transform(self, batch: pa.RecordBatch) -> np.ndarray:
        from PIL import Image

        pictures = []
        for content in batch["image"].to_pylist():
            with Image.open(BytesIO(content)) as image:
                pictures.append(np.asarray(as_seen(image).convert("RGB").resize((SIDE, SIDE)), np.float32) / 255)
        return np.stack(pictures).transpose(0, 3, 1, 2)

    def build_model(self, *, width: int = 32) -> Any:
        # DECIDE: a small convolutional network to begin with.
        from torch import nn

        return nn.Sequential(
            *(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(2 * width * (SIDE // 4) ** 2, {outputs})),
        )
'''


def quoted(value: Any) -> str:
    """Source text of a text, or of texts by name."""
    return json.dumps(value, ensure_ascii=False)
