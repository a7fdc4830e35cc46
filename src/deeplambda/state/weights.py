"""A model's weights as safetensors, of tied weights one."""

from typing import TYPE_CHECKING

from deeplambda.errors import BadInput, CorruptObject, UnfitModel

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


def begin_with(model: "torch.nn.Module", content: bytes, name: str, *, heads: tuple[int, int]) -> tuple[str, ...]:
    """Give a fresh model another one's weights, all but those of a head of another size, which stays as it was made.

    heads: how many outputs this model has, and how many the other: tensors with as many rows are of the head. name: the
    version that the weights are of, for errors. Returns the names of what was not taken.
    Raises: BadInput when the two differ in more than that.
    """
    import torch
    from safetensors.torch import load

    given, own = load(content), model.state_dict()
    lacking = own.keys() - given.keys() - _shared_names(model)
    other = [key for key in own if key in given and given[key].shape != own[key].shape]
    if odd := [
        *sorted(lacking | given.keys() - own.keys()),
        *(key for key in other if not _of_head(own[key], given[key], heads)),
    ]:
        raise BadInput(
            f"the model of {name} is another one: the two differ in {', '.join(odd[:5])}{', …' if odd[5:] else ''}",
            "begin from a version whose model differs in its last layer alone, give the hyperparameters that it was "
            "trained with, or train without --init-from",
        )
    with torch.no_grad():
        model.load_state_dict({key: tensor for key, tensor in given.items() if key not in other}, strict=False)
    return tuple(other)


def _of_head(own: "torch.Tensor", given: "torch.Tensor", heads: tuple[int, int]) -> bool:
    return own.ndim == given.ndim > 0 and own.shape[1:] == given.shape[1:] and (len(own), len(given)) == heads


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
