"""The mathematics of diffusion: denoisers, noise levels, samplers. Knows tensors; knows no file, patient or millimetre."""
