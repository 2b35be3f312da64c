"""What is the whole story? One page with its figures, made from an analysed dataset alone."""

from llm2nifti.report.overview import write_overview
from llm2nifti.report.page import write
from llm2nifti.report.source import ReportError

__all__ = ["ReportError", "write", "write_overview"]
