"""interleaf against the engines that people use today: same weights, workloads and cores; see docs/benchmarks.md."""
