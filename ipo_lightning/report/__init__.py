"""A run as plain-text tables and as one self-contained HTML page, made from its files on disk.

The page loads nothing from elsewhere: styles, charts (SVG) and videos (animated WebP) are inside.
Texts from files (prompts, names, a critic's answers) are escaped by ``markup``.

``run`` reads the files, ``tables`` and ``charts`` show their numbers, ``videos`` their videos;
``parts`` and ``page`` put these together.
"""

from ipo_lightning.report.page import write_report
from ipo_lightning.report.run import find_videos
from ipo_lightning.report.tables import rounds_table, table
from ipo_lightning.report.videos import thumbnail

__all__ = ["find_videos", "rounds_table", "table", "thumbnail", "write_report"]
