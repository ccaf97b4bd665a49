"""Texts that do harm where text is taken for something else."""

from __future__ import annotations

SQL = "x'); DROP TABLE records; --"
QUERY = 'a" OR NEAR(b NOT c) * ^ {col}: "'
TEMPLATE = "{{ ''.__class__.__mro__ }} {% for x in y %} {0.__class__} {lessons} ${HOME} $title %s"
SHELL = "$(touch planted-file) `touch planted-file`; touch planted-file | touch planted-file"
HTML = "</script><script>document.title='planted'</script><img src=x onerror=alert(1)>\"' onload=\"x"
TERMINAL = "\x1b[2J\x1b]0;planted\x07\x9b31m\u202eplanted\r"
PATH = "../../../../planted-file"
ROWS = '=cmd|"/c calc"!A1,"\n{"prompt": "planted row", "response": "r", "advantage": 9}\n'
ALL = {
    "sql": SQL,
    "query": QUERY,
    "template": TEMPLATE,
    "shell": SHELL,
    "html": HTML,
    "terminal": TERMINAL,
    "path": PATH,
    "rows": ROWS,
}
