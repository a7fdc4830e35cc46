"""The champion of digits as LitServe has it: in a module, because LitServe sends the class to a process of its own."""

from typing import Any

import litserve

from benchmarks.peers import Champion, image_of


class DigitsAPI(litserve.LitAPI):  # type: ignore[misc]
    """Batched requests in, the bodies of their replies out."""

    def setup(self, device: str) -> None:
        self.champion = Champion()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe would take Any for a query's
        return image_of(request)

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, inputs: list[bytes]) -> list[dict[str, Any]]:
        return self.champion.predictions(inputs)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output
