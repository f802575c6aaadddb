"""Kernels for NVIDIA GPUs, in Triton; `model.layers.fused` says what they are for."""
