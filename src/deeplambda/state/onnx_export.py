"""A trained model as ONNX, for runtimes without PyTorch; accepted only when both give the same outputs on kept rows."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

import onnxruntime
import torch
from torch import nn

from deeplambda.errors import UnfitModel
from deeplambda.features import SINGLE, Features, call, chosen, row_count
from deeplambda.state.kept_rows import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE

OUTPUT = "outputs"

_VERBOSE_LOGGERS = ("torch.onnx._internal.exporter._registration", "torch.utils.flop_counter")
_CHECKED_ROWS = (1, 3, 64)


def exported(model: nn.Module, kept: Features) -> bytes:
    """`model` as ONNX: an input for each tensor of the features, the output `outputs`, any number of rows.

    model: on the CPU, in evaluation mode. kept: features of real rows, on which the export is checked; at least one.
    Raises: UnfitModel when the model cannot be exported, or its outputs differ by more than the tolerances.
    """
    rows = row_count(kept)
    twice = [0, min(1, rows - 1)]  # of one row, the exporter would take the batch to be always one
    example = {name: torch.from_numpy(array) for name, array in chosen(kept, twice).items()}
    single = set(example) == {SINGLE}
    batch = {0: torch.export.Dim("rows")}
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                model,
                (example[SINGLE],) if single else (),
                kwargs=None if single else example,
                dynamo=True,
                input_names=list(example),
                output_names=[OUTPUT],
                dynamic_shapes=(batch,) if single else dict.fromkeys(example, batch),
                verbose=False,
            )
        except Exception as exc:  # whatever a model's own code does in the exporter's hands
            exc = exc.__cause__ if isinstance(exc.__cause__, Exception) else exc  # the exporter's own tells its steps
            reason = str(exc).strip().partition("\n")[0][:300]
            raise UnfitModel(
                f"the model cannot be exported as ONNX: {type(exc).__name__}: {reason}",
                "use operators in build_model that torch.onnx.export supports, without conditions on values",
            ) from exc
    assert program is not None  # it is None only without dynamo
    content: bytes = program.model_proto.SerializeToString()
    _check(content, model, kept)
    return content


def _check(content: bytes, model: nn.Module, kept: Features) -> None:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    taken = {each.name for each in session.get_inputs()}  # what the model does not use is not there
    for rows in _CHECKED_ROWS:
        features = chosen(kept, [row % row_count(kept) for row in range(rows)])
        with torch.inference_mode():
            expected = call(model, {name: torch.from_numpy(array) for name, array in features.items()}).numpy()
        (found,) = session.run([OUTPUT], {name: array for name, array in features.items() if name in taken})
        if found.shape != expected.shape or not torch.allclose(
            torch.from_numpy(found), torch.from_numpy(expected), rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE
        ):
            raise UnfitModel(
                f"the ONNX export gives other outputs than the model for a batch of {rows} kept rows",
                "use operators in build_model that torch.onnx.export supports",
            )


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter tells of optional packages that are absent, of its own deprecations, and prints what it fails on."""
    loggers = [logging.getLogger(name) for name in _VERBOSE_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
