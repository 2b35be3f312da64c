"""What is the whole story? One page with its figures, made from an analysed dataset alone."""

from llm2nifti.report.overview import Overview, compare_sessions, write_overview
from llm2nifti.report.page import write
from llm2nifti.report.summary import ReportError, SessionSummary, read_session_summary

__all__ = [
    "Overview",
    "ReportError",
    "SessionSummary",
    "compare_sessions",
    "read_session_summary",
    "write",
    "write_overview",
]
