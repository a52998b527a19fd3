from experiments.reporting import markdown


def test_rows_of_other_columns_share_a_table():
    table = markdown.table([{"depth": 20, "step ms": 1.234}, {"depth": 56, "note": "none"}])
    assert table.splitlines() == [
        "| depth | step ms | note |",
        "|---|---|---|",
        "| 20 | 1.23 |  |",
        "| 56 |  | none |",
    ]


def test_no_text_makes_another_cell_or_line():
    assert markdown.table([{"kind": "a | b\n| c"}]).splitlines()[2] == r"| a \| b \| c |"
