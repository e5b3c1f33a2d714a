from .additive import (
    FaissResidualQuantizer as FaissResidualQuantizer,
    LocalSearchQuantizer as LocalSearchQuantizer,
)
from .base import Quantizer as Quantizer
from .factorized import (
    FactorizedQuantizer as FactorizedQuantizer,
    ProjectedScalarQuantizer as ProjectedScalarQuantizer,
)
from .measure import FitReport as FitReport
from .neural import ImplicitNeuralQuantizer as ImplicitNeuralQuantizer
from .product import (
    OptimizedProductQuantizer as OptimizedProductQuantizer,
    ProductQuantizer as ProductQuantizer,
)
from .registry import (
    QUANTIZERS as QUANTIZERS,
    build_quantizer as build_quantizer,
    quantizer_class as quantizer_class,
    register_quantizer as register_quantizer,
)
from .residual import ResidualVectorQuantizer as ResidualVectorQuantizer
from .scalar import (
    FiniteScalarQuantizer as FiniteScalarQuantizer,
    ResidualFiniteScalarQuantizer as ResidualFiniteScalarQuantizer,
)
from .sources import (
    LatentSource as LatentSource,
    MemmapSource as MemmapSource,
    TensorSource as TensorSource,
    sample_frames as sample_frames,
)
