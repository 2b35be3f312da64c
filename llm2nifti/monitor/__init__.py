"""Which networks are active while it speaks? Scores of every network at every generated token."""

from llm2nifti.monitor.answering import Response, Unanswered, respond
from llm2nifti.monitor.watching import Crossing, MonitorError, NetworkMonitor

__all__ = ["Crossing", "MonitorError", "NetworkMonitor", "Response", "Unanswered", "respond"]
