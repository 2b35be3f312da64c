"""How is a result told? Sections of sentences, tables and figures, once for terminal and page."""

from llm2nifti.tell.section import Plot, Section, Table, Viewer, as_html, as_text

__all__ = ["Plot", "Section", "Table", "Viewer", "as_html", "as_text"]
