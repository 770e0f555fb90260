"""Diffusion models for medical images, from a folder of scans to trained, evaluated and written results."""

__version__ = "0.1.0"
