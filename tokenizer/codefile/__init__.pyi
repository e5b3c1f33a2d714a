from .header import (
    FORMAT_VERSION as FORMAT_VERSION,
    CodeFileError as CodeFileError,
    CodeFileHeader as CodeFileHeader,
    Source as Source,
    Target as Target,
)
from .reader import (
    CodeFileInfo as CodeFileInfo,
    CodeReader as CodeReader,
    read_codes as read_codes,
    read_info as read_info,
)
from .truncate import truncate_codes as truncate_codes
from .writer import CodeWriter as CodeWriter, write_codes as write_codes
