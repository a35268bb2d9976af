"""A table of figures on the terminal."""

from rich.table import Table


def figures_table(title: str, *columns: str) -> Table:
    """Figures stand right, the column without a name holds what they are of."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table
