"""Sentiment: is a film review's sentence for or against the film? Small convolutional networks and naive Bayes judge.

Data: Pang and Lee, sentence polarity dataset v1.0 (2005). Networks: after CNN-rand of Kim, Convolutional Neural
Networks for Sentence Classification (2014). Naive Bayes: Wang and Manning, Baselines and bigrams (2012)."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from deeplambda.application import Application, Choice, Event, LogUniform
from deeplambda.features import Features, Tensor
from deeplambda.learned import NaiveBayes, Vocabulary
from deeplambda.objective import Classification
from deeplambda.sources import ByHash, Lines

_WORDS, _LENGTH = 10_000, 40  # ids in all: words seen twice fit in; words of a sentence: 3 % have more


class SentenceWritten(Event):
    text: str


class Known(BaseModel):
    vocabulary: Vocabulary
    words: NaiveBayes
    letters: NaiveBayes


class Sentiment(Application):
    name = "sentiment"
    event = SentenceWritten
    sources = (Lines("rt-polarity.pos", label="positive"), Lines("rt-polarity.neg", label="negative"))
    splits = ByHash(train=0.8, validation=0.1, test=0.1)
    features = {"words": Tensor("int64", (_LENGTH,)), "evidence": Tensor("float32")}  # noqa: RUF012
    objective = Classification(("negative", "positive"))
    metrics = ("accuracy", "log_loss")
    hyperparameters = {"epochs": 10, "batch_size": 50, "learning_rate": 1e-3, "weight_decay": 0.01, "naive_bayes": 1.0}  # noqa: RUF012
    search_space = {"learning_rate": LogUniform(3e-4, 3e-3), "naive_bayes": Choice((0.0, 0.5, 1.0, 1.5))}  # noqa: RUF012

    def fit(self, batches: Iterator[pa.RecordBatch]) -> Known:
        table = pa.Table.from_batches(batches)
        texts, holds = table["text"].to_pylist(), [label == "positive" for label in table["label"].to_pylist()]
        words, letters = (NaiveBayes.of(texts, holds, *runs) for runs in (("words", (1, 2)), ("characters", (4, 6))))
        return Known(vocabulary=Vocabulary.of(texts, _WORDS, minimum=2), words=words, letters=letters)

    def transform(self, batch: pa.RecordBatch, known: Known) -> Features:
        text = batch["text"]
        evidence = known.words.evidence(text) / 8 + known.letters.evidence(text) / 60  # either deviates by about 1 then
        return {"words": known.vocabulary.padded(text, _LENGTH), "evidence": evidence}

    def build_model(self, *, naive_bayes: float = 1.0) -> Any:
        import torch
        from torch import Tensor, nn

        def member(phrase: int) -> nn.Module:  # looks at each run of so many words
            words = nn.Embedding(_WORDS, 32, padding_idx=0)
            words.weight.data *= 0.1
            seen = (nn.Dropout1d(0.5), nn.Unflatten(1, (1, _LENGTH)))  # half of the words: 8,500 sentences are few
            strongest = (nn.Conv2d(1, 96, (phrase, 32)), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())
            return nn.Sequential(words, *seen, *strongest, nn.Dropout(0.7), nn.Linear(96, 2))

        class Committee(nn.ModuleList):  # small ones err differently: better than one of the same cost
            def forward(self, words: Tensor, evidence: Tensor) -> Tensor:
                judged_N2 = torch.stack([member(words) for member in self]).mean(dim=0)
                weight = 0 if self.training else naive_bayes / 2  # it knows the training rows' labels: nothing to add
                return judged_N2 + weight * torch.stack([-evidence, evidence], dim=1)

        return Committee(member(phrase) for phrase in (1, 2, 3, 4))
