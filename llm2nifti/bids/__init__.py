"""Read and write the dataset: the joint between the scanner half and the analysis half."""

from llm2nifti.bids.dataset import (
    SUMMARY,
    VALIDATOR_CONFIG,
    check_folder,
    is_begun,
    remove_dataset,
    write_dataset_files,
)
from llm2nifti.bids.files import (
    ExistsError,
    InUseError,
    locked,
    shared,
    write_img,
    write_json,
    write_text,
    write_tsv,
)
from llm2nifti.bids.manifest import WORK, ForeignFileWarning
from llm2nifti.bids.participants import weights_hash
from llm2nifti.bids.paths import (
    DERIVATIVES,
    EmptyPathError,
    LabelError,
    RunPaths,
    as_root,
    folder_of,
    label,
)
from llm2nifti.bids.readers import DamagedFileError, read_img, read_json, read_tsv
from llm2nifti.bids.reading import (
    NoSuchRunError,
    Run,
    analysed,
    analysis_folder,
    anatomy,
    default_subject,
    read,
    runs,
)
from llm2nifti.bids.session import Session, session
from llm2nifti.bids.writing import clear_work, stimulus_names, write

__all__ = [
    "DERIVATIVES",
    "SUMMARY",
    "VALIDATOR_CONFIG",
    "WORK",
    "DamagedFileError",
    "EmptyPathError",
    "ExistsError",
    "ForeignFileWarning",
    "InUseError",
    "LabelError",
    "NoSuchRunError",
    "Run",
    "RunPaths",
    "Session",
    "analysed",
    "analysis_folder",
    "anatomy",
    "as_root",
    "check_folder",
    "clear_work",
    "default_subject",
    "folder_of",
    "is_begun",
    "label",
    "locked",
    "read",
    "read_img",
    "read_json",
    "read_tsv",
    "remove_dataset",
    "runs",
    "session",
    "shared",
    "stimulus_names",
    "weights_hash",
    "write",
    "write_dataset_files",
    "write_img",
    "write_json",
    "write_text",
    "write_tsv",
]
