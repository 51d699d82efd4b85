"""What exo promises of its speed, measured: `uv run python -m benchmarks NAME [--json]`."""
