"""Reports: one HTML file each, which needs no network, no other file and no script to be read.

They need the extra ``rismusic[report]``.
"""

from rismusic.evaluate.report.benching import write_bench_report
from rismusic.evaluate.report.locating import LocateReport, write_report
from rismusic.evaluate.report.page import check_report

__all__ = ["LocateReport", "check_report", "write_bench_report", "write_report"]
