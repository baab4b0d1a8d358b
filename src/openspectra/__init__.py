"""OpenSpectra: the Spectra study of ternary, quantized and half-precision language models as one reproducible DAG."""

__version__ = "0.1.0"
