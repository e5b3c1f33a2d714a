"""What a tokenizer is: tensors, rows, streams, and its checkpoint."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
