"""Read and write the dataset: the joint between the scanner half and the analysis half."""

from llm2nifti.bids.dataset import SUMMARY
from llm2nifti.bids.files import (
    ExistsError,
    InUseError,
    locked,
    write_img,
    write_json,
    write_text,
    write_tsv,
)
from llm2nifti.bids.manifest import WORK
from llm2nifti.bids.paths import DERIVATIVES, LabelError, folder_of, label
from llm2nifti.bids.readers import DamagedFileError, read_img, read_json, read_tsv
from llm2nifti.bids.reading import (
    NoSuchRunError,
    Run,
    analysed,
    analysis_folder,
    anatomy,
    read,
    read_summary,
    runs,
    update_summary,
)
from llm2nifti.bids.session import NotRepeatedError, Session, session
from llm2nifti.bids.writing import write

__all__ = [
    "DERIVATIVES",
    "SUMMARY",
    "WORK",
    "DamagedFileError",
    "ExistsError",
    "InUseError",
    "LabelError",
    "NoSuchRunError",
    "NotRepeatedError",
    "Run",
    "Session",
    "analysed",
    "analysis_folder",
    "anatomy",
    "folder_of",
    "label",
    "locked",
    "read",
    "read_img",
    "read_json",
    "read_summary",
    "read_tsv",
    "runs",
    "session",
    "update_summary",
    "write",
    "write_img",
    "write_json",
    "write_text",
    "write_tsv",
]
