"""What stands on a page, read from its file."""

import json
import re
from html import unescape


def page_data(directory):
    """Return what the page's script reads."""
    page = (directory / "report.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', page).group(1))


def page_tables(directory):
    """Return title → rows, each column → cell, of every table that stands on the page."""
    page = (directory / "report.html").read_text(encoding="utf-8")
    tables = {}
    for title, table in re.findall(r'<h3 id="t-[^>]*>(.*?)</h3>.*?<table>(.*?)</table>', page):
        head, *rows = map(_cells, re.findall(r"<tr>.*?</tr>", table))
        tables[unescape(title)] = [dict(zip(head, row, strict=True)) for row in rows]
    return tables


def _cells(row):
    return [unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
