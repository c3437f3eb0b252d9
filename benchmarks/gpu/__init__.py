"""What only a GPU can show, in nine minutes: the CUDA tests, tokens/s and memory, FSDP2, and as much of bench-shift as fits."""
