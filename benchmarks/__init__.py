"""Speed and memory benchmarks, and floors to compare with."""
