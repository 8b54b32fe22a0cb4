"""A page and a table of all runs below a folder: which was best, what was swept, and what failed."""

from cmt_aqr.studies.reports.report import make_report

__all__ = ["make_report"]
