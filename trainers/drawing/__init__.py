"""All that is drawn with PIL: charts, contact sheets, pages of reports."""
