"""Training: the trainer that all models share, and the three stages of a tokenizer.

Names are imported when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
