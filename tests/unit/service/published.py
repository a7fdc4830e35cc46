"""What was published, in a list."""


class Published(list[tuple[str, float, int | None]]):
    """In the place of a publisher of metrics: what was published, by name, value and partition."""

    def publish(self, name: str, value: float, unit: str, kafka_partition: int | None = None) -> None:
        self.append((name, value, kafka_partition))

    def values(self) -> dict[str, float]:
        return {name: value for name, value, partition in self if partition is None}
