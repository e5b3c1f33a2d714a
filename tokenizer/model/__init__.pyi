from .latent_tokenizer import LatentTokenizer as LatentTokenizer
