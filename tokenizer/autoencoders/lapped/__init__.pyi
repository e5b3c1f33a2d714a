from .config import LappedConfig as LappedConfig
from .encoder import LappedEncoder as LappedEncoder
from .model import LappedAutoencoder as LappedAutoencoder
