"""What benchmarks.step compares: each file is one worker process."""
