"""A trained model as ONNX, for runtimes without PyTorch; accepted only when both give the same outputs."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnxruntime
import torch
from torch import nn

from deeplambda.errors import UnfitModel

INPUT, OUTPUT = "features", "outputs"
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-3, 1e-4
"""Two runtimes add in different orders: about 1e-6 in fp32. A wrong operator is off by far more than this."""

_CHATTY = ("torch.onnx._internal.exporter._registration", "torch.utils.flop_counter")
_CHECKED_ROWS = (1, 3, 64)


def exported(model: nn.Module, feature_shape: Sequence[int]) -> bytes:
    """`model` as ONNX: input `features` float32 (rows, …), output `outputs`, any number of rows, no external data.

    model: on the CPU, in evaluation mode. feature_shape: of one row.
    Raises: UnfitModel when its outputs differ from the model's by more than the tolerances.
    """
    example = torch.zeros(2, *feature_shape)  # of one row, the exporter would take the batch to be always one
    with _quiet_exporter():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            verbose=False,
        )
    assert program is not None  # it is None only without dynamo
    content: bytes = program.model_proto.SerializeToString()
    _check(content, model, feature_shape)
    return content


def _check(content: bytes, model: nn.Module, feature_shape: Sequence[int]) -> None:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    randomness = torch.Generator().manual_seed(0)
    for rows in _CHECKED_ROWS:
        features = torch.randn(rows, *feature_shape, generator=randomness)
        with torch.inference_mode():
            expected = model(features).numpy()
        (found,) = session.run([OUTPUT], {INPUT: features.numpy()})
        if found.shape != expected.shape or not np.allclose(
            found, expected, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE
        ):
            raise UnfitModel(
                f"the ONNX export gives other outputs than the model for a batch of {rows} random rows",
                "use operators in build_model that torch.onnx.export supports",
            )


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter tells of optional packages that are absent and of its own deprecations; none concern a user."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
