"""Sentiment: is a sentence of a film review for or against the film? A convolutional network over learned words.

Data: Pang and Lee, sentence polarity dataset v1.0 (2005). Model: after Kim, Convolutional Neural Networks for Sentence
Classification (2014), its variant CNN-rand: the embeddings begin at random and are learned here.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deeplambda.application import Application, Choice, Event, LogUniform
from deeplambda.features import Tensor
from deeplambda.learned import Vocabulary
from deeplambda.objective import Classification
from deeplambda.sources import ByHash, Lines

_WORDS = 10_000  # ids in all; the words that the training rows have twice fit in
_LENGTH = 40  # words; three sentences in a hundred have more


class SentenceWritten(Event):
    text: str


class Sentiment(Application):
    name = "sentiment"
    event = SentenceWritten
    sources = (Lines("rt-polarity.pos", label="positive"), Lines("rt-polarity.neg", label="negative"))
    splits = ByHash(train=0.8, validation=0.1, test=0.1)
    features = Tensor("int64", (_LENGTH,))
    objective = Classification(("negative", "positive"))
    metrics = ("accuracy", "log_loss")
    hyperparameters = {"epochs": 10, "batch_size": 50, "learning_rate": 1e-3, "weight_decay": 0.01, "width": 64}  # noqa: RUF012
    search_space = {"learning_rate": LogUniform(3e-4, 3e-3), "width": Choice((32, 64, 128))}  # noqa: RUF012

    def fit(self, batches: Iterator[pa.RecordBatch]) -> Vocabulary:
        texts = (text for batch in batches for text in batch["text"].to_pylist())
        return Vocabulary.of(texts, size=_WORDS, minimum=2)  # a word seen once teaches only its own sentence

    def transform(self, batch: pa.RecordBatch, vocabulary: Vocabulary) -> NDArray[np.int64]:
        return vocabulary.padded(batch["text"], _LENGTH)

    def build_model(self, *, width: int = 64) -> Any:
        import torch
        from torch import Tensor, nn
        from torch.nn.functional import dropout, relu

        class Sentences(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words = nn.Embedding(_WORDS, width)
                nn.init.normal_(self.words.weight, std=0.1)
                self.phrases = nn.ModuleList(nn.Conv1d(width, width, size, padding=size // 2) for size in (1, 2, 3))
                self.decide = nn.Sequential(nn.Dropout(0.7), nn.Linear(4 * width, 2))

            def forward(self, tokens_NL: Tensor) -> Tensor:
                # Half of the words are dropped in training: 8,500 sentences are few, and any word may say it all.
                there_NL1 = (tokens_NL > 0).float().unsqueeze(2)
                words_NDL = (self.words(tokens_NL) * dropout(there_NL1, 0.5, self.training)).transpose(1, 2)
                strongest = [relu(phrase(words_NDL)).amax(2) for phrase in self.phrases]
                mean_ND = words_NDL.sum(2) / there_NL1.sum(1).clamp(min=1).sqrt()
                return self.decide(torch.cat([*strongest, mean_ND], dim=1))

        return Sentences()
