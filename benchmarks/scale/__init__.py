"""What the platform does at size: `python -m benchmarks scale [SECTION …]`, told of in docs/scale.md."""
