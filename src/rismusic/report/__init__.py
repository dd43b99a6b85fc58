"""Reports as single HTML files that can be read offline.

They need the extra ``rismusic[report]``.
"""

from rismusic.report.bench import write_bench_report
from rismusic.report.locate import LocateReport, write_report
from rismusic.report.page import check_report

__all__ = ["LocateReport", "check_report", "write_bench_report", "write_report"]
