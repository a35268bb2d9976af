"""Tables of figures on the terminal."""

from rich.table import Table


def figures_table(title: str, *columns: str) -> Table:
    """Returns a table with figures aligned right; the column without a name has the names of the rows."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table
