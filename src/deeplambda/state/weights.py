"""A model's weights as safetensors, of tied weights one."""

from typing import TYPE_CHECKING

from deeplambda.errors import CorruptObject, UnfitModel

if TYPE_CHECKING:
    import torch


def encoded_weights(model: "torch.nn.Module") -> bytes:
    """Of tied weights one is kept, for `save` refuses shared memory."""
    import torch
    from safetensors.torch import save

    seen: set[tuple[object, ...]] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        if (place := _memory_of(tensor)) in seen and tensor.numel():
            continue
        seen.add(place)
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format)  # of two views of one memory, both
    content: bytes = save(tensors)
    return content


def load_weights(model: "torch.nn.Module", content: bytes, name: str) -> None:
    """Give a fresh model the weights that were kept. name: the version, for errors.

    Raises: CorruptObject when they do not fit the model, UnfitModel when one is not finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        shared = _shared_names(model)
        if absent := [key for key in missing if key not in shared]:
            raise RuntimeError(f"no weights for {', '.join(absent)}")
        if unexpected:
            raise RuntimeError(f"no place for {', '.join(unexpected)}")
    except (SafetensorError, RuntimeError) as exc:
        raise CorruptObject(f"the weights of {name} do not fit its model: {exc}", "train and publish again") from exc
    floats = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    if not all(torch.isfinite(tensor).all() for tensor in floats):
        raise UnfitModel(f"{name} has weights that are not finite", "promote another version")


def _memory_of(tensor: "torch.Tensor") -> tuple[object, ...]:
    """Equal for tensors that are the same numbers in the same memory, as tied weights are."""
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _shared_names(model: "torch.nn.Module") -> set[str]:
    """Names of tensors that are another's memory: of tied weights the file holds one."""
    seen: dict[tuple[object, ...], str] = {}
    shared: set[str] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        place = _memory_of(tensor)
        if place in seen and tensor.numel():
            shared |= {name, seen[place]}
        seen.setdefault(place, name)
    return shared
