import io

from rich.console import Console

from optkit.demo.progress import add_bar, progress_bar


def test_bar_moves_with_the_reports():
    # Oracle: identity, of what was reported with what is printed at the end.
    out = io.StringIO()
    with progress_bar(Console(file=out, width=80)) as progress:
        report = add_bar(progress, "adan", 40)
        assert progress.tasks[0].fields["status"] == "compiling"
        report(20, 0.5, 0.75)
        assert progress.tasks[0].completed == 20
        report(40, 0.25, 0.875)
    assert progress.finished
    assert "40/40 steps" in out.getvalue()
    assert "loss 0.2500  acc 87.5%" in out.getvalue()
