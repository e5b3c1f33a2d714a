from .config import LappedConfig as LappedConfig
from .model import LappedAutoencoder as LappedAutoencoder, LappedEncoder as LappedEncoder
