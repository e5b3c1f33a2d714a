"""Quantizers: latents to codes and back, fitted offline on frozen latents."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
