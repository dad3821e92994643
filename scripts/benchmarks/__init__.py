"""The benchmarks that `scripts/benchmark.py` and `scripts/gpu_check.sh` run."""
