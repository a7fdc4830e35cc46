"""Sentiment: is a sentence of a film review for or against the film? Small convolutional networks over learned words.

Data: Pang and Lee, sentence polarity dataset v1.0 (2005). Network: after CNN-rand of Kim, Convolutional Neural Networks
for Sentence Classification (2014): embeddings begin at random.
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

_WORDS, _LENGTH = 10_000, 40  # ids in all: words seen twice fit in; words of a sentence: 3 % have more


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
    hyperparameters = {"epochs": 10, "batch_size": 50, "learning_rate": 1e-3, "weight_decay": 0.01, "members": 4}  # noqa: RUF012
    search_space = {"learning_rate": LogUniform(3e-4, 3e-3), "members": Choice((1, 4, 8))}  # noqa: RUF012

    def fit(self, batches: Iterator[pa.RecordBatch]) -> Vocabulary:
        texts = (text for batch in batches for text in batch["text"].to_pylist())
        return Vocabulary.of(texts, size=_WORDS, minimum=2)  # a word seen once teaches only its own sentence

    def transform(self, batch: pa.RecordBatch, vocabulary: Vocabulary) -> NDArray[np.int64]:
        return vocabulary.padded(batch["text"], _LENGTH)

    def build_model(self, *, members: int = 4) -> Any:
        import torch
        from torch import Tensor, nn
        from torch.nn.functional import dropout, relu

        class Member(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words = nn.Embedding(_WORDS, 32)
                nn.init.normal_(self.words.weight, std=0.1)
                self.phrases = nn.ModuleList(nn.Conv1d(32, 32, size, padding=size // 2) for size in (1, 2, 3))
                self.decide = nn.Sequential(nn.Dropout(0.7), nn.Linear(4 * 32, 2))

            def forward(self, tokens_NL: Tensor) -> Tensor:
                there_NL1 = (tokens_NL > 0).float().unsqueeze(2)
                seen_NL1 = dropout(there_NL1, 0.5, self.training)  # half of the words: 8,500 sentences are few
                words_NDL = (self.words(tokens_NL) * seen_NL1).transpose(1, 2)
                strongest = [relu(phrase(words_NDL)).amax(2) for phrase in self.phrases]
                overall = words_NDL.sum(2) / there_NL1.sum(1).clamp(min=1).sqrt()
                return self.decide(torch.cat([*strongest, overall], dim=1))

        class Committee(nn.ModuleList):  # small ones err differently: better than one of the same cost
            def forward(self, tokens_NL: Tensor) -> Tensor:
                return torch.stack([member(tokens_NL) for member in self]).mean(dim=0)

        return Committee(Member() for _ in range(members))
